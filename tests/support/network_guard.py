"""A proxy that leads nowhere: processes that are told to use it show whether they wanted to leave this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOCAL = "127.0.0.1,localhost"


class NetworkGuard(ThreadingHTTPServer):
    """Refuses everything and keeps what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    def environment(self) -> dict[str, str]:
        """Return the variables that send everything here that is not for this machine."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        proxies = {spelled: url for name in names for spelled in (name, name.lower())}
        return {**proxies, "NO_PROXY": LOCAL, "no_proxy": LOCAL}


class _Handler(BaseHTTPRequestHandler):
    server: NetworkGuard

    def refuse(self) -> None:
        self.server.asked.append(self.requestline)
        self.send_error(403)

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):
            return self.refuse
        raise AttributeError(name)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def guarding_network() -> Iterator[NetworkGuard]:
    """Let a guard listen while the block runs."""
    guard = NetworkGuard()
    thread = threading.Thread(target=guard.serve_forever, daemon=True)
    thread.start()
    try:
        yield guard
    finally:
        guard.shutdown()
        guard.server_close()
        thread.join()
