"""Arrays and JSON-able facts in one .npz file, never pickled. What they mean is for others to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconflow.outputs.files import replacing

_FACTS = "facts_json"


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
    """Write named arrays and a JSON-able object into one .npz file; equal input gives equal bytes."""
    encoded = json.dumps(facts, sort_keys=True).encode("utf-8")
    with replacing(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays, **{_FACTS: np.frombuffer(encoded, np.uint8)})


def load_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts: dict[str, Any] = json.loads(arrays.pop(_FACTS).tobytes())
    return arrays, facts
