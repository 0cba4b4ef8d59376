"""Whether the configured Prefect server can be used: that it answers, lets us in, and has the pool. Changes nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from reconflow.errors import ServerRefusedError, ServerUnreachableError, ValidationFailedError

if TYPE_CHECKING:
    import httpx

_REFUSALS: Final = (401, 403)


def expect_configured_server() -> None:
    """Return when a Prefect server is configured, answers, and accepts the password.

    Raises:
        ValidationFailedError: None is configured.
        ServerUnreachableError: It does not answer.
        ServerRefusedError: It refuses the password.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise ValidationFailedError(
            "No Prefect server is configured.", suggestion="Set PREFECT_API_URL, for example http://127.0.0.1:4200/api."
        )
    answer = _ask_version()
    if answer.status_code in _REFUSALS:
        raise ServerRefusedError(
            f"The Prefect server refuses us ({answer.status_code}).",
            suggestion="Set PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING.",
            status=answer.status_code,
        )
    if not answer.is_success:
        raise ServerUnreachableError(
            f"The Prefect server answers {answer.status_code}.",
            suggestion="See that PREFECT_API_URL ends in /api and the server is well.",
            status=answer.status_code,
        )


def _ask_version() -> httpx.Response:
    """Return the answer to a request that needs the password; `/api/health` answers anybody."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            return client.request("GET", "/admin/version")
    except httpx.HTTPStatusError as error:
        return error.response
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServerUnreachableError(
            f"The Prefect server does not answer ({type(error).__name__}).",
            suggestion="Start it, or correct PREFECT_API_URL.",
        ) from None


def expect_pool(name: str, device: str) -> None:
    """Return when a pool exists and its runs compute on a device.

    Args:
        name: Of the pool.
        device: `cuda` or `cpu`.

    Raises:
        ServerRefusedError: There is no such pool, or it is for another device.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from deployments.pools import device_of

    try:
        with get_client(sync_client=True) as client:
            pool = client.read_work_pool(name)
    except ObjectNotFound:
        raise ServerRefusedError(
            f"The Prefect server has no work pool {name!r}.", suggestion="Run reconflow deploy first.", pool=name
        ) from None
    if device_of(pool) != device:
        raise ServerRefusedError(
            f"Runs on the pool {name!r} compute on {device_of(pool) or 'an unknown device'}, not on {device}.",
            suggestion="Choose the pool with --pool, or the device with --device, so that they agree.",
            pool=name,
            device=device,
        )
