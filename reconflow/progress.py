"""How long computations report progress and are asked to stop. Nothing here knows who listens.

A long function takes `on_progress: OnProgress | None`. It calls it with the steps done, the steps in total and a short
message; the callee may raise `reconflow.errors.Cancelled`, which the function lets pass.
"""

from __future__ import annotations

from typing import Protocol


class OnProgress(Protocol):
    """Receiver of progress; may raise `Cancelled` to stop the computation."""

    def __call__(self, step: int, total: int, message: str) -> None:
        """Take note that `step` of `total` steps are done; `message` names the work under way."""


def ignore_progress(step: int, total: int, message: str) -> None:
    """Listen to nobody: the default receiver."""


def part_of(on_progress: OnProgress, start: float, stop: float, resolution: int = 1000) -> OnProgress:
    """Map the progress of one part of a computation into the fraction [start, stop] of the whole.

    Args:
        on_progress: Receiver of the whole computation's progress.
        start: Fraction of the whole that is done when the part begins, 0 to 1.
        stop: Fraction of the whole that is done when the part ends, 0 to 1.
        resolution: Total reported to the outer receiver.
    """

    def report(step: int, total: int, message: str) -> None:
        fraction = start + (stop - start) * step / max(total, 1)
        on_progress(round(fraction * resolution), resolution, message)

    return report
