"""A transport for tests that talk to a Prefect server themselves; as Prefect does, it asks a busy one again."""

from __future__ import annotations

import time
from http import HTTPStatus

import httpx

PATIENCE_S = 60.0
_PAUSE_S = 0.5


class PatientTransport(httpx.BaseTransport):
    """Repeats what a server on SQLite answers with 503, which it does while another writer has the database."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer, of a busy server the last one in time."""
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            response = self._inner.handle_request(request)
            if response.status_code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() >= ends_s:
                return response
            response.close()
            time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()
