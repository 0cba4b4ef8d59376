"""How a location is written, and whether a worker may use it. Opens nothing.

A location is a local folder or `s3://bucket/prefix`. `RECONFLOW_ALLOWED_ROOTS` lists the folders and prefixes that
datasets and results are restricted to, separated by commas (or by `:`); without it every location is allowed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconflow.errors import ValidationFailedError

ROOTS_VARIABLE: Final = "RECONFLOW_ALLOWED_ROOTS"
S3_SCHEME: Final = "s3://"
_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENCODED: Final = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)
_SEPARATORS: Final = re.compile(r",|;|\n" if os.pathsep == ";" else r",|\n|:(?!//)")


@dataclass(frozen=True)
class S3Location:
    """A place in an object store.

    Attributes:
        bucket: Its bucket.
        prefix: Key prefix without slashes at its ends; empty for the whole bucket.
    """

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        """The one way to write it."""
        return f"{S3_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, *parts: str) -> str:
        """Return the key of something below it."""
        return "/".join(part for part in (self.prefix, *parts) if part)


def scheme_of(location: str) -> str | None:
    """Return the scheme of a location, lower case; None for a local folder."""
    match = _SCHEME.match(location)
    return match[1].lower() if match else None


def parse_s3(uri: str) -> S3Location:
    """Read `s3://bucket/prefix`.

    Raises:
        ValidationFailedError: It is none, or could be read in two ways (`..`, `//`, encoded dots or slashes).
    """
    if scheme_of(uri) != "s3":
        raise _refused("This is not an s3:// location.", uri)
    bucket, _, prefix = uri[len(S3_SCHEME) :].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise _refused("The location's bucket is not a bucket's name.", uri)
    prefix = prefix.removesuffix("/")
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts):
        raise _refused("The location has an empty part, '.' or '..' in its prefix.", uri)
    if _ENCODED.search(prefix) or "\\" in prefix or not prefix.isprintable() or len(prefix) > 700:
        raise _refused("The location's prefix has characters that are not taken there.", uri)
    return S3Location(bucket, prefix)


def is_inside(location: S3Location, root: S3Location) -> bool:
    """Whether a location is `root` or below it; `data-evil` is not below `data`."""
    return location.bucket == root.bucket and (
        not root.prefix or location.prefix == root.prefix or location.prefix.startswith(f"{root.prefix}/")
    )


def check_allowed(location: str | Path) -> None:
    """Check that a location may be used here.

    Links are followed and `..` is resolved before comparing.

    Args:
        location: A local folder or `s3://bucket/prefix`.

    Raises:
        ValidationFailedError: It lies outside of the allowed roots, or cannot be understood.
    """
    roots = allowed_roots()
    if roots is None:
        return
    text = str(location)
    if scheme_of(text) == "s3":
        parsed = parse_s3(text)
        allowed = any(is_inside(parsed, parse_s3(root)) for root in roots if scheme_of(root) == "s3")
    elif scheme_of(text) is None and "\0" not in text:
        path = Path(text).expanduser().resolve()
        folders = [Path(root).expanduser().resolve() for root in roots if scheme_of(root) is None]
        allowed = any(path.is_relative_to(folder) for folder in folders)
    else:
        allowed = False
    if not allowed:
        raise ValidationFailedError(
            "The location lies outside of the places that this worker may use.",
            suggestion=f"Use one of the allowed places, or ask the operator, who sets {ROOTS_VARIABLE}.",
        )


def allowed_roots() -> tuple[str, ...] | None:
    """Return the folders and prefixes that locations are restricted to; None when they are not."""
    value = os.environ.get(ROOTS_VARIABLE)
    if value is None:
        return None
    return tuple(root.strip() for root in _SEPARATORS.split(value) if root.strip())


def _refused(message: str, uri: str) -> ValidationFailedError:
    shown = "".join(c if c.isprintable() else "?" for c in uri[:120])
    return ValidationFailedError(message, suggestion="Write it as s3://bucket/prefix.", location=shown)
