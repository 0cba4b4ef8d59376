"""A second attempt repeats only what the first had not finished, and ends with the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flow_objects
import pytest

from reconflow.errors import Cancelled, IncompleteResultsError, JobNotReadyError, ModelConvergenceError, ModelError
from reconflow.outputs.package import RunStatus, read_manifest, verify_package
from reconflow.pipeline import run_pipeline
from reconflow.progress import OnProgress, ignore_progress
from reconflow.request import RunRequest
from reconflow.run_lock import sole_attempt
from reconflow.stage_results import RunSummary
from reconflow.storage import LocalStore

STAGES = ("validate", "transforms", "infer", "quality", "preview")


def attempt(dataset: Path, out: Path, on_progress: OnProgress = ignore_progress, **options: Any) -> RunSummary:
    run_id = options.pop("run_id", None)
    request = RunRequest(dataset=str(dataset), out=str(out), preset="draft", **options)
    return run_pipeline(request, on_progress, run_id=run_id)


def stopping_at(stage: str) -> OnProgress:
    """Cancel as soon as a stage reports that it is at work."""

    def stop(step: int, total: int, message: str) -> None:
        if message.startswith(f"{stage}:"):
            raise Cancelled("Enough.", suggestion="Start again.")

    return stop


def hashes(out: Path, run_id: str) -> dict[str, str]:
    """Return what has to be equal in equal runs."""
    return {entry.path: entry.sha256 for entry in verify_package(out / "runs" / run_id).files if not entry.varies}


@pytest.fixture
def counted(stand_in: flow_objects.StandInModel) -> list[int]:
    """Every step that the model takes, in all attempts."""
    steps: list[int] = []
    stand_in.during = steps.append
    return steps


def test_what_was_finished_is_not_repeated_and_the_files_are_the_same(
    dataset: Path, counted: list[int], tmp_path: Path
) -> None:
    whole = attempt(dataset, tmp_path / "whole")
    assert whole.cached_stages == ()
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["runs"]
    for stopped in ("infer", "preview", "package"):
        out = tmp_path / stopped
        counted.clear()
        with pytest.raises(Cancelled):
            attempt(dataset, out, stopping_at(stopped))
        summary = attempt(dataset, out)
        assert summary.cached_stages == (STAGES[: STAGES.index(stopped)] if stopped in STAGES else STAGES)
        assert len(counted) == flow_objects.STEPS
        assert hashes(out, summary.run_id) == hashes(tmp_path / "whole", whole.run_id)


def test_a_published_run_drops_nothing_that_an_unfinished_one_needs_and_the_last_of_them_drops_all(
    dataset: Path, counted: list[int], tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        attempt(dataset, tmp_path, stopping_at("preview"), seed=1)
    kept = set((tmp_path / ".stages").rglob("result.json"))
    assert {path.parts[-3] for path in kept} == {"validate", "transforms", "infer", "quality"}
    other = attempt(dataset, tmp_path, seed=2)
    assert other.cached_stages == ("validate", "transforms", "quality")  # the stand-in does not go by the seed
    assert kept <= set((tmp_path / ".stages").rglob("result.json"))
    assert attempt(dataset, tmp_path, seed=1).cached_stages == ("validate", "transforms", "infer", "quality", "preview")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_other_options_or_another_dataset_are_another_result(dataset: Path, counted: list[int], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        attempt(dataset, tmp_path, stopping_at("quality"))
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    flow_objects.flatten_onto_white(other / "multi_views" / "top.png")
    assert attempt(other, tmp_path).cached_stages == ()
    assert attempt(dataset, tmp_path, object_size_m=2.0).cached_stages == ("validate", "transforms")


def test_a_damaged_result_is_noticed_said_and_made_again(dataset: Path, counted: list[int], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        attempt(dataset, tmp_path, stopping_at("package"))
    (mesh,) = (tmp_path / ".stages" / "infer").rglob("mesh.glb")
    mesh.write_bytes(mesh.read_bytes()[:-1] + b"!")
    summary = attempt(dataset, tmp_path)
    assert summary.cached_stages == ("validate", "transforms", "quality", "preview")
    stored = json.loads((tmp_path / "runs" / summary.run_id / "run.json").read_text("utf-8"))
    (infer,) = (stage for stage in stored["stages"] if stage["stage"] == "infer")
    assert "mesh.glb" in infer["notes"][0]
    assert not infer["cached"]


def test_a_record_of_another_form_is_made_again(dataset: Path, counted: list[int], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        attempt(dataset, tmp_path, stopping_at("package"))
    (record,) = (tmp_path / ".stages" / "transforms").rglob("result.json")
    entry = json.loads(record.read_text("utf-8"))
    del entry["result"]["fov_x_deg"]
    record.write_text(json.dumps(entry), "utf-8")
    assert attempt(dataset, tmp_path).cached_stages == ("validate", "infer", "quality", "preview")


def test_the_same_run_id_again_leaves_nothing_of_the_failed_attempt(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        raise ModelConvergenceError("No.", suggestion="Try again.")

    stand_in.during = fail
    with pytest.raises(ModelConvergenceError):
        attempt(dataset, tmp_path, run_id="abcd1234")
    root = tmp_path / "runs" / "abcd1234"
    assert (root / "error.json").is_file()
    (root / "nvdiffrec").mkdir()
    (root / "nvdiffrec" / ".mesh.glb.x1.part").write_bytes(b"half")
    stand_in.during = None
    attempt(dataset, tmp_path, run_id="abcd1234")
    manifest = verify_package(root)
    assert manifest.status is RunStatus.COMPLETED
    assert not (root / "error.json").exists()
    assert not list(tmp_path.rglob("*.part"))


HOLDER = """
import sys, time
from reconflow.run_lock import sole_attempt
from reconflow.storage import LocalStore
from pathlib import Path
with sole_attempt(lambda: LocalStore(Path(sys.argv[1])).open_workspace("abcd1234")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_process_works_on_a_run_and_a_dead_one_does_not_count(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, cwd=root) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(JobNotReadyError),
            sole_attempt(lambda: store.open_workspace("abcd1234"), patience_s=0.3),
        ):
            pytest.fail("two processes hold one run")
        holder.kill()
    with sole_attempt(lambda: store.open_workspace("abcd1234"), patience_s=5) as workspace:
        store.discard_work(workspace)
        with sole_attempt(lambda: store.open_workspace("abcd1234"), patience_s=0.1):
            pass  # the folder was given up, and the lock with it


