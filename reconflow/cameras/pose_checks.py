"""Checks on numbers and poses that come from files. No file format is known here, and nothing is repaired silently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ValidationFailedError

ROTATION_TOLERANCE: Final = 2e-3
"""Largest accepted entry of |R Rᵀ - I|: rounding to three digits passes, a scaled or sheared matrix does not."""

MAX_COORDINATE: Final = 1e9
"""Positions and pixel sizes beyond this are taken for damage."""


class Fault(Exception):  # noqa: N818 - a finding on its way into a list, not an error that leaves this package
    """One thing that is wrong in a file; collected, then raised together by `raise_faults`."""

    def __init__(self, where: str, problem: str, suggestion: str = "") -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem, self.suggestion = where, problem, suggestion


def raise_faults(file: str, faults: Sequence[Fault]) -> None:
    """Raise all faults of one file as a single error, or return when there are none.

    Args:
        file: The file's name as the user knows it.
        faults: What was found.

    Raises:
        ValidationFailedError: When `faults` is not empty; `details["faults"]` lists where and what.
    """
    if not faults:
        return
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    suggestion = next((f.suggestion for f in faults if f.suggestion), f"Correct {file} and run again.")
    raise ValidationFailedError(
        f"{file}: {faults[0]}{more}",
        suggestion=suggestion,
        file=file,
        faults=[{"where": f.where, "problem": f.problem} for f in faults],
    )


def claim(key: str, taken: set[str], where: str, problem: str) -> None:
    """Add `key` to `taken`.

    Raises:
        Fault: When it is there already; `problem` says what that means.
    """
    if key in taken:
        raise Fault(where, problem)
    taken.add(key)


def number(value: Any, where: str, name: str, *, above: float = -math.inf, below: float = math.inf) -> float:
    """Return `value` as a finite float strictly between the limits.

    Raises:
        Fault: When it is not a number, not finite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Fault(where, f"{name} is not a number ({_short(value)})")
    try:
        result = float(value)
    except OverflowError:
        raise Fault(where, f"{name} is too large for a number") from None
    if not math.isfinite(result):
        raise Fault(where, f"{name} is not finite ({result})")
    if not above < result < below:
        raise Fault(where, f"{name} = {result:g} is out of range ({above:g} to {below:g})")
    return result


def rigid_transform(value: Any, where: str, name: str) -> NDArray[np.float64]:
    """Return a (4, 4) rigid transform from nested lists of 4 or 3 rows.

    A rotation within `ROTATION_TOLERANCE` of orthonormal is replaced by the nearest rotation, so that its inverse is
    its transpose.

    Raises:
        Fault: When it is no 4 x 4 (or 3 x 4) matrix of finite numbers, or not rigid: scaled, sheared or mirrored.
    """
    rows = value if isinstance(value, list | tuple) else None
    if rows is None or len(rows) not in (3, 4) or any(not isinstance(r, list | tuple) or len(r) != 4 for r in rows):
        raise Fault(where, f"{name} is not a matrix of 4 x 4 numbers")
    entries = [[number(x, where, name, above=-MAX_COORDINATE, below=MAX_COORDINATE) for x in row] for row in rows]
    matrix = np.eye(4)
    matrix[: len(rows)] = entries
    if not np.allclose(matrix[3], (0, 0, 0, 1), rtol=0.0, atol=1e-6):
        raise Fault(where, f"the last row of {name} is not 0 0 0 1")
    matrix[3] = (0, 0, 0, 1)
    matrix[:3, :3] = _rotation(matrix[:3, :3], where, name)
    return matrix


def _rotation(candidate: NDArray[np.float64], where: str, name: str) -> NDArray[np.float64]:
    deviation = float(np.abs(candidate @ candidate.T - np.eye(3)).max())
    determinant = float(np.linalg.det(candidate))
    if deviation > ROTATION_TOLERANCE:
        scale = abs(determinant) ** (1 / 3)
        if scale > 0 and np.abs(candidate @ candidate.T / scale**2 - np.eye(3)).max() <= ROTATION_TOLERANCE:
            raise Fault(where, f"{name} scales by {scale:.4g}", "Put the scale into the positions, not the rotations.")
        raise Fault(where, f"the rotation of {name} is not orthonormal (off by {deviation:.2g})")
    if determinant < 0:
        raise Fault(where, f"{name} is mirrored (determinant -1)", "Write camera axes that are right-handed.")
    if deviation < 1e-10:
        return candidate
    u, _, vt = np.linalg.svd(candidate)
    nearest: NDArray[np.float64] = u @ vt
    return nearest


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
