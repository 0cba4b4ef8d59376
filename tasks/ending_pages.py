"""What is told to people when a run has ended: results and how to get them, or why it failed and what to do next.

Pages in Markdown, made of facts that are handed in. Links that end, like signed ones, never stand here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from reconflow.errors import (
    Cancelled,
    ErrorCode,
    InputError,
    ModelError,
    QualityThresholdError,
    ReconflowError,
    ResourceError,
    fault_sentence,
)
from reconflow.outputs.package import FileEntry
from reconflow.stage_results import RunSummary
from reconflow.storage.locations import scheme_of
from tasks.forecast import duration_text

_SAME = "**Retry** on the run's page repeats the run with the same parameters"
_OTHER = "**Copy to new run** in its menu opens the form with the same parameters to change"
_KEPT = "finished stages are not repeated"
_NEXT_STEPS: Final[tuple[tuple[type[ReconflowError], str], ...]] = (
    (QualityThresholdError, f"Judge the pictures of `…-previews` and the numbers of `…-quality`. {_OTHER}."),
    (InputError, f"Correct what is named. {_SAME}; {_OTHER}."),
    (ModelError, f"{_OTHER}; {_KEPT} unless their options change."),
    (ResourceError, f"Put the machine or the place in order, then: {_SAME}; {_KEPT}."),
)
_AS_IT_IS: Final = f"Nothing has to be changed: {_SAME}; {_KEPT}."
_UNFORESEEN: Final = "Read the run's log (tab Logs), and report it with the run id. Then: " + _SAME + "."


def summary_page(summary: RunSummary, store: str, files: Sequence[FileEntry]) -> str:
    """Return the page of a run whose results are stored.

    Args:
        summary: The run.
        store: Where its results are, in the words of whoever asked for the run.
        files: What the manifest lists.
    """
    rows = [(model.model, model.status, *_measures(model)) for model in summary.models]
    cached = f" Done by an earlier attempt: {', '.join(summary.cached_stages)}." if summary.cached_stages else ""
    parts = [
        _table(("model", "quality", "PSNR, dB", "SSIM", "mask IoU", "triangles", "vertices"), rows),
        f"All stages took {duration_text(summary.seconds)}, at most {_memory_text(summary)}." + cached,
        *(f"**Note:** {warning}" for warning in summary.warnings),
        _results_text(summary.run_id, store),
        _table(("file", "size"), ((f"`{file.path}`", bytes_text(file.size)) for file in files)),
    ]
    return "\n\n".join(parts)


def _memory_text(summary: RunSummary) -> str:
    gpu = f" and {summary.peak_gpu_bytes / 1e9:.1f} GB of GPU memory" if summary.peak_gpu_bytes else ""
    return f"{summary.peak_rss_bytes / 1e9:.1f} GB of memory{gpu}"


def _measures(model: Any) -> tuple[str, ...]:
    return (
        f"{model.psnr_db:.2f}",
        f"{model.ssim:.4f}",
        f"{model.mask_iou:.4f}",
        f"{model.faces:,}".replace(",", " "),
        f"{model.vertices:,}".replace(",", " "),
    )


def _results_text(run_id: str, store: str) -> str:
    """Return where the results are and how to get them."""
    local = scheme_of(store) in (None, "file")
    where = f"The results are in `{store.rstrip('/')}/runs/{run_id}`" + (
        ", a folder of the machine that ran this." if local else "."
    )
    ways = [f"* `reconflow fetch {run_id} --out {store}` copies all files and checks them."]
    if not local:
        ways.append(f"* `reconflow link {run_id} --out {store}` prints a link to the archive, which works for an hour.")
    return f"{where} To get them:\n\n" + "\n".join(ways)


def failure_page(error: ReconflowError, run_id: str | None = None) -> str:
    """Return the page of a run that failed: code, what is wrong, what to do, and every fault.

    Args:
        error: Why.
        run_id: Of the run, once it has one.
    """
    parts = [
        f"### {error.code}",
        error.message,
        f"**What to do:** {error.suggestion}",
        f"**Next step:** {next_step(error)}",
    ]
    faults = error.details.get("faults")
    if isinstance(faults, list) and faults:
        parts.append(_table(("file", "what is wrong"), (_fault_row(fault) for fault in faults)))
    if run_id is not None:
        parts.append(f"Run `{run_id}`. The same is in its `error.json`; all codes are in docs/errors.md.")
    return "\n\n".join(parts)


def cancelled_page(error: Cancelled, run_id: str) -> str:
    """Return the page of a run that was cancelled: by whom and why, as far as its state tells.

    Args:
        error: What its state said.
        run_id: Of the run.
    """
    return "\n\n".join(
        [
            f"### {ErrorCode.CANCELLED}",
            error.message,
            f"**Next step:** none, unless it is wanted after all: {_SAME}; {_KEPT}.",
            f"Run `{run_id}`.",
        ]
    )


def next_step(error: ReconflowError) -> str:
    """Return what an operator does on the run's page after a failure, in a sentence or two."""
    if error.retryable:
        return _AS_IT_IS
    return next((text for kind, text in _NEXT_STEPS if isinstance(error, kind)), _UNFORESEEN)


def bytes_text(count: int) -> str:
    """Return a file's size for people."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def _fault_row(fault: Mapping[str, Any]) -> tuple[str, str]:
    file = fault.get("file")
    return (f"`{file}`" if file else "", str(fault["message"]) if file else fault_sentence(fault))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