def test_two_models_run_in_turn_into_one_package(
    both: dict[str, flow_objects.StandInModel], dataset: Path, tmp_path: Path
) -> None:
    heard: list[float] = []
    summary = attempt(dataset, tmp_path, lambda step, total, message: heard.append(step / total))
    assert heard == sorted(heard)
    assert [found.model for found in summary.models] == ["nvdiffrec", "second"]
    assert "second infer" in summary.stage_seconds
    names = {entry.path for entry in verify_package(tmp_path / "runs" / summary.run_id).files}
    for model in both:
        assert {f"{model}/{name}" for name in ("mesh.glb", "transforms.json", "report.html", "quality.json")} <= names
    stored = json.loads((tmp_path / "runs" / summary.run_id / "run.json").read_text("utf-8"))
    assert {"nvdiffrec quality", "second quality"} <= stored["results"].keys()
    assert stored["isolation"] == "none"
    manifest = read_manifest(tmp_path / "runs" / summary.run_id)
    assert manifest.source is not None
    assert manifest.source.model_versions == dict.fromkeys(both, "stand-in")


@pytest.mark.parametrize("failing", ["nvdiffrec", "second"])
def test_one_models_failure_keeps_the_others_result_and_fails_the_run(
    failing: str, both: dict[str, flow_objects.StandInModel], dataset: Path, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        raise ModelConvergenceError("No.", suggestion="Try again.")

    both[failing].during = fail
    with pytest.raises(ModelConvergenceError):
        attempt(dataset, tmp_path, run_id="abcd1234")
    (other,) = set(both) - {failing}
    manifest = verify_package(tmp_path / "runs" / "abcd1234")
    names = {entry.path for entry in manifest.files}
    assert manifest.status is RunStatus.FAILED
    assert {f"{other}/mesh.glb", f"{other}/report.html", "error.json"} <= names
    assert f"{failing}/mesh.glb" not in names
    error = json.loads((tmp_path / "runs" / "abcd1234" / "error.json").read_text("utf-8"))
    assert (error["code"], error["model"]) == ("MODEL_CONVERGENCE_FAILED", failing)
    both[failing].during = None
    again = attempt(dataset, tmp_path, run_id="abcd1234")
    assert len(again.models) == 2
    assert verify_package(tmp_path / "runs" / "abcd1234").status is RunStatus.COMPLETED


def test_when_every_model_fails_the_first_error_is_the_runs(
    both: dict[str, flow_objects.StandInModel], dataset: Path, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        raise ModelError("No.", suggestion="Try again.")

    for model in both.values():
        model.during = fail
    with pytest.raises(ModelError):
        attempt(dataset, tmp_path, run_id="abcd1234")
    assert read_manifest(tmp_path / "runs" / "abcd1234").status is RunStatus.FAILED


def test_a_dataset_that_changes_under_way_is_noticed(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(dataset, own)
    with pytest.raises(Cancelled):
        attempt(own, tmp_path / "out", stopping_at("quality"))

    def change(step: int, total: int, message: str) -> None:
        if message.startswith("infer:"):
            flow_objects.flatten_onto_white(own / "multi_views" / "top.png")

    with pytest.raises(IncompleteResultsError, match="has changed"):
        attempt(own, tmp_path / "out", change)
