"""The console command `reconflow`: options in, progress and results out. Decides nothing about the work itself.

Heavy packages are imported after the first line of feedback, never before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from traceback import format_exception
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import reconflow
from deployments.heartbeats import set_heartbeats
from flows.cancel_command import cancel_command
from flows.console import show_error, show_summary, show_validation, showing_progress
from flows.deploy_command import WorkerDevice, deploy_command
from flows.expire_command import expire_command, pin_command, unpin_command
from flows.link_command import fetch_command, link_command
from flows.reprocess_command import reprocess_command
from flows.weights_command import weights_app
from flows.worker_command import worker_command
from reconflow.datasets.files import DatasetFolder
from reconflow.errors import Cancelled, ReconflowError, ValidationFailedError
from reconflow.nvdiffrec.options import Preset
from reconflow.progress import OnProgress
from reconflow.reconviagen.options import GUIDANCE, MAX_VIEWS, MAX_VOXELS, GaussianEngine, RandomWeights, Refinement
from reconflow.request import Device, ModelName, RunRequest, make_request
from reconflow.stage_results import RunSummary
from reconflow.storage import LocalStore
from reconflow.storage.cache import cache_root
from reconflow.storage.locations import scheme_of

EXIT_FAILED = 1
EXIT_CANCELLED = 130
SPELLED = {
    "dataset": "DATASET",
    "out": "--out",
    "seed": "--seed",
    "steps": "--steps",
    "resolution": "--resolution",
    "texture_size": "--texture-size",
    "target_faces": "--faces",
    "fov_deg": "--fov",
    "object_size_m": "--object-size",
    "structure_steps": "--structure-steps",
    "latent_steps": "--latent-steps",
    "guidance": "--guidance",
    "max_views": "--max-views",
    "max_voxels": "--max-voxels",
    "gaussian_engine": "--gaussian-engine",
    "refine": "--refine",
    "weights": "--weights",
    "random_weights": "--random-weights",
}
"""How the command line writes the fields of a request."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Six pictures of an object in, a measured, textured 3D mesh out.",
)


@app.command("run")
def run_command(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="Folder with multi_views/ and depth_renders/, or a transforms.json; or s3://..."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="PATH", help="Results go to runs/<run id> in this folder; or s3://...")
    ] = "out",
    preset: Annotated[Preset, typer.Option(help="How much work to spend.")] = Preset.STANDARD,
    model: Annotated[ModelName, typer.Option(help="Which reconstruction model runs.")] = ModelName.NVDIFFREC,
    device: Annotated[Device, typer.Option(help="What the models compute on.")] = Device.AUTO,
    seed: Annotated[int, typer.Option(help="Seeds every random choice.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Iterations of the geometry fit.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Longest image side of the fit, pixels.")] = None,
    texture_size: Annotated[int | None, typer.Option(help="Side of the texture, texels.")] = None,
    faces: Annotated[int | None, typer.Option("--faces", help="Upper bound on the mesh's triangles.")] = None,
    fov: Annotated[float | None, typer.Option("--fov", help="Horizontal field of view, degrees, when known.")] = None,
    object_size: Annotated[float | None, typer.Option(help="Longest side of the object, metres.")] = None,
    structure_steps: Annotated[int | None, typer.Option(help="Sampler steps of reconviagen's structure.")] = None,
    latent_steps: Annotated[int | None, typer.Option(help="Sampler steps of reconviagen's latent.")] = None,
    guidance: Annotated[float, typer.Option(help="How strictly reconviagen keeps to the views.")] = GUIDANCE,
    max_views: Annotated[int, typer.Option(help="Views that reconviagen reads at most.")] = MAX_VIEWS,
    max_voxels: Annotated[
        int, typer.Option(help="Occupied voxels beyond which reconviagen refuses a structure.")
    ] = MAX_VOXELS,
    gaussian_engine: Annotated[
        GaussianEngine, typer.Option(help="What pictures reconviagen's Gaussians; auto: gsplat on a GPU that has it.")
    ] = GaussianEngine.AUTO,
    refine: Annotated[
        Refinement, typer.Option(help="Fit reconviagen's mesh to the views, from the generated one on.")
    ] = Refinement.NONE,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH", help="Reconviagen's weights: a folder or s3://...; see `weights`.")
    ] = None,
    random_weights: Annotated[
        RandomWeights | None, typer.Option(help="Try reconviagen out without weights; the result means nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,  # noqa: FBT002
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where a failure arose.")] = False,  # noqa: FBT002
    use_prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="Run as a Prefect flow.")] = True,  # noqa: FBT002
) -> None:
    """Reconstruct one object."""
    console = Console(stderr=True)
    with reporting_errors(console, as_json=as_json, traceback=show_traceback, out=out):
        request = make_request(
            SPELLED, dataset=dataset, out=out, preset=preset, model=model, device=device, seed=seed, steps=steps,
            resolution=resolution, texture_size=texture_size, target_faces=faces, fov_deg=fov,
            object_size_m=object_size, structure_steps=structure_steps, latent_steps=latent_steps, guidance=guidance,
            max_views=max_views, max_voxels=max_voxels, gaussian_engine=gaussian_engine, refine=refine,
            weights=weights, random_weights=random_weights,
        )  # fmt: skip
        if scheme_of(dataset) is None:
            DatasetFolder.open(Path(dataset))
        if scheme_of(out) is None:
            LocalStore(Path(out).expanduser()).prepare()
        title = f"{Path(dataset).resolve().name} · {model} · {preset}"
        with showing_progress(console, title, preset) as report, stopping_between_steps(console, report) as on_progress:
            report(0, 1, "starting")
            summary = run_flow(request, on_progress) if use_prefect else run_plainly(request, on_progress)
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        show_summary(console, summary)


