"""`reconflow worker`: examine the machine, and when all is well run one Prefect worker per GPU, or CPU workers.

What is examined is in `flows.doctor` and `flows.server_checks`, how workers are kept alive in
`flows.worker_supervisor`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from deployments.heartbeats import HEARTBEAT_S, HEARTBEAT_VARIABLE
from flows.deploy_command import WorkerDevice
from flows.worker_supervisor import Supervisor, WorkerSpec
from reconflow.errors import ValidationFailedError
from reconflow.request import ModelName

if TYPE_CHECKING:
    from flows.doctor import Finding, Needs

EXIT_UNFIT: Final = 1
QUERY_SECONDS: Final = "1"
"""How often a worker asks for work; Prefect's 10 s would be most of the wait for an idle worker."""
CONTROL_LIMIT: Final = 8
CPU_POOL: Final = "cpu"
GPU_POOL: Final = "gpu"
CONTROL_QUEUE: Final = "control"
CANCEL_QUEUE: Final = "cancel"


def worker_command(
    device: Annotated[WorkerDevice, typer.Option(help="What runs compute on.")],
    pool: Annotated[str | None, typer.Option(help="The work pool; gpu or cpu, after the device.")] = None,
    gpus: Annotated[str | None, typer.Option(metavar="0,1", help="Which GPUs; all when left out.")] = None,
    gpu_count: Annotated[int | None, typer.Option(min=1, help="How many GPUs there have to be.")] = None,
    model: Annotated[
        ModelName, typer.Option(help="Whose runs have to be possible: its weights have to be here.")
    ] = ModelName.NVDIFFREC,
    limit: Annotated[int, typer.Option(min=1, help="Runs at once on the CPU; a GPU has one.")] = 1,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URI", help="Where results go; has to be writable.")
    ] = "out",
    min_free_gpu_memory_gb: Annotated[float, typer.Option(min=0, help="On each GPU, GiB.")] = 12.0,
    min_free_memory_gb: Annotated[float, typer.Option(min=0, help="Main memory, GiB.")] = 2.0,
    min_free_disk_gb: Annotated[float, typer.Option(min=0, help="Where runs do their work, GiB.")] = 5.0,
    check_only: Annotated[bool, typer.Option("--check-only", help="Examine the machine and start nothing.")] = False,  # noqa: FBT002
) -> None:
    """Take runs from the Prefect server, after a look at this machine."""
    from flows.cli import reporting_errors
    from flows.doctor import Needs, show_findings

    console = Console(stderr=True)
    with reporting_errors(console):
        needs = Needs(
            device.value, out, _chosen_gpus(device, gpus, gpu_count), min_free_gpu_memory_gb, min_free_memory_gb,
            min_free_disk_gb, model, gpu_count,
        )  # fmt: skip
        pool = pool or (GPU_POOL if device is WorkerDevice.CUDA else CPU_POOL)
        findings = examine_worker(needs, pool)
        show_findings(console, findings)
        if not all(finding.ok for finding in findings):
            console.print("[red]No worker was started.[/red]")
            raise typer.Exit(EXIT_UNFIT)
        if not check_only:
            specs = make_specs(needs, pool, limit, os.environ)
            Supervisor(specs, lambda line: console.print(line, highlight=False)).run()


def _chosen_gpus(device: WorkerDevice, text: str | None, count: int | None) -> tuple[int, ...] | None:
    """Return the GPUs' indices; None on the CPU, and where there are none to choose from.

    Raises:
        ValidationFailedError: `text` is not a list of indices, or the CPU was chosen.
        GpuUnavailableError: The driver does not answer properly.
    """
    if device is WorkerDevice.CPU:
        for option, value in (("--gpus", text), ("--gpu-count", count)):
            if value is not None:
                message = f"{option} means nothing with --device cpu."
                raise ValidationFailedError(message, suggestion="Leave one of them out.")
        return None
    if text is None:
        from reconflow.gpus import visible_gpus

        return tuple(gpu.index for gpu in visible_gpus()) or None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ValidationFailedError(
            f"{text!r} is not a list of GPUs.", suggestion="Write their indices, each once, like --gpus 0,1."
        )
    return tuple(int(part) for part in parts)


def examine_worker(needs: Needs, pool: str) -> list[Finding]:
    """Look at the machine, the Prefect server and the pool.

    Args:
        needs: What the machine must have.
        pool: The work pool's name.
    """
    from flows.doctor import attempt, examine_machine
    from flows.server_checks import expect_configured_server, expect_pool

    def look_at_server() -> str:
        expect_configured_server()
        return "answers and lets us in"

    def look_at_pool() -> str:
        expect_pool(pool, needs.device)
        return f"{pool}, whose runs compute on {needs.device}"

    server = attempt("Prefect server", look_at_server)
    findings = [*examine_machine(needs), server]
    return [*findings, attempt("work pool", look_at_pool)] if server.ok else findings


def make_specs(needs: Needs, pool: str, limit: int, environment: Mapping[str, str]) -> list[WorkerSpec]:
    """Return the workers to start: one per GPU; on the CPU one, and one more for each queue of short runs.

    Args:
        needs: With the device, and the GPUs' indices when it is `cuda`.
        pool: The work pool's name.
        limit: Runs at once on the CPU.
        environment: Of this process; the workers' are made from it.
    """
    common = {
        **environment,
        "RECONFLOW_DEVICE": needs.device,
        "RECONFLOW_HOME": environment.get("RECONFLOW_HOME") or str(Path(__file__).resolve().parents[1]),
        "PREFECT_WORKER_QUERY_SECONDS": environment.get("PREFECT_WORKER_QUERY_SECONDS", QUERY_SECONDS),
        HEARTBEAT_VARIABLE: str(HEARTBEAT_S),
        # Runs are started as `python -m prefect.engine`: with this Python.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")]),
    }
    host = platform.node() or "worker"
    if needs.device == "cuda":
        return [
            WorkerSpec(
                name := f"{host}-gpu{index}",
                _start_command(pool, name, 1, ()),
                {**common, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(index)},
            )
            for index in needs.gpus or ()
        ]
    no_gpu = {**common, "CUDA_VISIBLE_DEVICES": ""}
    if pool != CPU_POOL:
        return [WorkerSpec(name := f"{host}-cpu", _start_command(pool, name, limit, ()), no_gpu)]
    return [
        WorkerSpec(name := f"{host}-cpu", _start_command(pool, name, limit, ("default",)), no_gpu),
        WorkerSpec(name := f"{host}-control", _start_command(pool, name, CONTROL_LIMIT, (CONTROL_QUEUE,)), no_gpu),
        WorkerSpec(name := f"{host}-cancel", _start_command(pool, name, CONTROL_LIMIT, (CANCEL_QUEUE,)), no_gpu),
    ]


def _start_command(pool: str, name: str, limit: int, queues: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--type", "process"]
    command += ["--pool", pool, "--name", name, "--limit", str(limit)]
    return command + [part for queue in queues for part in ("--work-queue", queue)]
