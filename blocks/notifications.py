"""Where operators are told how runs end: signed webhooks and e-mail, as Prefect blocks. Knows nothing of runs.

A delivery is a JSON body. Its signature is the hexadecimal HMAC-SHA256, under the block's secret, of the time stamp, a
full stop and the body; receivers compute it again, and refuse old time stamps. Secrets are `SecretStr`, encrypted in
the server's database and masked by its API.
"""

from __future__ import annotations

import hashlib
import hmac
import smtplib
import ssl
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.policy import SMTP
from enum import StrEnum
from typing import Annotated, Final, cast

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from reconflow.errors import NotificationFailedError

SIGNATURE_HEADER: Final = "X-Reconflow-Signature"
TIMESTAMP_HEADER: Final = "X-Reconflow-Timestamp"
DELIVERY_HEADER: Final = "X-Reconflow-Delivery"
ATTEMPTS: Final = 5
FIRST_DELAY_S: Final = 1.0
TIMEOUT_S: Final = 10.0
_TOO_MANY_REQUESTS: Final = 429
_LONGEST_HEADER: Final = 200
"""So that a signature is not broken into two lines."""
_TRANSIENT_SMTP: Final = range(400, 500)

Port = Annotated[int, Field(ge=1, le=65535)]


class Delivery(BaseModel):
    """One message for every destination.

    Attributes:
        identifier: Equal for repetitions of the same message, so that a receiver can drop them.
        subject: One line for people.
        text: Some lines for people.
        body: The JSON document.
    """

    model_config = ConfigDict(frozen=True)

    identifier: str
    subject: str
    text: str
    body: bytes


class _TransientError(Exception):
    """A destination failed in a way that may pass; holds what is said about it."""


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a body, as in the header: `sha256=` and 64 hexadecimal digits.

    Args:
        secret: Shared with the receiver.
        timestamp: Seconds since 1970, as in the header.
        body: The bytes that are sent.
    """
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _signature_headers(delivery: Delivery, secret: SecretStr) -> dict[str, str]:
    timestamp = str(int(time.time()))
    return {
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: sign(secret.get_secret_value(), timestamp, delivery.body),
        DELIVERY_HEADER: delivery.identifier,
    }


def _retrying(what: str, attempt: Callable[[], None], wait: Callable[[float], None]) -> None:
    """Try until it succeeds, with growing pauses.

    Raises:
        NotificationFailedError: It never did.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except _TransientError as error:
            if number == ATTEMPTS:
                raise _failed(what, f"{error} ({ATTEMPTS} attempts)") from None
            wait(FIRST_DELAY_S * 2 ** (number - 1))
    return None


def _failed(what: str, reason: str) -> NotificationFailedError:
    return NotificationFailedError(
        f"The notification to the {what} was not delivered: {reason}.",
        suggestion="Correct the block's settings, or repair the receiver; the run itself is not affected.",
    )


class WebhookDestination(Block):
    """A URL that gets a signed POST when a run ends."""

    _block_type_name = "Reconflow webhook"
    _block_type_slug = "reconflow-webhook"
    _description = "Gets a signed JSON message when a run ends."

    url: SecretStr = Field(
        title="URL", description="Where to post to; a secret, since many services put a token in it."
    )
    secret: SecretStr = Field(title="Signing secret", description="Shared with the receiver, who checks the signature.")

    def deliver(self, delivery: Delivery, wait: Callable[[float], None] = time.sleep) -> None:
        """Post a message; tried again on 5xx, 429 and when nobody answers.

        Args:
            delivery: The message.
            wait: Pauses between attempts, seconds.

        Raises:
            NotificationFailedError: It did not arrive.
        """
        name = f"webhook {self._block_document_name or 'unnamed'}"
        _retrying(name, lambda: self._post(delivery, name), wait)

    def _post(self, delivery: Delivery, name: str) -> None:
        headers = {"content-type": "application/json", **_signature_headers(delivery, self.secret)}
        try:
            answer = httpx.post(self.url.get_secret_value(), content=delivery.body, headers=headers, timeout=TIMEOUT_S)
        except httpx.InvalidURL:
            raise _failed(name, "its URL is not one") from None
        except httpx.TransportError as error:
            raise _TransientError(f"the receiver cannot be reached ({type(error).__name__})") from None
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or answer.status_code == _TOO_MANY_REQUESTS:
            raise _TransientError(f"the receiver answers {answer.status_code}")
        if not answer.is_success:
            raise _failed(name, f"the receiver answers {answer.status_code}")


