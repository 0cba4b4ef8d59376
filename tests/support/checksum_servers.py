"""Proxies that make of moto's server one that knows S3's checksum headers, or one from before there were any.

moto neither gives them back nor asks for them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from tests.support.faulty_proxy import FaultyProxy


class OlderServer(FaultyProxy):
    """Wants the MD5 of a list of objects to delete, and in a list of parts numbers and ETags alone, like Swift 2.30.

    Args:
        target_url: The server behind it.
    """

    def __init__(self, target_url: str) -> None:
        super().__init__(target_url, rate=0.0)

    def refusal(self, path: str, headers: Mapping[str, str], body: bytes) -> str | None:
        """Return the code with which a request is refused, None for one that is passed on."""
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        if path.endswith("?delete") and headers.get("Content-MD5") != md5:
            return "InvalidRequest"
        return "MalformedXML" if b"<CompleteMultipartUpload" in body and b"Checksum" in body else None


class NewerServer(FaultyProxy):
    """Gives the checksum of a part back, and wants it again in the list of parts, like Amazon's.

    Args:
        target_url: The server behind it.
    """

    echoed = ("x-amz-checksum-sha256",)

    def __init__(self, target_url: str) -> None:
        super().__init__(target_url, rate=0.0)

    def refusal(self, path: str, headers: Mapping[str, str], body: bytes) -> str | None:
        """Return the code with which a request is refused, None for one that is passed on."""
        is_list = b"<CompleteMultipartUpload" in body
        return "InvalidRequest" if is_list and body.count(b"<ChecksumSHA256>") != body.count(b"<Part>") else None
