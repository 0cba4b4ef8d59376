"""What an exception means for the user: under which code a fault is recorded that nobody raised on purpose."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from reconflow.errors import (
    Cancelled,
    DiskFullError,
    ModelGpuOutOfMemoryError,
    ModelOutOfMemoryError,
    ReconflowError,
    StorageRefusedError,
    StorageUnreachableError,
)
from reconflow.gpu_failures import is_full_gpu

MEMORY_SUGGESTION = "Close other programs, or choose the draft preset, a smaller resolution or texture size."
GPU_MEMORY_SUGGESTION = (
    "Close other programs that use the GPU, start the run on a larger one, or choose the device cpu."
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER: Final = (errno.EEXIST, errno.ENOTDIR)
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


def as_known_error(error: Exception) -> ReconflowError:
    """Return the error under a code: itself, or what it means for the user.

    Args:
        error: Anything that a stage raised.
    """
    if isinstance(error, ReconflowError):
        return error
    if isinstance(error, MemoryError):
        known: ReconflowError = ModelOutOfMemoryError("A stage ran out of memory.", suggestion=MEMORY_SUGGESTION)
    elif isinstance(error, RuntimeError) and is_full_gpu(error):
        known = ModelGpuOutOfMemoryError("The GPU's memory ran out.", suggestion=GPU_MEMORY_SUGGESTION)
    elif isinstance(error, OSError) and error.errno in _FULL:
        known = DiskFullError(
            "The disk became full during the run.", suggestion="Free some space, or choose another --out folder."
        )
    else:
        known = ReconflowError(
            f"An unexpected fault ended the run ({type(error).__name__}).",
            suggestion="Run it again with --traceback and report what that shows; another preset or seed may work.",
            kind=type(error).__name__,
        )
    known.__cause__ = error
    return known


@contextmanager
def folder_errors(folder: str, suggestion: str) -> Iterator[None]:
    """Raise what the system says of a folder as an error with a code, which does not show its path.

    Args:
        folder: What the folder is, as in "The output folder cannot be used".
        suggestion: The way out.

    Raises:
        DiskFullError: There is no room.
        StorageRefusedError: A permission is missing, or nothing can be written there.
        StorageUnreachableError: Anything else.
    """
    try:
        yield
    except OSError as error:
        kind, reason = _folder_fault(error)
        raise kind(f"The {folder} cannot be used: {reason}.", suggestion=suggestion) from error


def _folder_fault(error: OSError) -> tuple[type[ReconflowError], str]:
    if error.errno in _FULL:
        return DiskFullError, "there is no room on its disk"
    if error.errno in _NO_FOLDER and isinstance(error.filename, str):
        path = Path(error.filename)
        file = next((place for place in (path, *path.parents) if place.exists()), path)
        return StorageUnreachableError, f"{file.name} is a file"
    kind = StorageRefusedError if error.errno in _REFUSED else StorageUnreachableError
    return kind, error.strerror or type(error).__name__


def interruption() -> Cancelled:
    """Return what is recorded of a run that was stopped from outside, by a signal."""
    return Cancelled(
        "The run was interrupted.", suggestion="Run the same command again; finished stages are not repeated."
    )
