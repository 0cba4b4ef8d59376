"""Notifications against a real web server and a real mail server on this machine: signatures, retries, failures."""

from __future__ import annotations

import email.policy
import hashlib
import hmac
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest

SECRET = "a shared secret"
BODY = json.dumps({"run_id": "3k9x0abz", "dataset": "Ägypten"}, ensure_ascii=False).encode()


class Receiver(ThreadingHTTPServer):
    """A web server that answers with the given codes in turn, and keeps what it got."""

    def __init__(self, codes: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes = codes
        self.got: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/token-4711"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((dict(self.headers.items()), body))
        self.send_response(self.server.codes[min(len(self.server.got), len(self.server.codes)) - 1])
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class MailServer(socketserver.ThreadingTCPServer):
    """Just enough of RFC 5321 to take a mail; answers to RCPT with the given codes in turn."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, codes: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _MailHandler)
        self.codes = codes
        self.asked = 0
        self.mails: list[bytes] = []


class _MailHandler(socketserver.StreamRequestHandler):
    server: MailServer

    def say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self) -> None:
        self.say("220 here")
        for line in self.rfile:
            verb = line.split()[0].upper()
            if verb == b"RCPT":
                self.server.asked += 1
                self.say(f"{self.server.codes[min(self.server.asked, len(self.server.codes)) - 1]} recipient")
            elif verb == b"DATA":
                self.say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append(b"".join(text.removeprefix(b".") for text in lines))
                self.say("250 taken")
            else:
                self.say("221 bye" if verb == b"QUIT" else "250 well")


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """Serve in a thread."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def delivery() -> Any:
    """Return a message."""
    from blocks.notifications import Delivery

    return Delivery(identifier="0b1e", subject="[reconflow] mug: Failed", text="mug: Failed\n", body=BODY)


def webhook(url: str) -> Any:
    """Return a webhook to a receiver."""
    from blocks.notifications import WebhookDestination

    return WebhookDestination(url=url, secret=SECRET)


def mailer(server: MailServer) -> Any:
    """Return an e-mail block to a mail server."""
    from blocks.notifications import EmailDestination, Encryption

    host, port = server.server_address[:2]
    return EmailDestination(
        host=str(host), port=port, encryption=Encryption.NONE, sender="runs@example.org",
        recipients=["a@example.org", "b@example.org"], secret=SECRET,
    )  # fmt: skip


def check_signature(headers: Any, body: bytes) -> None:
    """Check a signature as a receiver would, from the documentation alone."""
    stamp = headers["X-Reconflow-Timestamp"]
    expected = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-Reconflow-Signature"] == f"sha256={expected}"
    assert abs(time.time() - int(stamp)) < 60


def test_a_webhook_gets_the_body_with_a_signature_over_time_and_body() -> None:
    with serving(Receiver([200])) as receiver:
        webhook(receiver.url).deliver(delivery())
    ((headers, body),) = receiver.got
    assert body == BODY
    assert headers["content-type"] == "application/json"
    assert headers["X-Reconflow-Delivery"] == "0b1e"
    check_signature(headers, body)


def test_a_receiver_that_fails_for_a_while_is_tried_again_with_growing_pauses() -> None:
    pauses: list[float] = []
    with serving(Receiver([500, 503, 429, 204])) as receiver:
        webhook(receiver.url).deliver(delivery(), pauses.append)
    assert pauses == [1.0, 2.0, 4.0]
    assert len({headers["X-Reconflow-Delivery"] for headers, _ in receiver.got}) == 1
    for headers, body in receiver.got:
        check_signature(headers, body)


@pytest.mark.parametrize(("codes", "attempts"), [([500], 5), ([404], 1), ([302], 1)])
def test_a_receiver_that_never_takes_it_is_an_error_that_tells_no_secrets(codes: list[int], attempts: int) -> None:
    from reconflow.errors import NotificationFailedError

    with serving(Receiver(codes)) as receiver, pytest.raises(NotificationFailedError) as caught:
        webhook(receiver.url).deliver(delivery(), lambda _: None)
    assert len(receiver.got) == attempts
    assert str(codes[0]) in caught.value.message
    for secret in (SECRET, "token-4711"):
        assert secret not in json.dumps(caught.value.to_dict())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/token-4711", "not a url", "ftp://127.0.0.1/token-4711"])
def test_a_receiver_that_cannot_be_reached_is_that_error_too(url: str) -> None:
    from reconflow.errors import NotificationFailedError

    with pytest.raises(NotificationFailedError) as caught:
        webhook(url).deliver(delivery(), lambda _: None)
    assert "token-4711" not in str(caught.value)


def parts_of(mail: bytes) -> tuple[Message, str, bytes]:
    """Return a mail, its text and its attachment."""
    message = email.message_from_bytes(mail, policy=email.policy.default)
    text, attachment = message.get_payload()  # type: ignore[misc]
    return message, text.get_payload(), attachment.get_payload(decode=True)  # type: ignore[union-attr, return-value]


def test_a_mail_reaches_everybody_with_the_signed_document_attached() -> None:
    with serving(MailServer([250])) as server:
        mailer(server).deliver(delivery())
    message, text, attachment = parts_of(server.mails[0])
    assert (message["Subject"], message["To"]) == ("[reconflow] mug: Failed", "a@example.org, b@example.org")
    assert server.asked == 2
    assert text.strip() == "mug: Failed"
    check_signature(message, attachment)


def test_a_mail_server_that_refuses_for_the_time_being_is_tried_again() -> None:
    pauses: list[float] = []
    with serving(MailServer([451, 451, 250])) as server:
        mailer(server).deliver(delivery(), pauses.append)
    assert pauses == [1.0]
    assert len(server.mails) == 1


def test_a_mail_server_that_refuses_for_good_is_an_error() -> None:
    from reconflow.errors import NotificationFailedError

    with serving(MailServer([550])) as server, pytest.raises(NotificationFailedError, match="refuses"):
        mailer(server).deliver(delivery(), lambda _: None)
    assert server.asked == 2


def test_a_recipient_who_is_refused_is_reported_and_nobody_gets_it_twice() -> None:
    from reconflow.errors import NotificationFailedError

    with serving(MailServer([250, 550])) as server, pytest.raises(NotificationFailedError, match="1 of 2 recipients"):
        mailer(server).deliver(delivery(), lambda _: None)
    assert len(server.mails) == 1


def run_record(state: Any, **changes: Any) -> Any:
    """Return Prefect's record of a run."""
    from prefect.client.schemas.objects import FlowRun

    params = {"dataset": "s3://bucket/sets/mug/", "out": "s3://bucket", "preset": "draft"}
    values = {"parameters": {"params": params}, "tags": ["reconflow", "run-3k9x0abz", "nvdiffrec"], **changes}
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="mug · nvdiffrec", state=state, **values)


