"""An HTTP proxy that does harm: it stands before a real server and spoils a share of the requests, in known ways."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>spoiled</Message></Error>'


class Fault(StrEnum):
    """What can happen to a request."""

    INTERNAL_ERROR = "500"
    SLOW_DOWN = "503"
    RESET = "connection reset, the server never hears of it"
    LOST_ANSWER = "done by the server, the answer is lost"
    CUT_BODY = "the answer breaks off half-way"
    STALL = "no answer until the client gives up"


ALL_BUT_STALL = tuple(fault for fault in Fault if fault is not Fault.STALL)


class FaultyProxy:
    """The proxy's address and what it did.

    Args:
        target_url: The server behind it.
        rate: Share of requests that are spoiled.
        faults: In which ways.
        seed: Of the random choice.
        stall_s: How long a stalled request hangs.

    Attributes:
        echoed: Names of a request's headers that come back with its answer.
    """

    echoed: tuple[str, ...] = ()

    def __init__(
        self,
        target_url: str,
        rate: float = 0.3,
        faults: tuple[Fault, ...] = ALL_BUT_STALL,
        seed: int = 0,
        stall_s: float = 3.0,
    ) -> None:
        self.target = urlsplit(target_url)
        self.rate, self.faults, self.stall_s = rate, faults, stall_s
        self.counts: Counter[str] = Counter()
        self.endpoint_url = ""
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def choose(self) -> Fault | None:
        """Return what happens to the next request."""
        with self._lock:
            fault = self._random.choice(self.faults) if self._random.random() < self.rate else None
            self.counts["passed" if fault is None else fault.name] += 1
        return fault

    def refusal(self, path: str, headers: Mapping[str, str], body: bytes) -> str | None:
        """Return the code with which a request is refused, None for one that is passed on."""
        return None

    @property
    def spoiled(self) -> int:
        """How many requests were spoiled."""
        return sum(count for name, count in self.counts.items() if name != "passed")


@contextmanager
def running_faulty_proxy(proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """Let the proxy listen on a port of its own while the block runs."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients that give up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def relay(self) -> None:
        self.close_connection = True
        fault = self.proxy.choose()
        if fault is Fault.RESET:
            return self._reset()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault is Fault.STALL:
            time.sleep(self.proxy.stall_s)
            return self._reset()
        if fault is Fault.INTERNAL_ERROR:
            return self._answer(500, {}, _ERROR.format(code="InternalError").encode())
        if fault is Fault.SLOW_DOWN:
            return self._answer(503, {}, _ERROR.format(code="SlowDown").encode())
        if code := self.proxy.refusal(self.path, self.headers, body):
            return self._answer(400, {}, _ERROR.format(code=code).encode())
        status, headers, content = self._ask(body)
        if fault is Fault.LOST_ANSWER:
            return self._reset()
        cut = len(content) // 2 if fault is Fault.CUT_BODY else None
        return self._answer(status, headers, content, cut)

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):
            return self.relay
        raise AttributeError(name)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.target.hostname, self.proxy.target.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            echoed = {name: self.headers[name] for name in self.proxy.echoed if name in self.headers}
            return answer.status, {**dict(answer.headers.items()), **echoed}, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        size = headers.get("Content-Length", headers.get("content-length", "0"))
        kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}
        self.send_response(status)
        for name, value in kept.items():
            self.send_header(name, value)
        self.send_header("Content-Length", size if self.command == "HEAD" else str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut is None else content[:cut])
        self.wfile.flush()
        if cut is not None:
            self._reset()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
