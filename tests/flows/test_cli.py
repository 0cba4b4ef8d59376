"""The command `reconflow`: what a person sees, what a program reads, and what is left when it ends."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import socket
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
from flows.embedded import client_settings
from reconflow.errors import ValidationFailedError
from reconflow.nvdiffrec.options import Preset
from reconflow.outputs.package import RunStatus, read_manifest, verify_package
from reconflow.stage_spans import STAGES, stage_span


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


def test_a_result_below_the_thresholds_says_where_its_report_is(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.result = flow_objects.coloured_boxes(scale=0.1)
    monkeypatch.chdir(tmp_path)
    shown = run("run", dataset, "--out", "mine", "--preset", "draft", "--no-prefect")
    (first,) = (tmp_path / "mine" / "runs").iterdir()
    assert f"mine/runs/{first.name}/report.html" in "".join(shown.stderr.replace("│", "").split())
    printed = run("run", dataset, "--out", "mine", "--preset", "draft", "--no-prefect", "--json")
    details = json.loads(printed.stdout)["error"]["details"]
    assert details["run_id"] != first.name
    assert details["report"] == f"runs/{details['run_id']}/report.html"
    assert (tmp_path / "mine" / details["report"]).is_file()


def test_an_evident_fault_is_stored_without_starting_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("flows.embedded.EmbeddedServer", pytest.fail)
    (tmp_path / "empty").mkdir()
    result = run("run", tmp_path / "empty", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "INVALID_FILE_COUNT" in result.stderr
    (stored,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads((stored / "error.json").read_text("utf-8"))["code"] == "INVALID_FILE_COUNT"
    assert read_manifest(stored).status is RunStatus.FAILED


def test_a_failure_is_only_json_for_a_program(tmp_path: Path) -> None:
    result = run("run", tmp_path / "absent", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "VALIDATION_FAILED"
    assert "What to do" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--fov", "nan", "--fov is nan; it has to be a number, above 1 and below 170."),
        ("--faces", "1", "--faces is 1; it has to be a whole number, at least 200 and at most 2,000,000."),
        ("--object-size", "0", "--object-size is 0.0; it has to be a number, above 0 and at most 10,000."),
        ("--out", "", "--out is empty."),
    ],
)
def test_an_option_is_named_as_it_is_typed(dataset: Path, tmp_path: Path, option: str, value: str, said: str) -> None:
    result = run("run", dataset, "--out", tmp_path / "out", option, value, "--json")
    error = json.loads(result.stdout)["error"]
    assert error["message"] == f"The options are not usable. {said}"
    assert error["details"]["options"] == [option]


@pytest.mark.parametrize("command", ["run", "validate"])
def test_an_empty_dataset_path_is_refused(command: str) -> None:
    result = run(command, "")
    assert result.exit_code == 1
    assert "DATASET is empty." in result.stderr


@pytest.mark.parametrize("inside", ["", "deeper/out"])
def test_a_file_in_the_place_of_the_output_folder_is_named(dataset: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "plain").write_text("x")
    result = run("run", dataset, "--out", tmp_path / "plain" / inside)
    assert result.exit_code == 1
    assert "plain is a file" in result.stderr


def test_an_option_out_of_range_is_refused_before_anything_starts(dataset: Path, tmp_path: Path) -> None:
    result = run("run", dataset, "--out", tmp_path / "out", "--fov", "190")
    assert result.exit_code == 1
    assert "--fov is 190.0" in result.stderr
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


def test_validate_prints_no_table_when_there_is_nothing_to_tabulate(tmp_path: Path) -> None:
    result = run("validate", tmp_path / "absent")
    assert "mask from" not in result.stderr
    assert "There is no folder absent." in result.stderr


def test_validate_prints_only_json_for_a_program(tmp_path: Path) -> None:
    result = run("validate", tmp_path / "absent", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False
    assert result.stderr == ""


def test_what_all_views_have_in_common_is_said_once(dataset: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(dataset, tmp_path / "bare")
    shutil.rmtree(bare / "depth_renders")
    for path in (bare / "multi_views").iterdir():
        flow_objects.flatten_onto_white(path)
    warnings = json.loads(run("validate", bare, "--json").stdout)["warnings"]
    (said,) = (warning for warning in warnings if "estimated" in warning)
    assert said.startswith("all views: ")
    assert "preview" not in said


def test_history_tells_runs_without_prefect_from_no_runs(tmp_path: Path) -> None:
    assert "There are no runs" in run("history", "--out", tmp_path).stderr
    (tmp_path / "empty").mkdir()
    run("run", tmp_path / "empty", "--out", tmp_path, "--no-prefect")
    result = run("history", "--out", tmp_path)
    assert result.exit_code == 1
    assert "holds 1 run, but none was done by" in " ".join(result.stderr.replace("│", "").split())


def test_history_refuses_a_port_that_cannot_be(tmp_path: Path) -> None:
    assert run("history", "--out", tmp_path, "--port", "99999").exit_code == 2
    history = client_settings(tmp_path / ".prefect")["PREFECT_API_DATABASE_CONNECTION_URL"].partition(":///")[2]
    Path(history).parent.mkdir()
    Path(history).touch()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Port {port} cannot be used" in run("history", "--out", tmp_path, "--port", port).stderr


def test_doctor_names_what_a_run_needs(tmp_path: Path) -> None:
    result = run("doctor", "--out", tmp_path / "not" / "yet")
    assert result.exit_code == 0
    for fact in ("free memory", "free disk", "Prefect server", "torch"):
        assert fact in result.stdout


def test_every_fault_stands_in_the_panel() -> None:
    stream = io.StringIO()
    faults = [
        {"code": "FILE_TOO_LARGE", "file": "multi_views/top.png", "message": "It has 21 MB."},
        {"code": "INVALID_FILE_COUNT", "file": "multi_views/left.png", "message": "multi_views/left.png is missing."},
        {"code": "INVALID_FILE_COUNT", "file": None, "message": "A view is missing."},
    ]
    show_error(Console(file=stream, width=100), ValidationFailedError("Two.", suggestion="Mend.", faults=faults))
    for words in ("FILE_TOO_LARGE", "multi_views/top.png", "It has 21 MB.", "A view is missing.", "Mend."):
        assert words in stream.getvalue()
    assert stream.getvalue().count("multi_views/left.png") == 1


def test_lines_come_with_a_new_stage_or_after_a_while() -> None:
    stream, now_s = io.StringIO(), [0.0]
    report = LineReporter(Console(file=stream, width=100), Preset.DRAFT, clock=lambda: now_s[0])
    for second in range(31):
        now_s[0] = float(second)
        report(second, 100, "infer: step")
    report(31, 100, "quality: measuring")
    lines = stream.getvalue().splitlines()
    assert [line.split(" %  ")[1].split()[0] for line in lines] == ["0:00", "0:10", "0:20", "0:30", "0:30"]


def test_the_forecast_is_silent_until_a_tenth_of_infer_is_done() -> None:
    now_s = [100.0]
    forecast = Forecast(Preset.STANDARD, clock=lambda: now_s[0])
    start, stop = stage_span("infer", Preset.STANDARD)
    forecast.note(1, 1000)
    now_s[0] = 110.0
    forecast.note(round(1000 * start), 1000)
    now_s[0] = 120.0
    forecast.note(round(1000 * (start + 0.09 * (stop - start))), 1000)
    assert forecast.remaining_s() is None
    now_s[0] = 160.0
    forecast.note(round(1000 * (start + stop) / 2), 1000)
    assert forecast.remaining_s() == pytest.approx(50.0 * (2 * (1 - start) / (stop - start) - 1))


def test_the_forecast_does_not_drift_when_infer_keeps_its_pace() -> None:
    seconds = {"validate": 1, "transforms": 12, "load": 1, "infer": 100, "quality": 2, "preview": 7, "package": 2}
    now_s, ends_s = [0.0], []
    forecast = Forecast(Preset.STANDARD, clock=lambda: now_s[0])
    for stage, length_s in seconds.items():
        start, stop = stage_span(stage, Preset.STANDARD)
        for tenth in range(10):
            forecast.note(round(1000 * (start + tenth / 10 * (stop - start))), 1000)
            left_s = forecast.remaining_s()
            ends_s += [] if left_s is None else [now_s[0] + left_s]
            now_s[0] += length_s / 10
    assert len(ends_s) == 39
    assert ends_s == pytest.approx([sum(seconds.values())] * len(ends_s), abs=8.0)


@pytest.mark.parametrize("preset", list(Preset))
def test_the_stages_of_a_run_fill_it_without_gaps(preset: Preset) -> None:
    spans = [stage_span(stage, preset) for stage in STAGES]
    assert (spans[0][0], spans[-1][1]) == (0.0, 1.0)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


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
