"""A real S3-speaking server over HTTP for tests: moto's, in threads of this process, on a port of its own.

RECONFLOW_TEST_S3=http://KEY:SECRET@HOST:PORT names another one to use in its place, percent-encoded where needed.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

KEY, SECRET, REGION = "tester", "tester-secret", "us-east-1"
EXTERNAL = os.environ.get("RECONFLOW_TEST_S3")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """The server's address, and ways to look behind it."""

    endpoint_url: str
    key: str = KEY
    secret: str = SECRET

    def new_bucket(self) -> str:
        """Create an empty bucket and return its name."""
        name = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def client(self) -> Any:
        """Return a client without anything of the code under test."""
        return _client(self)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store an object at once, past HTTP where that is possible."""
        if EXTERNAL:
            self.client().put_object(Bucket=bucket, Key=key, Body=content)
            return
        from moto.backends import get_backend

        get_backend("s3")["123456789012"]["aws"].put_object(bucket, key, content)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys in a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def unfinished_uploads(self, bucket: str) -> int:
        """Return how many multipart uploads are neither completed nor aborted."""
        return len(self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ()))

    @contextmanager
    def checking_who_asks(self) -> Iterator[None]:
        """Let the server refuse wrong credentials while the block runs; others than moto's always do."""
        self._free_requests("0")
        try:
            yield
        finally:
            self._free_requests("inf")

    def _free_requests(self, count: str) -> None:
        if not EXTERNAL:
            headers = {"Content-Type": "text/plain"}
            request = Request(f"{self.endpoint_url}/moto-api/reset-auth", count.encode(), headers)
            urlopen(request).close()

    def environment(self, endpoint_url: str | None = None) -> dict[str, str]:
        """Return the variables by which a process uses this server.

        Args:
            endpoint_url: Of a proxy before it.
        """
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": endpoint_url or self.endpoint_url,
        }


@cache
def _client(server: S3Server) -> Any:
    import boto3

    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name=REGION,
    )


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """Run a server while the block does."""
    if EXTERNAL:
        parts = urlsplit(EXTERNAL)
        key, secret = unquote(parts.username or KEY), unquote(parts.password or SECRET)
        yield S3Server(f"{parts.scheme}://{parts.hostname}:{parts.port}", key, secret)
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3Server(f"http://{host}:{port}")
    finally:
        server.stop()
