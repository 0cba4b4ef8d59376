"""The Python API in one call: reconstruct a folder without Prefect. Everything it does is in `reconflow.pipeline`."""

from __future__ import annotations

from os import PathLike
from typing import Any

from reconflow.pipeline import run_pipeline
from reconflow.progress import OnProgress, ignore_progress
from reconflow.request import make_request
from reconflow.stage_results import RunSummary


def reconstruct_folder(
    dataset: str | PathLike[str],
    out: str | PathLike[str] = "out",
    *,
    on_progress: OnProgress = ignore_progress,
    **options: Any,
) -> RunSummary:
    """Reconstruct one object and store the result in `<out>/runs/<run id>`.

    Args:
        dataset: Folder with `multi_views/` and `depth_renders/`, or with a `transforms.json`.
        out: Folder for the results; created.
        on_progress: Hears the progress of the whole run; may raise `reconflow.errors.Cancelled` to stop it.
        **options: Any other field of `reconflow.request.RunRequest`: `preset`, `seed`, `fov_deg`, `steps`, ...

    Raises:
        ReconflowError: With a code, a suggestion and details; `error.json` stands beside what was stored.
    """
    return run_pipeline(make_request(dataset=str(dataset), out=str(out), **options), on_progress)
