"""The command `reconflow`: what a person sees, what a program reads, and what is left when it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flow_objects
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.console import Forecast, LineReporter, show_error
from reconflow.errors import ValidationFailedError
from reconflow.outputs.package import verify_package


def run(*arguments: str | Path) -> Result:
    """Run the command in this process, without Prefect's start-up."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_one_json_object_and_exits_with_0(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    result = run("run", dataset, "--out", tmp_path, "--preset", "draft", "--json", "--no-prefect")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["status"] == "normal"
    assert Path(summary["mesh"]).is_file()
    assert "boxes · nvdiffrec · draft" in result.stderr


def test_a_failure_is_a_panel_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("run", tmp_path / "empty", "--out", tmp_path, "--no-prefect")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "What to do:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_failure_is_json_for_a_program(tmp_path: Path) -> None:
    result = run("run", tmp_path / "absent", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "VALIDATION_FAILED"
    assert not (tmp_path / "out").exists()


def test_an_option_out_of_range_is_refused_before_anything_starts(dataset: Path, tmp_path: Path) -> None:
    result = run("run", dataset, "--out", tmp_path / "out", "--fov", "190")
    assert result.exit_code == 1
    assert "fov_deg" in result.stderr
    assert not (tmp_path / "out").exists()


def test_cancelling_exits_with_130(dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    stand_in.during = interrupt
    result = run("run", dataset, "--out", tmp_path, "--no-prefect")
    assert result.exit_code == 130
    assert "Stopping after this step" in result.stderr
    assert "CANCELLED" in result.stderr
    assert not list(tmp_path.rglob("mesh.glb"))


def test_validate_shows_every_view(dataset: Path) -> None:
    result = run("validate", dataset, "--json")
    assert result.exit_code == 0
    assert [view["name"] for view in json.loads(result.stdout)["views"]] == [
        "front", "back", "left", "right", "top", "bottom",
    ]  # fmt: skip
    shown = run("validate", dataset)
    assert "96 × 96" in shown.stderr


def test_validate_fails_on_what_run_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("validate", tmp_path / "empty").exit_code == 1


def test_doctor_names_what_a_run_needs(tmp_path: Path) -> None:
    result = run("doctor", "--out", tmp_path / "not" / "yet")
    assert result.exit_code == 0
    for fact in ("free memory", "free disk", "Prefect server", "torch"):
        assert fact in result.stdout


def test_every_fault_stands_in_the_panel() -> None:
    stream = io.StringIO()
    faults = [
        {"code": "FILE_TOO_LARGE", "file": "multi_views/top.png", "message": "It has 21 MB."},
        {"code": "INVALID_FILE_COUNT", "file": None, "message": "A view is missing."},
    ]
    show_error(Console(file=stream, width=100), ValidationFailedError("Two.", suggestion="Mend.", faults=faults))
    for words in ("FILE_TOO_LARGE", "multi_views/top.png", "It has 21 MB.", "A view is missing.", "Mend."):
        assert words in stream.getvalue()


def test_lines_come_with_a_new_stage_or_after_a_while() -> None:
    stream, now_s = io.StringIO(), [0.0]
    report = LineReporter(Console(file=stream, width=100), clock=lambda: now_s[0])
    for second in range(31):
        now_s[0] = float(second)
        report(second, 100, "infer: step")
    report(31, 100, "quality: measuring")
    lines = stream.getvalue().splitlines()
    assert [line.split(" %  ")[1].split()[0] for line in lines] == ["0:00", "0:10", "0:20", "0:30", "0:30"]


def test_the_forecast_is_silent_until_it_can_know() -> None:
    now_s = [100.0]
    forecast = Forecast(clock=lambda: now_s[0])
    forecast.note(0, 100)
    now_s[0] = 110.0
    forecast.note(1, 100)
    assert forecast.remaining_s() is None
    now_s[0] = 160.0
    forecast.note(50, 100)
    assert forecast.remaining_s() == pytest.approx(50.0)


def test_a_real_run_with_nothing_configured_leaves_no_process(dataset: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "flows.reconstruct", str(dataset), "--out", str(tmp_path / "out"), "--json"]
    options = ["--preset", "draft", "--steps", "1", "--texture-size", "128", "--faces", "1500"]
    finished = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)
    verify_package(Path(summary["location"]))
    facts = json.loads((Path(summary["location"]) / "run.json").read_text("utf-8"))
    load = facts["results"]["load"]
    assert facts["peak_rss_bytes"] < load["record"]["peak_rss_bytes"] + load["needed_memory_bytes"]
    assert "INFO" not in finished.stderr
    assert not (tmp_path / "home" / ".prefect").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".prefect", "runs"]
    assert not processes_naming(str(tmp_path / "out"))


def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from flows.embedded import EmbeddedServer\n"
        "with EmbeddedServer(Path(sys.argv[1])) as server:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60)
    assert finished.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while processes_naming(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_naming(str(tmp_path))


def processes_naming(text: str) -> list[str]:
    """Return the processes whose environment holds `text`: the embedded server's home stands in its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        try:
            if text.encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found
