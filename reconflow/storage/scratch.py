"""Scratch folders: where runs whose results go to an object store are written on this machine, one for each run.

An attempt takes up nothing that it finds there: what it goes on from is in the store. So a folder is of use to the
process that works in it, and to nobody afterwards.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from reconflow.outputs.runs import check_run_id
from reconflow.run_lock import remove_abandoned
from reconflow.storage.cache import cache_root

ABANDONED_AFTER_S: Final = 3600.0
"""How long nobody has touched the folder of a killed run when the next run on this machine removes it.

A process that lives holds a lock. The hour is for caches on file systems that do not show the locks of another machine.
"""
_WORK: Final = "work"


def scratch_folders(store_uri: str, run_id: str) -> tuple[Path, Path]:
    """Return where a run's results and its intermediate files are written, for a store; they need not exist."""
    folder = scratch_folder(store_uri, run_id)
    return folder / "run", folder / _WORK


def scratch_folder(store_uri: str, run_id: str) -> Path:
    """Return the folder that holds everything of one run on this machine."""
    return _root() / hashlib.sha256(store_uri.encode()).hexdigest()[:16] / check_run_id(run_id)


def sweep_scratch(older_than_s: float = ABANDONED_AFTER_S) -> int:
    """Remove what runs have left on this machine, of whatever store; return how many folders.

    Args:
        older_than_s: Nobody has touched them for so long; none is removed in which a process is at work.
    """
    before_s = time.time() - older_than_s
    old = [folder for folder in _root().glob("*/*") if touched_s(folder) < before_s]
    return sum(remove_abandoned(folder, folder / _WORK) for folder in old)


def touched_s(path: Path) -> float:
    """Return when anything in a folder was changed last, or a file, seconds since 1970; 0 for what is gone."""
    return max(_modified_times(path), default=0.0)


def _modified_times(path: Path) -> Iterator[float]:
    for item in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(OSError):
            yield item.stat().st_mtime


def _root() -> Path:
    return cache_root() / "scratch"
