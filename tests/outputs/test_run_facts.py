"""What a run tells of itself: where its cameras came from, its photos' shifts, its engines."""

from dataclasses import replace
from pathlib import Path

import pytest

from reconflow import packaging
from reconflow.cameras.calibration import Calibration
from reconflow.cameras.photo_alignment import PhotoShift
from reconflow.datasets.dataset import Dataset
from reconflow.outputs.package import ScaleSource
from reconflow.packaging import RunFacts, calibration_summary, manifest_facts, write_run_report
from reconflow.quality.measure import measure_quality
from reconflow.reconstruction import Reconstruction
from reconflow.request import make_request
from reconflow.stage_results import CamerasResult, DatasetResult, FileRef, ModelResult, StageRecord
from tests.outputs.finished_run import RIG, write_run
from tests.outputs.objects import labelled_box
from tests.quality.test_measure import dataset_of

RECORD = StageRecord(stage="transforms", seconds=1.0, cpu_seconds=1.0, peak_rss_bytes=3_000_000_000)
SHIFTS = (PhotoShift((3.0, -4.0), 1.0, 2.0), *[None] * 5)
GIVEN = Calibration(RIG, (None,) * 6, 0.9, 0.0, 1.0, "given", {}, SHIFTS)
FOUND = replace(GIVEN, method="depth", fov_uncertainty_deg=0.25, confidence=0.68)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return replace(dataset_of(labelled_box(2), RIG), cameras=None)


def test_the_report_says_who_gave_the_cameras_or_how_they_were_found(dataset: Dataset) -> None:
    supplied = replace(dataset, cameras=RIG)
    assert "came with the dataset" in calibration_summary(GIVEN, supplied).source
    assert "given by the user" in calibration_summary(GIVEN, dataset).source
    assert "depth renders" in calibration_summary(FOUND, dataset).source
    assert "the silhouettes." in calibration_summary(replace(FOUND, method="silhouettes"), dataset).source


def test_how_sure_is_said_once_and_only_of_what_was_found(dataset: Dataset) -> None:
    assert calibration_summary(GIVEN, dataset).confidence == ""
    assert calibration_summary(FOUND, dataset).confidence == "known to ±0.25°, confidence 0.68"


def run_facts(*models: ModelResult) -> RunFacts:
    file = FileRef(path="cameras.npz", sha256="0" * 64, bytes=1)
    read = DatasetResult(
        record=RECORD,
        location="box",
        name="box",
        layout="pictures",
        digest="0" * 64,
        views=tuple(camera.name for camera in RIG),
        image_hw=(64, 64),
        pixels=6 * 64 * 64,
        cameras_given=False,
        mask_sources={},
        world_up="+y",
        file_hashes={},
        warnings=(),
    )
    cameras = CamerasResult(
        record=RECORD,
        file=file,
        method="given",
        fov_x_deg=41.3,
        fov_uncertainty_deg=0.0,
        confidence=1.0,
        warnings=(),
        photo_shifts_px={"front": (3.0, -4.0)},
    )
    return RunFacts(make_request(dataset="box", seed=7, fov_deg=41.3), [read, cameras, *models], {})


def test_the_manifest_tells_options_seed_engines_and_photo_shifts() -> None:
    fitted = ModelResult(
        record=RECORD, name="nvdiffrec", version="1", device="cpu", needed_memory_bytes=1, available_memory_bytes=2
    )
    facts = manifest_facts(run_facts(fitted))
    assert facts is not None
    assert (facts.seed, facts.options["seed"], facts.options["fov_deg"]) == (7, 7, 41.3)
    assert facts.options["settings"]["texture_size"] > 0
    assert facts.engines == {"device": "cpu", "rendering": "numba", "atlas": "projective charts"}
    assert facts.photo_shifts == {"front": (3.0, -4.0)}


def test_models_on_different_devices_are_told_apart() -> None:
    models = [
        ModelResult(
            record=RECORD, name=name, version="1", device=device, needed_memory_bytes=1, available_memory_bytes=2
        )
        for name, device in (("nvdiffrec", "cpu"), ("reconviagen", "cuda"))
    ]
    facts = manifest_facts(run_facts(*models))
    assert facts is not None
    assert facts.engines["device"] == "nvdiffrec: cpu, reconviagen: cuda"


def test_the_report_tells_when_photos_and_depth_disagree_and_memory_in_gigabytes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "describe_machine", lambda: {"memory_available_bytes": 24_193_347_584})
    box = labelled_box(2)
    layout = write_run(tmp_path, "aaaaaaa1", box, 1.0)
    quality = measure_quality(layout.glb, RIG, dataset)

    def page(*, photos_match_depth: bool) -> str:
        statistics = {
            "photos_match_depth": photos_match_depth,
            "losses": {"rgb": [[0, 0.0], [1, 0.5], [2, 0.25]], "texture_rgb_mse": [[0, 0.5], [1, 0.25]]},
            "surface_levels": [{"from_step": 1, "longest_side": 96, "with_colour": True}],
        }
        result = Reconstruction(box, RIG, statistics, {})
        write_run_report(layout, run_facts(), dataset, GIVEN, result, quality, ScaleSource.UNIT_RADIUS)
        return layout.report.read_text(encoding="utf-8")

    shifted = page(photos_match_depth=False)
    assert "The photos are shifted against their depth renders" in shifted
    assert "24.2 GB" in shifted
    assert "3.00 GB" in shifted
    assert shifted.count("96 px, colour") == 1
    assert "The photos are shifted against" not in page(photos_match_depth=True)
