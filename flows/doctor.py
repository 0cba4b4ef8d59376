"""What a machine has for a run, as a table of findings. Measures only; nothing is started or changed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import reconflow
from reconflow.resources import GIB, available_memory_bytes

MIN_MEMORY_BYTES = 2 * GIB
MIN_DISK_BYTES = GIB
_PACKAGES = ("torch", "numba", "numpy", "prefect")


@dataclass(frozen=True)
class Finding:
    """One fact about the machine, and whether a run can live with it."""

    what: str
    value: str
    ok: bool = True


def examine_machine(out: Path) -> list[Finding]:
    """Look at versions, processors, memory and the disk that `out` is on."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    memory = available_memory_bytes()
    existing = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    server = os.environ.get("PREFECT_API_URL")
    return [
        Finding("reconflow", f"{reconflow.__version__} on Python {platform.python_version()}, {platform.platform()}"),
        Finding("packages", packages),
        Finding("processors", str(os.cpu_count())),
        Finding(
            "free memory",
            "unknown" if memory is None else f"{memory / GIB:.1f} GiB",
            memory is None or memory >= MIN_MEMORY_BYTES,
        ),
        Finding("free disk", f"{free / GIB:.1f} GiB", free >= MIN_DISK_BYTES),
        Finding(
            "output folder",
            "writable" if os.access(existing, os.W_OK) else "not writable",
            os.access(existing, os.W_OK),
        ),
        Finding("Prefect server", "as set by PREFECT_API_URL" if server else "embedded, started with each run"),
    ]


def show_findings(console: Console, findings: list[Finding]) -> None:
    """Print the findings as a table."""
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row("[green]ok[/green]" if finding.ok else "[red]too little[/red]", finding.what, finding.value)
    console.print(table)