class Encryption(StrEnum):
    """How the connection to the mail server is protected."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


class EmailDestination(Block):
    """Addresses that get a mail when a run ends; the JSON document is attached, and signed in the mail's headers."""

    _block_type_name = "Reconflow e-mail"
    _block_type_slug = "reconflow-email"
    _description = "Gets a mail when a run ends."

    host: str = Field(min_length=1, title="Mail server", description="Name or address.")
    port: Port = Field(default=587, title="Port")
    encryption: Encryption = Field(default=Encryption.STARTTLS, title="Encryption")
    username: str | None = Field(default=None, title="User", description="Left out when the server wants none.")
    password: SecretStr | None = Field(default=None, title="Password")
    sender: str = Field(min_length=3, title="From", description="The sender's address.")
    recipients: list[str] = Field(min_length=1, title="To", description="One address per entry.")
    secret: SecretStr = Field(title="Signing secret", description="Of the signature in the mail's headers.")

    def deliver(self, delivery: Delivery, wait: Callable[[float], None] = time.sleep) -> None:
        """Send a mail; tried again when the server does not answer or refuses for the time being.

        Args:
            delivery: The message.
            wait: Pauses between attempts, seconds.

        Raises:
            NotificationFailedError: It was not accepted.
        """
        name = f"e-mail block {self._block_document_name or 'unnamed'}"
        _retrying(name, lambda: self._send(self._message(delivery), name), wait)

    def _message(self, delivery: Delivery) -> EmailMessage:
        message = EmailMessage(policy=SMTP.clone(max_line_length=_LONGEST_HEADER))
        message["Subject"], message["From"], message["To"] = delivery.subject, self.sender, ", ".join(self.recipients)
        for header, value in _signature_headers(delivery, self.secret).items():
            message[header] = value
        message.set_content(delivery.text)
        message.add_attachment(delivery.body, maintype="application", subtype="json", filename="run.json")
        return message

    def _send(self, message: EmailMessage, name: str) -> None:
        try:
            with self._connect() as server:
                if self.encryption is Encryption.STARTTLS:
                    server.starttls(context=ssl.create_default_context())
                if self.username is not None:
                    server.login(self.username, self.password.get_secret_value() if self.password else "")
                refused = server.send_message(message)
        except smtplib.SMTPAuthenticationError:
            raise _failed(name, "the mail server refuses user and password") from None
        except smtplib.SMTPResponseException as error:
            if error.smtp_code in _TRANSIENT_SMTP:
                raise _TransientError(f"the mail server answers {error.smtp_code}") from None
            raise _failed(name, f"the mail server answers {error.smtp_code}") from None
        except smtplib.SMTPRecipientsRefused as error:
            codes = sorted({code for code, _ in error.recipients.values()})
            if all(code in _TRANSIENT_SMTP for code in codes):
                raise _TransientError(f"the mail server answers {codes[0]}") from None
            raise _failed(name, "the mail server refuses all recipients") from None
        except (OSError, smtplib.SMTPException) as error:
            raise _TransientError(f"the mail server cannot be reached ({type(error).__name__})") from None
        if refused:  # the others have it: sending again would double it
            raise _failed(name, f"the mail server refuses {len(refused)} of {len(self.recipients)} recipients")

    def _connect(self) -> smtplib.SMTP:
        if self.encryption is Encryption.TLS:
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(self.host, self.port, timeout=TIMEOUT_S, context=context)
        return smtplib.SMTP(self.host, self.port, timeout=TIMEOUT_S)


DESTINATIONS: Final[tuple[type[WebhookDestination] | type[EmailDestination], ...]] = (
    WebhookDestination,
    EmailDestination,
)


def saved_destinations(client: SyncPrefectClient) -> Iterator[WebhookDestination | EmailDestination]:
    """Yield every destination that is saved on the server, with its secrets."""
    for kind in DESTINATIONS:
        for document in client.read_block_documents_by_type(str(kind._block_type_slug)):
            yield cast("WebhookDestination | EmailDestination", kind.load(str(document.name)))
