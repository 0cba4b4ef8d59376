"""A web server that is told how runs end, and checks who told it, from the documentation of the signature alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "not-to-be-told"


class WebhookReceiver(ThreadingHTTPServer):
    """Keeps the messages whose signature is right, and counts the others."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[dict[str, Any]] = []
        self.refused = 0

    def environment(self) -> dict[str, str]:
        """Return the variables by which a deployment saves this receiver as a block."""
        url = f"http://127.0.0.1:{self.server_address[1]}/hook"
        return {"RECONFLOW_WEBHOOK_URL": url, "RECONFLOW_WEBHOOK_SECRET": SECRET}

    def told_of(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Return the messages about one run."""
        return [message for message in self.messages if message["flow_run_id"] == flow_run_id]


class _Handler(BaseHTTPRequestHandler):
    server: WebhookReceiver

    def do_POST(self) -> None:
        body, stamp = self.rfile.read(int(self.headers["content-length"])), self.headers["X-Reconflow-Timestamp"]
        expected = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        good = self.headers["X-Reconflow-Signature"] == f"sha256={expected}" and abs(time.time() - int(stamp)) < 60
        if good:
            self.server.messages.append(json.loads(body))
        else:
            self.server.refused += 1
        self.send_response(204 if good else 401)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def receiving_webhooks() -> Iterator[WebhookReceiver]:
    """Let a receiver listen while the block runs."""
    receiver = WebhookReceiver()
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join()
