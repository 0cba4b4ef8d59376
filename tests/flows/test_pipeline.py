"""The stages without Prefect: what a run leaves behind when it succeeds, fails, is cancelled or is repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import flow_objects
import pytest

from reconflow import reconstruct_folder
from reconflow.errors import (
    Cancelled,
    ErrorCode,
    IncompleteResultsError,
    InputError,
    MemoryExhaustedError,
    QualityThresholdError,
    ReconflowError,
    ValidationFailedError,
)
from reconflow.outputs.package import RunStatus, read_manifest, verify_package
from reconflow.progress import ignore_progress
from reconflow.resources import GIB, Needs, check_memory


def only_run(out: Path) -> Path:
    """Return the one run's folder, after checking that nothing unfinished lies around."""
    assert not (out / ".work").exists()
    assert not list(out.rglob("*.part"))
    (run,) = (out / "runs").iterdir()
    return run


def test_five_lines_of_python_leave_a_verified_result(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    heard: list[float] = []
    result = reconstruct_folder(
        dataset, tmp_path, preset="draft", on_progress=lambda step, total, message: heard.append(step / total)
    )
    assert result.status == "normal"
    assert result.fov_x_deg == pytest.approx(flow_objects.FOV_DEG, abs=2.0)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    manifest = verify_package(only_run(tmp_path))
    assert manifest.status is RunStatus.COMPLETED
    stored = json.loads((only_run(tmp_path) / "run.json").read_text("utf-8"))
    assert [stage["stage"] for stage in stored["stages"]] == list(result.stage_seconds)
    assert stored["peak_rss_bytes"] > 50_000_000
    assert Path(result.mesh).is_file()
    assert Path(result.report).is_file()


def test_equal_runs_differ_only_in_the_files_that_say_so(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    for out in ("a", "b"):
        reconstruct_folder(dataset, tmp_path / out, preset="draft")
    first, second = (read_manifest(only_run(tmp_path / out)) for out in ("a", "b"))
    assert first.facts == second.facts
    kept = [{entry.path: entry.sha256 for entry in run.files if not entry.varies} for run in (first, second)]
    assert kept[0] == kept[1]
    assert "nvdiffrec/mesh.glb" in kept[0]


def test_a_missing_picture_fails_the_run_and_is_named(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    (broken / "multi_views" / "top.png").unlink()
    with pytest.raises(InputError) as caught:
        reconstruct_folder(broken, tmp_path / "out")
    run = only_run(tmp_path / "out")
    stored = json.loads((run / "error.json").read_text("utf-8"))
    assert stored["code"] == caught.value.code
    assert "top" in stored["message"]
    assert stored["finished_stages"] == []
    assert read_manifest(run).status is RunStatus.FAILED
    assert sorted(path.name for path in run.iterdir()) == sorted(
        ["error.json", "manifest.json", "run.json", f"{run.name}.zip"]
    )


def test_poor_quality_fails_the_run_after_everything_is_stored(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    stand_in.result = flow_objects.coloured_boxes(scale=0.1)
    with pytest.raises(QualityThresholdError):
        reconstruct_folder(dataset, tmp_path)
    run = only_run(tmp_path)
    manifest = verify_package(run)
    assert manifest.status is RunStatus.FAILED
    assert {"error.json", "nvdiffrec/mesh.glb", "report.html"} <= {entry.path for entry in manifest.files}
    assert json.loads((run / "error.json").read_text("utf-8"))["code"] == "QUALITY_THRESHOLD_FAILED"


def test_cancelling_at_a_step_ends_the_run_there(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise Cancelled("Enough.", suggestion="Start again.")

    stand_in.during = stop
    with pytest.raises(Cancelled):
        reconstruct_folder(dataset, tmp_path)
    stored = json.loads((only_run(tmp_path) / "error.json").read_text("utf-8"))
    assert stored["code"] == "CANCELLED"
    assert stored["finished_stages"] == ["validate", "transforms", "load"]


def test_an_unforeseen_fault_gets_a_code_and_shows_no_paths(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        raise KeyError(str(tmp_path))

    stand_in.during = fail
    with pytest.raises(ReconflowError) as caught:
        reconstruct_folder(dataset, tmp_path)
    assert caught.value.code is ErrorCode.UNKNOWN_ERROR
    assert isinstance(caught.value.__cause__, KeyError)
    stored = (only_run(tmp_path) / "error.json").read_text("utf-8")
    assert str(tmp_path) not in stored


def test_a_damaged_intermediate_file_is_noticed(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    def damage(step: int) -> None:
        (path,) = (tmp_path / ".work").rglob("cameras.npz")
        path.write_bytes(path.read_bytes()[:-1] + b"!")

    stand_in.during = damage
    with pytest.raises(IncompleteResultsError, match=r"cameras\.npz"):
        reconstruct_folder(dataset, tmp_path)


def test_options_out_of_range_are_refused_together() -> None:
    with pytest.raises(ValidationFailedError) as caught:
        reconstruct_folder("nowhere", steps=-1, seed=-1, colour="red")
    assert caught.value.details["options"] == ["steps", "seed", "colour"]


def test_a_run_that_cannot_fit_into_memory_is_not_started() -> None:
    check_memory(Needs(memory_bytes=2 * GIB, disk_bytes=0), None)
    with pytest.raises(MemoryExhaustedError, match=r"2\.0 GiB .* 1\.0 GiB"):
        check_memory(Needs(memory_bytes=2 * GIB, disk_bytes=0), GIB)


def test_a_machine_without_room_stops_before_the_model_starts(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconflow.stages.available_memory_bytes", lambda: 1)
    stand_in.during = pytest.fail
    with pytest.raises(MemoryExhaustedError):
        reconstruct_folder(dataset, tmp_path, on_progress=ignore_progress)
    assert json.loads((only_run(tmp_path) / "error.json").read_text("utf-8"))["code"] == "MEMORY_EXHAUSTED"


def test_a_calibration_survives_its_way_between_stages(dataset: Path, tmp_path: Path) -> None:
    from reconflow.cameras.calibration import calibrate
    from reconflow.datasets.loading import load_dataset
    from reconflow.stage_files import load_calibration, save_calibration

    calibration = calibrate(load_dataset(dataset))
    save_calibration(tmp_path / "cameras.npz", calibration)
    loaded = load_calibration(tmp_path / "cameras.npz")
    for name in ("depth_scales", "fov_x_rad", "confidence", "method", "residuals", "photo_shifts", "warnings"):
        assert getattr(loaded, name) == getattr(calibration, name)
    for before, after in zip(calibration.cameras, loaded.cameras, strict=True):
        assert (before.name, before.focal_px, before.centre_px, before.image_hw) == (
            after.name, after.focal_px, after.centre_px, after.image_hw,
        )  # fmt: skip
        assert (before.cam_from_world == after.cam_from_world).all()
