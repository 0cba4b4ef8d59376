"""Access to a dataset's folder that never leaves it: resolving, measuring, reading and hashing. No file format here.

Names come from users and from `transforms.json`, so nothing is opened before it is known to be a regular file inside
the folder, links included, and no larger than the limit.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconflow.datasets.limits import MAX_FILE_BYTES, MEBIBYTE
from reconflow.errors import FileTooLargeError, InvalidFileCountError, InvalidFileFormatError, ValidationFailedError

_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_DRIVE = re.compile(r"^[A-Za-z]:")


def shown(name: str) -> str:
    """Return a file name as it may stand in a message: printable, at most 120 characters."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= 120 else printable[:117] + "..."


def relative_name(written: str) -> str:
    """Normalise a path written in a file: forward slashes, no `./`.

    Raises:
        ValidationFailedError: When it is empty, absolute, climbs with `..` or cannot be a file name.
    """
    path = written.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    problem = None
    if path.startswith(("/", "~")) or _DRIVE.match(path) or "://" in path:
        problem = "is not a path inside the dataset"
    elif ".." in parts:
        problem = "leads out of the dataset with '..'"
    elif not parts or len(path) > 1024 or any(not c.isprintable() for c in path):
        problem = "cannot be a file name"
    if problem:
        raise ValidationFailedError(
            f"The path {shown(written)!r} {problem}.",
            suggestion="Put the file into the dataset's folder and write its path relative to that folder.",
            path=shown(written),
        )
    return "/".join(parts)


@dataclass(frozen=True)
class DatasetFolder:
    """The folder that holds a dataset.

    Attributes:
        root: The folder, links resolved.
        name: Its name as the user wrote it.
    """

    root: Path
    name: str

    @classmethod
    def open(cls, root: Path) -> DatasetFolder:
        """Find the folder.

        Raises:
            ValidationFailedError: When there is no such folder or it cannot be read.
        """
        name = shown(root.name or root.absolute().name or "dataset")
        try:
            resolved = root.resolve(strict=True)
            is_folder = resolved.is_dir() and os.access(resolved, os.R_OK | os.X_OK)
        except (OSError, RuntimeError, ValueError):
            raise ValidationFailedError(
                f"There is no folder {name}.", suggestion="Check the path of the dataset.", dataset=name
            ) from None
        if not is_folder:
            raise ValidationFailedError(
                f"{name} is not a folder that can be read.",
                suggestion="Give the folder that holds multi_views or transforms.json; unpack archives first.",
                dataset=name,
            )
        return cls(resolved, name)

    def entries(self, folder: str = "") -> list[str]:
        """Return the sorted names in a sub-folder, without hidden files; empty when it is absent or no folder.

        Raises:
            ValidationFailedError: When the sub-folder lies outside the dataset.
        """
        path = self.root / folder
        try:
            self._expect_inside(path.resolve(strict=True), folder)
            names = [entry.name for entry in path.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, RuntimeError):
            raise _unreadable(folder) from None
        return sorted(n for n in names if not n.startswith(".") and n.lower() not in _IGNORED_NAMES)

    def has_file(self, file: str) -> bool:
        """Whether something that is not a folder goes by that name; says nothing about where a link leads."""
        try:
            mode = (self.root / file).lstat().st_mode
        except (OSError, ValueError):
            return False
        return not stat.S_ISDIR(mode)

    def size(self, file: str, limit: int = MAX_FILE_BYTES) -> int:
        """Return a file's size in bytes after checking that it may be opened.

        Args:
            file: Path relative to the dataset.
            limit: Most bytes accepted.

        Raises:
            InvalidFileCountError: When it is absent.
            InvalidFileFormatError: When it is no regular file, or empty.
            FileTooLargeError: When it exceeds `limit`.
            ValidationFailedError: When a link leads out of the dataset or the file cannot be read.
        """
        try:
            resolved = (self.root / file).resolve(strict=True)
            self._expect_inside(resolved, file)
            status = resolved.stat()
        except FileNotFoundError:
            raise InvalidFileCountError(
                f"{shown(file)} is missing.", suggestion="Add the file to the dataset.", file=shown(file)
            ) from None
        except (OSError, RuntimeError):
            raise _unreadable(file) from None
        if not stat.S_ISREG(status.st_mode):
            raise InvalidFileFormatError(
                f"{shown(file)} is not a regular file.", suggestion="Replace it by the file itself.", file=shown(file)
            )
        _expect_size(file, status.st_size, limit)
        return status.st_size

    def read(self, file: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Return a file's content; checks as `size`, and again while reading."""
        self.size(file, limit)
        try:
            with (self.root / file).open("rb") as stream:
                content = stream.read(limit + 1)
        except OSError:
            raise _unreadable(file) from None
        _expect_size(file, len(content), limit)
        return content

    def _expect_inside(self, resolved: Path, file: str) -> None:
        if not resolved.is_relative_to(self.root):
            raise ValidationFailedError(
                f"{shown(file)} is a link that leads out of the dataset.",
                suggestion="Copy the file itself into the dataset's folder.",
                file=shown(file),
            )


def dataset_digest(file_hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over names and contents, whatever the order in which the files were found.

    Args:
        file_hashes: SHA-256 by path relative to the dataset.
    """
    lines = sorted(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape") for name, digest in file_hashes.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _expect_size(file: str, size: int, limit: int) -> None:
    if size == 0:
        raise InvalidFileFormatError(
            f"{shown(file)} is empty (0 bytes).", suggestion="Export or copy the file again.", file=shown(file)
        )
    if size > limit:
        raise FileTooLargeError(
            f"{shown(file)} has {size / MEBIBYTE:.1f} MB; the limit is {limit / MEBIBYTE:.0f} MB.",
            suggestion="Save it with fewer pixels or stronger (lossless) compression.",
            file=shown(file),
            size_bytes=size,
            limit_bytes=limit,
        )


def _unreadable(file: str) -> ValidationFailedError:
    return ValidationFailedError(
        f"{shown(file) or 'The folder'} cannot be read.",
        suggestion="Check that the file is complete and that you may read it.",
        file=shown(file),
    )
