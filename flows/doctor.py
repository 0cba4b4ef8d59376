"""What a machine has for runs, as a table of findings. Looks only; what it writes to see whether that can be done goes.

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
from uuid import uuid4

from rich.console import Console
from rich.table import Table

import reconflow
from reconflow.errors import (
    DiskFullError,
    GpuUnavailableError,
    MemoryExhaustedError,
    ReconflowError,
    ResourceError,
    StorageRefusedError,
)
from reconflow.failures import folder_errors
from reconflow.request import ModelName
from reconflow.resources import GIB, available_memory_bytes
from reconflow.storage.cache import cache_root
from reconflow.storage.locations import scheme_of

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
        gpu_count: How many these have to be; None for any number from 1.
        gpu_memory_gb: Free memory on each of them, GiB.
        memory_gb: Free main memory, GiB.
        disk_gb: Free disk space where runs do their work, GiB.
        model: Whose runs have to be possible: its weights have to be here.
    """

    device: str = "cpu"
    out: str = "out"
    gpus: tuple[int, ...] | None = None
    gpu_memory_gb: float = MIN_GPU_MEMORY_GB
    memory_gb: float = MIN_MEMORY_GB
    disk_gb: float = MIN_DISK_GB
    model: ModelName = ModelName.NVDIFFREC
    gpu_count: int | None = None


def examine_machine(needs: Needs) -> list[Finding]:
    """Look at versions, processors, memory, GPUs when one is needed, the disk, and the place for results."""
    return [
        Finding("reconflow", f"{reconflow.__version__} on Python {platform.python_version()}, {platform.platform()}"),
        Finding("packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)),
        Finding("processors", str(os.cpu_count())),
        _memory(needs),
        *(examine_gpus(needs) if needs.device == "cuda" else [Finding("device", "the CPU, as chosen")]),
        *_places(needs),
        attempt("weights", lambda: _weights(needs.model)),
        Finding("allowed places", os.environ.get(ALLOWED_ROOTS) or f"any: {ALLOWED_ROOTS} is not set"),
    ]


def _weights(model: ModelName) -> str:
    fault = _fault_of_weights()
    if fault is None:
        return "nvdiffrec needs none; those of reconviagen are here"
    if model is not ModelName.NVDIFFREC:
        raise fault
    return (
        f"nvdiffrec needs none; those of reconviagen are not here ({fault.code}): its runs fail unless they name "
        "another place, and --model both insists on them"
    )


def _fault_of_weights() -> ReconflowError | None:
    from reconflow.reconviagen.weight_sources import default_folder
    from reconflow.reconviagen.weights import WeightsFolder, missing_error

    try:
        missing = WeightsFolder(default_folder()).missing()
    except ReconflowError as error:
        return error
    return missing_error(missing) if missing else None


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
    if needs.gpu_count is not None and len(chosen) != needs.gpu_count:
        wrong = GpuUnavailableError(
            f"There are {len(chosen)} GPUs, and there should be {needs.gpu_count}.",
            suggestion="Look at nvidia-smi for one that is lost, or correct --gpu-count.",
        )
        findings.append(failing("GPUs", wrong))
    return findings


def _no_gpu(message: str, way_out: str) -> GpuUnavailableError:
    return GpuUnavailableError(f"{message}.", suggestion=f"{way_out}, or choose --device cpu.")


def _memory(needs: Needs) -> Finding:
    available = available_memory_bytes()
    if available is None:
        return Finding("free memory", "unknown")
    return _amount("free memory", available, needs.memory_gb, MemoryExhaustedError)


def _places(needs: Needs) -> Iterator[Finding]:
    """Look at where results go, and at where runs work on the way: there as well, or in the cache folder."""
    storage = attempt("place for results", lambda: _storage(needs.out))
    folder = _local_folder(needs.out)
    if folder is None:
        yield attempt("cache folder", _cache)
    existing = folder or cache_root().resolve()
    while not existing.exists():
        existing = existing.parent
    yield _amount("free disk", shutil.disk_usage(existing).free, needs.disk_gb, DiskFullError)
    yield storage


def _local_folder(out: str) -> Path | None:
    """Return the folder that results go to; None when they go to an object store, or nobody can say where."""
    try:
        with _resolved(out) as uri:
            return Path(uri).expanduser().resolve() if scheme_of(uri) is None else None
    except ReconflowError:
        return None


def _cache() -> str:
    with folder_errors("cache folder", "Make it writable, or name another one with RECONFLOW_CACHE."):
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_root()) as probe:
            probe.write(b"writable")
    return f"{cache_root()} can be written"


def _amount(what: str, found_bytes: int, needed_gb: float, kind: type[ResourceError], prefix: str = "") -> Finding:
    text = f"{prefix}{found_bytes / GIB:.1f} GiB free"
    if found_bytes >= needed_gb * GIB:
        return Finding(what, text)
    return failing(what, kind(f"{text}, {needed_gb:g} GiB needed", suggestion=_FREE_SOME))


def _storage(out: str) -> str:
    """Write as runs do, read that back, and remove it."""
    from reconflow.storage import open_store

    name = f"probe-{uuid4().hex}"
    with _resolved(out) as uri, tempfile.TemporaryDirectory() as folder:
        store = open_store(uri)
        store.prepare()
        file = Path(folder) / "written"
        file.write_text(name, "utf-8")
        try:
            store.save_stage("doctor", name, {"probe": name}, {file.name: file})
            found = store.find_stage("doctor", name, {file.name: file.with_name("read")})
        finally:
            store.discard_stages([name])
        if found is None or found.files[file.name].read_text("utf-8") != name:
            raise StorageRefusedError(
                "What was written to the place for results cannot be read back.",
                suggestion="Let this machine read there as well as write, or choose another place.",
            )
        if store.find_stage("doctor", name, {}) is not None:
            raise StorageRefusedError(
                "What was written to the place for results cannot be removed.",
                suggestion="Let this machine remove what it wrote, or choose another place.",
            )
        return f"{uri} can be written, read and cleared"


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
