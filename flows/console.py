"""What the command line shows: progress, results and failures. Knows Rich; starts nothing.

Everything goes to standard error except what a program would read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from reconflow.errors import ReconflowError, fault_sentence
from reconflow.nvdiffrec.options import Preset
from reconflow.progress import OnProgress
from reconflow.stage_results import RunSummary
from reconflow.stage_spans import stage_span

LINE_INTERVAL_S: Final = 10.0
MIN_INFERRED: Final = 0.1
"""Below this fraction of `infer`, too little of it is done to tell how long the rest takes."""
_TOTAL: Final = 1000
_MAX_FAULTS: Final = 20
_STATUS_STYLE: Final = {"normal": "green", "warning": "yellow", "failure": "red"}


class Forecast:
    """Time left, judged by the progress since `infer` began; what comes before it tells nothing of its pace.

    Args:
        preset: How much work the run spends, which decides what part of it is `infer`.
        clock: Seconds, monotonic.
    """

    def __init__(self, preset: Preset, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start, stop = stage_span("infer", preset)
        self._told_from = self._start + MIN_INFERRED * (stop - self._start)
        self._began_at = 0.0
        self._began_s: float | None = None
        self._ends_s: float | None = None
        self._fraction = 0.0

    def note(self, step: int, total: int) -> None:
        """Take note of the progress of the whole run."""
        fraction, now_s = step / max(total, 1), self._clock()
        if self._began_s is None and fraction >= self._start:
            self._began_s, self._began_at = now_s, fraction
        elif self._began_s is not None and fraction >= self._told_from and fraction != self._fraction:
            pace_s = (now_s - self._began_s) / (fraction - self._began_at)
            self._ends_s = now_s + (1.0 - fraction) * pace_s
        self._fraction = fraction

    def remaining_s(self) -> float | None:
        """Return the seconds left when progress goes on as it did; None while there is too little to go by."""
        return None if self._ends_s is None else max(self._ends_s - self._clock(), 0.0)


def clock_text(seconds: float | None) -> str:
    """Return minutes and seconds, or dashes for an unknown time."""
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class _RemainingColumn(ProgressColumn):
    def __init__(self, forecast: Forecast) -> None:
        super().__init__()
        self._forecast = forecast

    def render(self, task: Task) -> Text:  # noqa: ARG002 - Rich's signature
        return Text(f"{clock_text(self._forecast.remaining_s())} left", style="progress.remaining")


class LineReporter:
    """Progress as plain lines, for logs: one when a stage begins, else one every few seconds.

    Args:
        console: Where the lines go.
        preset: How much work the run spends.
        clock: Seconds, monotonic.
    """

    def __init__(self, console: Console, preset: Preset, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started_s = clock()
        self._forecast = Forecast(preset, clock)
        self._printed_s = float("-inf")
        self._begun: set[str] = set()

    def __call__(self, step: int, total: int, message: str) -> None:
        """Print a line when it is due."""
        self._forecast.note(step, total)
        work = message.split(":")[0]
        if work in self._begun and self._clock() - self._printed_s < LINE_INTERVAL_S and step < total:
            return
        elapsed_s = self._clock() - self._started_s
        left = self._forecast.remaining_s()
        tail = "" if left is None or step >= total else f"  ({clock_text(left)} left)"
        self._console.print(f"{100 * step / total:3.0f} %  {clock_text(elapsed_s)}  {message}{tail}", highlight=False)
        self._printed_s = self._clock()
        self._begun.add(work)


@contextmanager
def showing_progress(console: Console, title: str, preset: Preset) -> Iterator[OnProgress]:
    """Show a bar with the time left on a terminal, plain lines elsewhere.

    Args:
        console: Where it is shown.
        title: What is being done.
        preset: How much work the run spends.
    """
    if not console.is_terminal:
        console.print(title, highlight=False)
        yield LineReporter(console, preset)
        return
    forecast = Forecast(preset)
    columns = (
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _RemainingColumn(forecast),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("starting", total=_TOTAL, title=title)

        def report(step: int, total: int, message: str) -> None:
            forecast.note(step, total)
            bar.update(row, completed=_TOTAL * step / max(total, 1), description=message)

        yield report


def show_error(console: Console, error: ReconflowError, out: str | None = None) -> None:
    """Show a failure: what, the faults one by one, the way out, and the report if there is one.

    Args:
        console: Where it is shown.
        error: The failure.
        out: The folder for results as the user wrote it.
    """
    parts: list[Any] = []
    faults = error.details.get("faults")
    if isinstance(faults, list) and len(faults) > 1:
        parts.append(Text(f"The dataset {error.details.get('dataset', '')} has {len(faults)} faults:"))
        parts += [_fault_row(fault) for fault in faults[:_MAX_FAULTS]]
        if len(faults) > _MAX_FAULTS:
            parts.append(Text(f"  … and {len(faults) - _MAX_FAULTS} more"))
    else:
        parts.append(Text(error.message))
    parts += [Text(""), Text.assemble(("What to do: ", "bold"), error.suggestion)]
    if out is not None and "report" in error.details:
        parts += [
            Text.assemble(("Run: ", "bold"), str(error.details["run_id"])),
            Text.assemble(("Report: ", "bold"), str(Path(out) / str(error.details["report"])), overflow="fold"),
        ]
    console.print(Panel(Group(*parts), title=Text(str(error.code), "bold red"), title_align="left", border_style="red"))


def show_summary(console: Console, summary: RunSummary) -> None:
    """Show what came out of a run and where it lies."""
    table = Table.grid(padding=(0, 2))
    table.add_row("status", Text(summary.status, _STATUS_STYLE.get(summary.status, "")))
    table.add_row("quality", f"PSNR {summary.psnr_db:.2f} dB, SSIM {summary.ssim:.4f}")
    table.add_row("mesh", f"{summary.faces} triangles, {summary.vertices} vertices")
    table.add_row("cameras", f"field of view {summary.fov_x_deg:.2f}° ({summary.cameras})")
    gpu = f", {summary.peak_gpu_bytes / (1 << 30):.1f} GiB of the GPU's" if summary.peak_gpu_bytes else ""
    table.add_row("took", f"{clock_text(summary.seconds)}, {summary.peak_rss_bytes / (1 << 30):.1f} GiB at most{gpu}")
    table.add_row("mesh file", summary.mesh)
    table.add_row("report", summary.report)
    console.print(Panel(table, title=f"run {summary.run_id}", title_align="left", border_style="green"))
    for warning in summary.warnings:
        console.print(f"[yellow]note:[/yellow] {warning}", highlight=False)


def show_validation(console: Console, report: dict[str, Any]) -> None:
    """Show what validation found out about a dataset: a row per view that was read, and what is unusual."""
    table = Table(title=f"{report['name']}: {report['layout'] or 'unknown layout'}", title_justify="left")
    for column in ("view", "photo", "object", "mask from", "depth"):
        table.add_column(column)
    for view in report["views"]:
        photo, depth = view["photo_hw"], view["depth_hw"]
        table.add_row(
            view["name"],
            f"{photo[1]} × {photo[0]}" if photo else "unreadable",
            f"{100 * view['coverage']:.0f} %" if view["coverage"] is not None else "",
            view["mask_source"] or "",
            f"{depth[1]} × {depth[0]}, {view['depth_bits']} bit" if depth else "none",
        )
    if report["views"]:
        console.print(table)
    for warning in report["warnings"]:
        console.print(f"[yellow]note:[/yellow] {warning}", highlight=False)


def _fault_row(fault: dict[str, Any]) -> Padding:
    return Padding(Text.assemble((f"{fault['code']} ", "red"), fault_sentence(fault)), (0, 0, 0, 2))
