"""The whole model on objects of a hundred pixels: a few steps, stated thresholds, nothing about how it gets there."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.cameras.calibration import Calibration, calibrate
from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.dataset import Dataset
from reconflow.errors import Cancelled, GpuUnavailableError, ModelConvergenceError
from reconflow.geometry.closest import SurfaceLocator
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TexturedMesh
from reconflow.nvdiffrec.model import NvdiffrecModel
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset
from reconflow.quality.metrics import mask_iou, psnr_db, squared_error
from reconflow.reconstruction import Reconstruction
from reconflow.rendering.shade import render_textured
from reconflow.result_frame import choose_result_frame, move_reconstruction
from tests.geometry.shapes import iso_surface
from tests.nvdiffrec.painted_objects import gradient, looking_at_origin, painted, photographed, rig, scaled

SIZE = 96
QUICK = NvdiffrecOptions(preset=Preset.DRAFT, steps=20, resolution=SIZE, texture_size=256, target_faces=3000)


@cache
def kettle() -> TexturedMesh:
    """A body with a handle and a spout, like none of its mirror images."""

    def distance(p: NDArray[np.float64]) -> NDArray[np.float64]:
        body = np.linalg.norm((p - [0, -0.2, 0]) / [0.7, 0.55, 0.6], axis=-1) * 0.55 - 0.55
        ring = np.hypot(np.hypot(p[..., 0] + 0.55, p[..., 1] - 0.25) - 0.4, p[..., 2] - 0.1) - 0.11
        along = np.clip(p[..., 0], 0.4, 0.95)
        spout = np.linalg.norm(p - np.stack([along, 0.7 * along - 0.25, 0 * along + 0.1], axis=-1), axis=-1) - 0.14
        return np.minimum(np.minimum(body, ring), spout)

    return painted(scaled(iso_surface(distance, resolution=64), 0.85), gradient)


def reconstruct(dataset: Dataset, calibration: Calibration, options: NvdiffrecOptions = QUICK) -> Reconstruction:
    model = NvdiffrecModel()
    model.load("cpu")
    return model.reconstruct(dataset, calibration, options)


@cache
def quick_result() -> Reconstruction:
    return reconstruct(*photographed(kettle(), rig(SIZE)))


def compared(result: TexturedMesh, cameras: tuple[PinholeCamera, ...]) -> tuple[float, float]:
    """Mean over the cameras of mask IoU and PSNR (whole picture) against the kettle."""
    ious, psnrs = [], []
    for camera in cameras:
        ours, truth = render_textured(result, camera), render_textured(kettle(), camera)
        ious.append(mask_iou(ours.coverage >= 0.5, truth.coverage >= 0.5))
        psnrs.append(psnr_db(float(squared_error(ours.rgb_srgb, truth.rgb_srgb).mean())))
    return float(np.mean(ious)), float(np.mean(psnrs))


def test_a_few_steps_on_small_pictures_give_a_closed_mesh_that_looks_like_them() -> None:
    result = quick_result()
    facts = mesh_facts(result.textured.mesh)
    assert facts.manifold
    assert facts.components == 1
    assert facts.genus == 1
    assert facts.faces <= 3000
    assert facts.volume == pytest.approx(mesh_facts(kettle().mesh).volume, rel=0.05)
    assert result.textured.base_colour_srgb.shape == (256, 256, 3)
    iou, psnr = compared(result.textured, rig(SIZE))
    assert iou > 0.975
    assert psnr > 36


@pytest.mark.parametrize("bits", [8, 16])
def test_the_surface_lies_where_the_objects_does(bits: int) -> None:
    """A pixel is 0.026 units wide here."""
    result = quick_result() if bits == 8 else reconstruct(*photographed(kettle(), rig(SIZE), bits=bits))
    points = result.textured.mesh.vertices.astype(np.float64)
    nearest, _, _ = SurfaceLocator(kettle().mesh, 0.05).project(points)
    off = np.linalg.norm(nearest - points, axis=1)
    assert off.mean() < 0.006
    assert np.percentile(off, 95) < 0.015


def test_without_any_steps_the_first_surface_is_painted() -> None:
    result = reconstruct(*photographed(kettle(), rig(SIZE)), QUICK.model_copy(update={"steps": 0}))
    assert mesh_facts(result.textured.mesh).manifold
    iou, psnr = compared(result.textured, rig(SIZE))
    assert iou > 0.93
    assert psnr > 25


def test_views_that_were_not_given_look_right_too() -> None:
    eyes = [(2.0, 0.9, 2.0), (-2.2, -0.4, 1.9), (1.1, 1.2, -2.5)]
    cameras = tuple(looking_at_origin(f"novel {k}", eye, SIZE) for k, eye in enumerate(eyes))
    iou, psnr = compared(quick_result().textured, cameras)
    assert iou > 0.965
    assert psnr > 34


def test_it_is_said_how_much_of_the_surface_no_view_sees() -> None:
    assert quick_result().statistics["notes"] == []
    (note,) = reconstruct(*photographed(kettle(), rig(SIZE)[:1] + rig(SIZE)[2:3])).statistics["notes"]
    assert note.startswith("No view sees ")
    assert 20 < int(note.split()[3].rstrip("%")) < 80


def test_the_result_carries_its_cameras_and_facts_without_times() -> None:
    result = quick_result()
    assert [camera.name for camera in result.cameras] == [camera.name for camera in rig(SIZE)]
    assert set(result.statistics["losses"]) >= {"texture_rgb_mse"}
    for name, curve in result.statistics["losses"].items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), name
        assert steps[-1] < 20, name
        assert all(np.isfinite(value) for _, value in curve), name
    assert all(seconds >= 0 for seconds in result.timings_s.values())


def test_the_levels_of_the_fit_stand_beside_its_losses() -> None:
    statistics = quick_result().statistics
    levels = statistics["surface_levels"]
    starts = [level["from_step"] for level in levels]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert [level["with_colour"] for level in levels] == sorted(level["with_colour"] for level in levels)
    colours_from = next(level["from_step"] for level in levels if level["with_colour"])
    assert all((value > 0) == (step >= colours_from) for step, value in statistics["losses"]["rgb"])


def test_progress_never_runs_backwards_and_ends_at_the_total() -> None:
    told: list[tuple[int, int, str]] = []
    dataset, found = photographed(kettle(), rig(SIZE))
    few = QUICK.model_copy(update={"steps": 6})
    NvdiffrecModel().reconstruct(dataset, found, few, lambda *report: told.append(report))
    fractions = [step / total for step, total, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert len({message for _, _, message in told}) >= 3


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
def test_cancelling_stops_at_the_next_report(fraction: float) -> None:
    calls_after = 0
    stopped = False

    def cancel(step: int, total: int, message: str) -> None:
        nonlocal calls_after, stopped
        calls_after += stopped
        if step >= fraction * total:
            stopped = True
            raise Cancelled("Stopped.", suggestion="Start again.")

    dataset, found = photographed(kettle(), rig(SIZE))
    with pytest.raises(Cancelled):
        NvdiffrecModel().reconstruct(dataset, found, QUICK.model_copy(update={"steps": 6}), cancel)
    assert stopped
    assert calls_after == 0


def test_reports_come_often_enough_to_cancel_between_steps() -> None:
    told: list[int] = []
    dataset, found = photographed(kettle(), rig(SIZE))
    NvdiffrecModel().reconstruct(
        dataset, found, QUICK.model_copy(update={"steps": 12}), lambda step, total, message: told.append(step)
    )
    assert len(told) >= 12


def test_without_depth_the_silhouettes_are_met() -> None:
    result = reconstruct(*photographed(kettle(), rig(SIZE), bits=None))
    facts = mesh_facts(result.textured.mesh)
    assert facts.manifold
    assert facts.components == 1
    iou, psnr = compared(result.textured, rig(SIZE))
    assert iou > 0.97
    assert psnr > 34


def test_any_number_of_posed_views_with_metric_depth_in_a_z_up_world() -> None:
    """Nine views around the kettle, the world turned so that +z is up; the result is turned back."""
    y_up_from_z_up = np.eye(4)
    y_up_from_z_up[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    turns = np.arange(7) * 2 * np.pi / 7
    eyes = [(3 * np.cos(t), 0.8 - 1.6 * (k % 2), 3 * np.sin(t)) for k, t in enumerate(turns)]
    eyes += [(0.3, 3.0, 0.2), (0.2, -3.0, 0.3)]
    y_up = tuple(looking_at_origin(f"view {k}", eye, SIZE) for k, eye in enumerate(eyes))
    dataset, _ = photographed(kettle(), y_up, metric=True, world_up="+z")
    z_up = tuple(
        PinholeCamera(c.name, c.focal_px, c.centre_px, c.cam_from_world @ y_up_from_z_up, c.image_hw) for c in y_up
    )
    dataset = Dataset(dataset.name, dataset.layout, dataset.views, z_up, dataset.digest, "+z")
    result = reconstruct(dataset, calibrate(dataset))
    frame = choose_result_frame(result.textured.mesh, cameras_given=True, world_up=dataset.world_up)
    moved = move_reconstruction(result, frame)
    assert mesh_facts(moved.textured.mesh).genus == 1
    iou, psnr = compared(moved.textured, y_up)
    assert iou > 0.97
    assert psnr > 34


def test_views_of_nothing_in_common_end_in_a_convergence_error() -> None:
    cameras = rig(SIZE)[:2]
    shifted = [painted(scaled(kettle().mesh, 0.3), gradient, 64) for _ in cameras]
    for textured, x in zip(shifted, (-0.7, 0.7), strict=True):
        textured.mesh.vertices[:, 0] += x
    datasets = [photographed(textured, cameras) for textured in shifted]
    mixed = Dataset("mixed", datasets[0][0].layout, (datasets[0][0].views[0], datasets[1][0].views[1]), cameras, "0")
    found = datasets[0][1]
    with pytest.raises(ModelConvergenceError):
        reconstruct(mixed, found)


def test_another_device_than_the_cpu_is_refused_by_name() -> None:
    with pytest.raises(GpuUnavailableError, match="cuda:0"):
        NvdiffrecModel().load("cuda:0")


DIGEST = """
import hashlib
from tests.nvdiffrec.test_model import quick_result
result = quick_result().textured
digest = hashlib.sha256()
for array in (result.mesh.vertices, result.mesh.faces, result.uvs, result.uv_faces, result.base_colour_srgb):
    digest.update(array.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_fresh_processes_with_one_and_two_threads_make_the_same_mesh_and_texture() -> None:
    digests = []
    for threads in ("1", "2"):
        limits = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads
        )
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, **limits, "PYTHONHASHSEED": threads},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(done.stdout.strip())
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]
