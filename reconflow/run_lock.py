"""One attempt at a time: the lock that a run's folders are worked on under, and what a killed attempt left in them.

The system releases the lock of a process that is gone, however it went.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from reconflow.errors import JobNotReadyError
from reconflow.failures import folder_errors

if TYPE_CHECKING:
    from reconflow.storage import Workspace

if sys.platform != "win32":
    import fcntl

LOCK_PATIENCE_S: Final = 60.0
"""How long an attempt waits for one that was taken for dead and is still about to stop."""
_RETRY_INTERVAL_S: Final = 0.2
_LOCK_NAME: Final = ".lock"


@contextmanager
def sole_attempt(open_workspace: Callable[[], Workspace], patience_s: float = LOCK_PATIENCE_S) -> Iterator[Workspace]:
    """Hold a run's folders for the length of the block; leftovers of a killed attempt are removed first.

    Args:
        open_workspace: Returns the folders, created when they do not exist.
        patience_s: How long to wait for another process that holds them.

    Raises:
        JobNotReadyError: Another process on this machine is still at work on the run.
        StorageUnreachableError, StorageRefusedError: The folder of the lock cannot be used.
    """
    deadline_s = time.monotonic() + patience_s
    while (descriptor := _try_lock_of(open_workspace())) is None:
        if time.monotonic() >= deadline_s:
            raise JobNotReadyError(
                "Another process is at work on this run.", suggestion="Wait for it to finish, or cancel it."
            )
        time.sleep(_RETRY_INTERVAL_S)
    try:
        workspace = open_workspace()
        remove_parts(workspace.root)
        remove_parts(workspace.work)
        yield workspace
    finally:
        os.close(descriptor)


def _try_lock_of(workspace: Workspace) -> int | None:
    with folder_errors("folder for intermediate files", "Make it writable, or remove what stands in its place."):
        return try_lock(workspace.work / _LOCK_NAME)


def remove_parts(folder: Path, becoming: str = "*") -> None:
    """Remove the temporary files of processes that are gone, in a folder and below.

    Args:
        folder: Where they lie, if it exists.
        becoming: A pattern for their names without `.` before and `.part` after.
    """
    for path in folder.rglob(f".{becoming}.part"):
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path, work: Path) -> bool:
    """Remove a folder of a run, unless a process is at work on the run; return whether it was removed.

    It leaves its place in one step, so that an attempt that begins at this moment makes a new one.

    Args:
        folder: What is removed.
        work: The run's folder for intermediate files, `folder` itself or below it.
    """
    with suppress(OSError):
        work.mkdir(parents=True, exist_ok=True)  # a process may have been killed before it came to that
        descriptor = try_lock(work / _LOCK_NAME)
        if descriptor is None:
            return False
        try:
            shutil.rmtree(folder.rename(folder.with_name(f".{uuid4().hex}.part")), ignore_errors=True)
        finally:
            os.close(descriptor)
        return True
    return False


def try_lock(path: Path) -> int | None:
    """Return an open descriptor that holds the lock of a file, made when it is not there; None when another has it.

    Whoever finishes removes the folder together with the file, so the lock counts only while the file still stands.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