@app.command("validate")
def validate_command(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Check a dataset without reconstructing it."""
    console = Console(stderr=True)
    from reconflow.datasets.loading import validate_dataset

    with reporting_errors(console, as_json=as_json):
        expect_given("DATASET", dataset)
        report = validate_dataset(Path(dataset))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, sort_keys=True))
        raise typer.Exit(0 if report.ok else EXIT_FAILED)
    show_validation(console, report.to_dict())
    with reporting_errors(console):
        report.raise_faults()
    console.print("[green]The dataset can be used.[/green]")


@app.command("history")
def history_command(
    out: Annotated[str, typer.Option("--out", "-o", metavar="PATH", help="The folder that holds the results.")] = "out",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page is served on this machine.")] = 4200,
) -> None:
    """Show the runs that Prefect did for a folder in its web page, until Ctrl-C."""
    from flows.embedded import serve_history

    console = Console(stderr=True)
    with reporting_errors(console):
        expect_given("--out", out)
        serve_history(Path(out).expanduser(), port, lambda line: console.print(line, highlight=False))


@app.command("doctor")
def doctor_command(
    out: Annotated[str, typer.Option("--out", "-o", metavar="URI", help="Where results would go.")] = "out",
    device: Annotated[WorkerDevice, typer.Option(help="What runs would compute on.")] = WorkerDevice.CPU,
    model: Annotated[ModelName, typer.Option(help="Whose runs: its weights have to be here.")] = ModelName.NVDIFFREC,
) -> None:
    """Say what this machine has and whether a run can start."""
    from flows.doctor import Finding, Needs, examine_machine, show_findings

    server = "as set by PREFECT_API_URL" if os.environ.get("PREFECT_API_URL") else "embedded, started with each run"
    findings = [*examine_machine(Needs(device=device.value, out=out, model=model)), Finding("Prefect server", server)]
    show_findings(Console(), findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)


app.command("cancel")(cancel_command)
app.command("deploy")(deploy_command)
app.command("expire")(expire_command)
app.command("fetch")(fetch_command)
app.command("link")(link_command)
app.command("pin")(pin_command)
app.command("reprocess")(reprocess_command)
app.command("unpin")(unpin_command)
app.add_typer(weights_app, name="weights")
app.command("worker")(worker_command)


def run_flow(request: RunRequest, on_progress: OnProgress) -> RunSummary:
    """Run the flow `reconstruct` in this process, on the configured Prefect server or on an embedded one.

    A dataset that is evidently unusable gets no embedded server: the same stages refuse it at once.
    """
    from flows.embedded import EmbeddedServer, is_server_configured
    from reconflow.datasets.loading import has_evident_faults

    is_local = scheme_of(request.dataset) is None
    if not is_server_configured() and is_local and has_evident_faults(Path(request.dataset)):
        return run_plainly(request, on_progress)
    history = cache_root() if scheme_of(request.out) else Path(request.out).expanduser()
    server = None if is_server_configured() else EmbeddedServer(history / ".prefect")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with server or nullcontext():
        from flows.in_process import call_flow

        if server is not None:
            server.wait()
        return call_flow(request, on_progress)


def run_plainly(request: RunRequest, on_progress: OnProgress) -> RunSummary:
    """Run the same stages without Prefect."""
    from reconflow.pipeline import run_pipeline

    return run_pipeline(request, on_progress)


@contextmanager
def reporting_errors(
    console: Console, *, as_json: bool = False, traceback: bool = False, out: str | None = None
) -> Iterator[None]:
    """Turn a failure of the body into a panel, or into JSON instead, and an exit code, without a traceback."""
    try:
        yield
    except ReconflowError as error:
        if as_json:
            typer.echo(json.dumps({"error": error.to_dict()}, indent=2, sort_keys=True))
        if traceback:
            typer.echo("".join(format_exception(error)), err=True)
        if not as_json:
            show_error(console, error, out)
        raise typer.Exit(EXIT_CANCELLED if isinstance(error, Cancelled) else EXIT_FAILED) from None
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(EXIT_CANCELLED) from None


def expect_given(name: str, value: str) -> None:
    """Return when a path was given.

    Raises:
        ValidationFailedError: It is empty.
    """
    if not value:
        raise ValidationFailedError(f"{name} is empty.", suggestion="Name a folder.", options=[name])


@contextmanager
def stopping_between_steps(console: Console, on_progress: OnProgress) -> Iterator[OnProgress]:
    """Let the first Ctrl-C stop the work at its next step, cleanly, and the second one at once.

    Before the work has begun there is nothing to end cleanly, and the first one stops at once.

    Args:
        console: Told that the first one was heard.
        on_progress: The receiver to wrap.
    """
    begun, asked = threading.Event(), threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set() or not begun.is_set():
            raise KeyboardInterrupt
        asked.set()
        console.print("Stopping after this step; press Ctrl-C again to stop at once.")

    def report(step: int, total: int, message: str) -> None:
        begun.set()
        if asked.is_set():
            raise Cancelled("The run was cancelled.", suggestion="Run the same command again to go on.")
        on_progress(step, total, message)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield report
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,  # noqa: FBT002
) -> None:
    if version:
        typer.echo(f"reconflow {reconflow.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    set_heartbeats(os.environ)


def run_from_module() -> NoReturn:
    """Serve `python -m flows.reconstruct ...` as `reconflow run ...`."""
    app(args=["run", *sys.argv[1:]], prog_name="python -m flows.reconstruct")
    raise SystemExit(0)


def main() -> None:
    """Serve the console command."""
    app(prog_name="reconflow")


if __name__ == "__main__":
    main()
