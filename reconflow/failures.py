"""What an exception means for the user: under which code a fault is recorded that nobody raised on purpose."""

from __future__ import annotations

import errno

from reconflow.errors import Cancelled, DiskFullError, ModelOutOfMemoryError, ReconflowError

MEMORY_SUGGESTION = "Close other programs, or choose the draft preset, a smaller resolution or texture size."


def as_known_error(error: Exception) -> ReconflowError:
    """Return the error under a code: itself, or what it means for the user.

    Args:
        error: Anything that a stage raised.
    """
    if isinstance(error, ReconflowError):
        return error
    if isinstance(error, MemoryError):
        known: ReconflowError = ModelOutOfMemoryError("A stage ran out of memory.", suggestion=MEMORY_SUGGESTION)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
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


def interruption() -> Cancelled:
    """Return what is recorded of a run that was stopped from outside, by a signal."""
    return Cancelled(
        "The run was interrupted.", suggestion="Run the same command again; finished stages are not repeated."
    )
