"""What a machine has for runs, as a table of findings. Looks only; the one thing it writes is the stores' own probe.

A finding that is not well carries the code and the way out of the error that a run would meet.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

import reconflow
from reconflow.errors import (
    DiskFullError,
    GpuUnavailableError,
    MemoryExhaustedError,
    ReconflowError,
    ResourceError,
)
from reconflow.resources import GIB, available_memory_bytes

MIN_MEMORY_GB: Final = 2.0
MIN_DISK_GB: Final = 1.0
MIN_GPU_MEMORY_GB: Final = 12.0
ALLOWED_ROOTS: Final = "RECONFLOW_ALLOWED_ROOTS"
_PACKAGES = ("torch", "numba", "numpy", "prefect")
_FREE_SOME: Final = "Free some, or use another machine."


@dataclass(frozen=True)
class Finding:
    """One fact about the machine, and whether a run can live with it.

    Attributes:
        what: The thing looked at.
        value: What was found.
        ok: Whether it will do.
        code: Of the error that it would cause; None when it will do.
        suggestion: The way out; None when it will do.
    """

    what: str
    value: str
    ok: bool = True
    code: str | None = None
    suggestion: str | None = None


@dataclass(frozen=True)
class Needs:
    """What a machine must have.

    Attributes:
        device: `cuda` or `cpu`.
        out: Where results go.
        gpus: Which GPUs are meant, by index; None for all of them.
        gpu_memory_gb: Free memory on each of them, GiB.
        memory_gb: Free main memory, GiB.
        disk_gb: Free disk space where runs do their work, GiB.
    """

    device: str = "cpu"
    out: str = "out"
    gpus: tuple[int, ...] | None = None
    gpu_memory_gb: float = MIN_GPU_MEMORY_GB
    memory_gb: float = MIN_MEMORY_GB
    disk_gb: float = MIN_DISK_GB


def examine_machine(needs: Needs) -> list[Finding]:
    """Look at versions, processors, memory, GPUs when one is needed, the disk, and the place for results."""
    return [
        Finding("reconflow", f"{reconflow.__version__} on Python {platform.python_version()}, {platform.platform()}"),
        Finding("packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)),
        Finding("processors", str(os.cpu_count())),
        _memory(needs),
        *(examine_gpus(needs) if needs.device == "cuda" else [Finding("device", "the CPU, as chosen")]),
        _disk(needs),
        attempt("place for results", lambda: _storage(needs.out)),
        Finding("weights", _weights()),
        Finding("allowed places", os.environ.get(ALLOWED_ROOTS) or f"any: {ALLOWED_ROOTS} is not set"),
    ]


def _weights() -> str:
    from reconflow.reconviagen.weight_sources import default_folder
    from reconflow.reconviagen.weights import WeightsFolder

    missing = WeightsFolder(default_folder()).missing()
    state = (
        f"{len(missing)} files of reconviagen are not in its own folder" if missing else "those of reconviagen are here"
    )
    return f"nvdiffrec needs none; {state}"


def attempt(what: str, look: Callable[[], str]) -> Finding:
    """Return what `look` finds, or the error that it raises, as a finding."""
    try:
        return Finding(what, look())
    except ReconflowError as error:
        return failing(what, error)


def failing(what: str, error: ReconflowError) -> Finding:
    """Return an error as a finding."""
    return Finding(what, error.message, ok=False, code=error.code.value, suggestion=error.suggestion)


def examine_gpus(needs: Needs) -> list[Finding]:
    """Look at the driver, and at each GPU that is meant."""
    try:
        from reconflow.gpus import list_gpus

        gpus = {gpu.index: gpu for gpu in list_gpus()}
    except GpuUnavailableError as error:
        return [failing("GPU", error)]
    chosen = needs.gpus if needs.gpus is not None else tuple(gpus)
    if not chosen:
        return [failing("GPU", _no_gpu("There is no NVIDIA driver, or no GPU", "Install the driver"))]
    findings = []
    for index in chosen:
        if index not in gpus:
            missing = _no_gpu(f"There is no GPU {index}; there are {len(gpus)}", "Correct --gpus")
            findings.append(failing(f"GPU {index}", missing))
            continue
        gpu = gpus[index]
        text = f"{gpu.name}, driver {gpu.driver}, "
        findings.append(_amount(f"GPU {index}", gpu.memory_free_bytes, needs.gpu_memory_gb, GpuUnavailableError, text))
    return findings


def _no_gpu(message: str, way_out: str) -> GpuUnavailableError:
    return GpuUnavailableError(f"{message}.", suggestion=f"{way_out}, or choose --device cpu.")


def _memory(needs: Needs) -> Finding:
    available = available_memory_bytes()
    if available is None:
        return Finding("free memory", "unknown")
    return _amount("free memory", available, needs.memory_gb, MemoryExhaustedError)


def _disk(needs: Needs) -> Finding:
    folder = Path(tempfile.gettempdir()) if "://" in needs.out else Path(needs.out).expanduser().resolve()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return _amount("free disk", shutil.disk_usage(existing).free, needs.disk_gb, DiskFullError)


def _amount(what: str, found_bytes: int, needed_gb: float, kind: type[ResourceError], prefix: str = "") -> Finding:
    text = f"{prefix}{found_bytes / GIB:.1f} GiB free"
    if found_bytes >= needed_gb * GIB:
        return Finding(what, text)
    return failing(what, kind(f"{text}, {needed_gb:g} GiB needed", suggestion=_FREE_SOME))


def _storage(out: str) -> str:
    from reconflow.storage import open_store

    with _resolved(out) as uri:
        open_store(uri).prepare()
        return f"{uri} can be written"


@contextmanager
def _resolved(out: str) -> Iterator[str]:
    if not out.startswith("block://"):
        yield out
        return
    from blocks.artifact_store import using_locations

    with using_locations(out) as (uri,):
        yield uri


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print the findings as a table."""
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row("[green]ok[/green]" if finding.ok else "[red]no[/red]", finding.what, finding.value)
        if not finding.ok:
            table.add_row("", "", f"[red]{finding.code}[/red] {finding.suggestion}")
    console.print(table)
