"""How a long computation keeps its state so that a later attempt goes on from there. What the state is, it decides.

A computation takes `checkpoint: Checkpoint | None`, asks it once for what an earlier attempt of the same computation
left, and gives it its whole state now and then. Whether the state belongs to the computation is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from reconflow.array_files import load_arrays, save_arrays


class Checkpoint(Protocol):
    """Where the state of one computation is kept."""

    def load(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Return the arrays and JSON-able facts that were saved last; None when there are none."""

    def save(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Keep arrays and JSON-able facts in place of what was kept before."""


class FileCheckpoint:
    """A checkpoint in one file, which is replaced as a whole.

    Args:
        path: The file.
        on_saved: Called with it after every save.

    Attributes:
        resumed: Whether a state was loaded.
    """

    def __init__(self, path: Path, on_saved: Callable[[Path], None] | None = None) -> None:
        self.resumed = False
        self._path = path
        self._on_saved = on_saved

    def load(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Return what is in the file; None when there is no file."""
        if not self._path.is_file():
            return None
        self.resumed = True
        return load_arrays(self._path)

    def save(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Replace the file."""
        save_arrays(self._path, arrays, facts)
        if self._on_saved is not None:
            self._on_saved(self._path)