def test_a_failure_is_told_with_its_code_and_its_way_out() -> None:
    from prefect.states import Failed

    from tasks.notifications import make_delivery, make_payload

    run = run_record(Failed(message="GPU_UNAVAILABLE: There is no GPU. Choose the CPU."))
    payload = make_payload(run, "reconstruct", "Failed", None)
    assert payload["error"]["code"] == "GPU_UNAVAILABLE"
    assert payload["error"]["message"] == "There is no GPU. Choose the CPU."
    assert payload["error"]["suggestion"]
    assert (payload["run_id"], payload["dataset"], payload["models"]) == ("3k9x0abz", "mug", ["nvdiffrec"])
    message = make_delivery(payload)
    assert message.subject == "[reconflow] mug · nvdiffrec: Failed"
    assert "GPU_UNAVAILABLE" in message.text
    assert json.loads(message.body) == payload


def test_one_end_of_a_run_has_one_identifier_and_another_end_another() -> None:
    from prefect.states import Crashed

    from tasks.notifications import make_delivery, make_payload

    run = run_record(Crashed())
    crashed, again = (make_delivery(make_payload(run, "reconstruct", "Crashed", None)) for _ in range(2))
    completed = make_delivery(make_payload(run, "reconstruct", "Completed", None))
    assert crashed.identifier == again.identifier != completed.identifier


def test_automations_watch_no_flow_that_they_start() -> None:
    from deployments.automations import (
        NOTIFY_DEPLOYMENT,
        RECOVER_DEPLOYMENT,
        SILENCE_DEPLOYMENT,
        define_automations,
    )

    started = (NOTIFY_DEPLOYMENT, RECOVER_DEPLOYMENT, SILENCE_DEPLOYMENT)
    automations = define_automations({name: uuid4() for name in started}, notify=True)
    assert len(automations) == 3
    for automation in automations:
        related = automation.trigger.model_dump()["match_related"]
        watched = [match for match in ([related] if isinstance(related, dict) else related) if "flow" in match.values()]
        (flows,) = (match["prefect.resource.name"] for match in watched)
        assert not {"notify", "recover", "silence", "cancel", "doctor"} & set(flows)
