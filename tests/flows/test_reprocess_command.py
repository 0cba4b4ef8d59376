"""`reconflow reprocess` from a terminal: without a server it runs what is needed here, with real runs and manifests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import flow_objects
import pytest
from typer.testing import CliRunner, Result

from flows.cli import app


def run(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["reprocess", *(str(argument) for argument in arguments)])


def decisions(*arguments: str | Path) -> dict[str, tuple[str, str]]:
    """Return decision and state by the dataset's name."""
    result = run(*arguments, "--json", "--preset", "draft")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    return {Path(row["dataset"]).name: (row["decision"], row["state"]) for row in rows}


@pytest.fixture
def data(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good dataset and one that lacks a picture."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for name in ("boxes", "broken"):
        shutil.copytree(dataset, tmp_path / "data" / name)
    (tmp_path / "data" / "broken" / "multi_views" / "top.png").unlink()
    return tmp_path / "data"


def test_a_walk_without_a_server_runs_what_is_needed_and_nothing_twice(
    data: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert decisions(data, "--out", out, "--dry-run") == {"boxes": ("new", ""), "broken": ("new", "")}
    assert not (out / "runs").exists()
    assert decisions(data, "--out", out) == {"boxes": ("new", "Completed"), "broken": ("new", "Failed")}
    assert decisions(data, "--out", out) == {"boxes": ("up to date", ""), "broken": ("failed", "Failed")}
    os.utime(data / "boxes" / "multi_views" / "top.png")
    shutil.copy(data / "boxes" / "multi_views" / "top.png", data / "broken" / "multi_views")
    assert decisions(data, "--out", out) == {"boxes": ("up to date", ""), "broken": ("changed", "Completed")}
    assert decisions(data, "--out", out, "--options", '{"seed": 3}', "--dry-run") == {
        "boxes": ("outdated", ""),
        "broken": ("outdated", ""),
    }
    assert len(list((out / "runs").iterdir())) == 4


def test_the_table_says_what_is_not_up_to_date_and_why(data: Path, tmp_path: Path) -> None:
    shown = run(data, "--out", tmp_path / "out", "--dry-run")
    assert shown.exit_code == 0
    assert "2 datasets: 2 new; 2 to run (dry run)." in shown.stdout
    assert "No run of this" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--options", "{"), "--options is not JSON"),
        (("--options", '{"colour": 1}'), "There is no option colour"),
        (("--redo", "everything"), "redo-everything"),
        (("--attempts", "0"), "--attempts"),
    ],
)
def test_options_that_mean_nothing_are_refused(data: Path, arguments: tuple[str, str], said: str) -> None:
    result = run(data, *arguments)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_with_a_server_the_walk_is_a_flow_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    assert decisions(data, "--out", tmp_path / "out", "--dry-run") == {"boxes": ("new", ""), "broken": ("new", "")}
    with get_client(sync_client=True) as client:
        names = [flow_run.name for flow_run in client.read_flow_runs()]
    assert f"{data} · nvdiffrec · draft · dry run" in names
