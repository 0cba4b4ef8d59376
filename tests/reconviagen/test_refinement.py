"""The generated mesh as the start of nvdiffrec's fit: known shapes, disturbed, stand for what the networks give."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks._geometry_metrics import GeometryScores, compare_surfaces
from reconflow.cameras.calibration import Calibration
from reconflow.checkpoints import FileCheckpoint
from reconflow.colour import srgb_from_linear
from reconflow.datasets.dataset import Dataset
from reconflow.errors import Cancelled, ValidationFailedError
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_from_vector
from reconflow.nvdiffrec.initial import smooth_surface
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset
from reconflow.progress import ignore_progress
from reconflow.quality.metrics import psnr_db, squared_error
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.export import Generated, Placed, gaussian_painter, place
from reconflow.reconviagen.model import ReconvGenModel
from reconflow.reconviagen.options import RandomWeights, ReconviagenOptions, ReconviagenSettings, Refinement
from reconflow.reconviagen.refinement import fit_for_fitting, refine, refinement_notes
from reconflow.rendering.shade import render_textured
from reconflow.request import make_request
from tests.geometry.shapes import joined
from tests.nvdiffrec.painted_objects import gradient, looking_at_origin, photographed, rig
from tests.nvdiffrec.test_checkpoints import DyingCheckpoint, Killed, expect_equal
from tests.reconviagen.test_export import SMALL, surface_gaussians, truth
from tests.reconviagen.test_inner_walls import ball

SIZE = 128
FIT = NvdiffrecOptions(preset=Preset.DRAFT, steps=30, resolution=SIZE, texture_size=256, target_faces=4000).settings()
MOVE = Similarity(0.5, rotation_from_vector(np.array([0.2, 0.1, 1.4])), np.array([0.02, -0.01, 0.03]))


@cache
def views() -> tuple[Dataset, Calibration]:
    return photographed(truth(), rig(SIZE))


@cache
def disturbed() -> Generated:
    """The true object smoothed and stretched by a few per cent, in the generator's frame."""
    smooth = smooth_surface(truth().mesh, 30.0)
    mesh = TriangleMesh((smooth.vertices * np.array([1.05, 1.0, 0.95])).astype(np.float32), smooth.faces)
    colours = srgb_from_linear(gradient(mesh.vertices.astype(np.float64))).astype(np.float32)
    moved = MOVE.apply_to_mesh(mesh)
    return Generated(moved, colours, surface_gaussians(moved, colours, 0.02))


@cache
def placed() -> Placed:
    return place(disturbed(), *views(), SMALL, ignore_progress, {})


@cache
def refined(steps: int) -> Reconstruction:
    """With no steps this is the start itself, painted."""
    paint = gaussian_painter(disturbed().gaussians, placed().world_from_generator, SMALL)
    return refine(placed(), *views(), FIT.model_copy(update={"steps": steps}), paint)


def shape(result: Reconstruction) -> GeometryScores:
    return compare_surfaces(result.textured.mesh, truth().mesh, rig(SIZE), samples=20_000)


def psnr(result: Reconstruction) -> float:
    """Of views that nothing was fitted to."""
    eyes = [(2.0, 0.9, 2.0), (-2.2, -0.4, 1.9), (1.1, 1.2, -2.5)]
    cameras = [looking_at_origin(f"novel {k}", eye, SIZE) for k, eye in enumerate(eyes)]
    pairs = [(render_textured(result.textured, c).rgb_srgb, render_textured(truth(), c).rgb_srgb) for c in cameras]
    return float(np.mean([psnr_db(float(squared_error(*pair).mean())) for pair in pairs]))


def test_refining_brings_a_disturbed_object_close_to_the_true_one() -> None:
    start, result = refined(0), refined(40)
    before, after = shape(start), shape(result)
    assert before.fscore_1pct < 0.6
    assert after.fscore_1pct > before.fscore_1pct + 0.2
    assert after.chamfer < 0.65 * before.chamfer
    assert psnr(result) > psnr(start) + 3


def test_a_refined_object_is_closed_keeps_its_budget_and_tells_where_it_comes_from() -> None:
    result = refined(40)
    facts = mesh_facts(result.textured.mesh)
    assert facts.manifold
    assert facts.faces <= FIT.target_faces
    assert result.textured.base_colour_srgb.shape == (256, 256, 3)
    statistics = result.statistics
    assert statistics["refinement"]["from"] == "the generated mesh, aligned with the views"
    assert statistics["refinement"]["settings"]["steps"] == 40
    assert 0.9 < statistics["refinement"]["mask_iou"] < 0.999
    assert "started from the generated mesh" in statistics["notes"][0]
    assert len(statistics["notes"]) == 1
    assert statistics["losses"]["silhouette"][-1][0] == 39
    assert 0 < statistics["texture"]["gaussian_share"] < 0.5


def test_cancelling_a_refinement_stops_it_at_the_next_report() -> None:
    told: list[str] = []

    def cancel(step: int, total: int, message: str) -> None:
        told.append(message)
        if message == "fitting the surface" and step > 0.15 * total:
            raise Cancelled("Stopped.", suggestion="Start again.")

    paint = gaussian_painter(disturbed().gaussians, placed().world_from_generator, SMALL)
    with pytest.raises(Cancelled):
        refine(placed(), *views(), FIT, paint, cancel)
    assert told[-1] == "fitting the surface"
    assert "unwrapping the surface" not in told


@pytest.mark.slow
def test_a_refinement_that_was_killed_goes_on_without_generating_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its start was kept, and again in the middle of its fit."""
    options = ReconviagenOptions(
        preset=Preset.DRAFT, random_weights=RandomWeights.TINY, structure_steps=2, latent_steps=2, seed=3,
        refine=Refinement.NVDIFFREC, steps=8, resolution=64, texture_size=128, target_faces=1500,
    )  # fmt: skip
    whole, path = ReconvGenModel().reconstruct(*views(), options), tmp_path / "checkpoint.npz"
    with pytest.raises(Killed):
        ReconvGenModel().reconstruct(*views(), options, checkpoint=DyingCheckpoint(path, 1))
    monkeypatch.setattr(ReconvGenModel, "_generate", None)
    with pytest.raises(Killed):
        ReconvGenModel().reconstruct(*views(), options, checkpoint=DyingCheckpoint(path, 2))
    resumed = FileCheckpoint(path)
    result = ReconvGenModel().reconstruct(*views(), options, checkpoint=resumed)
    assert resumed.resumed
    expect_equal(result, whole)
    assert result.gaussians is not None
    assert whole.gaussians is not None
    for name, values in vars(whole.gaussians).items():
        assert np.array_equal(getattr(result.gaussians, name), values), name


def without_faces_near(mesh: TriangleMesh, point: tuple[float, float, float], reach: float) -> TriangleMesh:
    centres = mesh.vertices[mesh.faces].mean(axis=1)
    return TriangleMesh(mesh.vertices, mesh.faces[np.linalg.norm(centres - np.array(point), axis=1) > reach])


def test_the_start_keeps_its_pieces_loses_specks_and_small_holes_and_is_a_manifold() -> None:
    speck = TriangleMesh((0.02 * ball(0.4).vertices + 0.9).astype(np.float32), ball(0.4).faces)
    far = TriangleMesh(ball(0.4).vertices + np.float32(1.5), ball(0.4).faces)
    pinched = joined(without_faces_near(ball(0.4), (0.4, 0, 0), 0.1), far, speck)
    tripled = TriangleMesh(pinched.vertices, np.concatenate([pinched.faces, pinched.faces[:1]]))
    start = mesh_facts(fit_for_fitting(tripled, 3000))
    assert start.manifold
    assert start.components == 2
    assert 2700 < start.faces <= 3000


def test_openings_that_cannot_be_closed_stay_and_are_told() -> None:
    """Of a finely cut half ball, whose rim is longer than what is closed."""
    whole = ball(0.4, resolution=128)
    half = TriangleMesh(whole.vertices, whole.faces[whole.vertices[whole.faces].mean(axis=1)[:, 2] > 0])
    start = mesh_facts(fit_for_fitting(half, 3000))
    assert start.boundary_edges > 250
    assert start.non_manifold_edges == 0
    notes = refinement_notes(placed(), start)
    assert f"{start.boundary_edges} boundary edges" in notes[-1]


def test_an_object_whose_placement_is_doubtful_says_so() -> None:
    found = placed().found
    doubtful = replace(found, ambiguous=True, residuals={**found.residuals, "mask_iou": 0.55})
    notes = refinement_notes(replace(placed(), found=doubtful), mesh_facts(placed().mesh))
    assert placed().notes() == []
    assert any("IoU of 0.55" in note for note in notes)
    assert any("orientation" in note for note in notes)
    assert "compare with the model nvdiffrec" in notes[-1]


@pytest.mark.parametrize("written", ["nvdiffrec", Refinement.NVDIFFREC])
def test_there_is_nothing_to_refine_without_reconviagen(written: str) -> None:
    with pytest.raises(ValidationFailedError, match="refine is 'nvdiffrec': there is nothing to refine") as caught:
        make_request(dataset="mug", refine=written)
    assert caught.value.details["options"] == ["refine"]
    for model in ("reconviagen", "both"):
        request = make_request(dataset="mug", model=model, refine="nvdiffrec")
        assert request.generation_options().refine is Refinement.NVDIFFREC
        assert make_request(dataset="mug", model=model).generation_options().settings().refinement is None


def test_options_of_the_fit_count_for_a_refinement_and_for_it_alone() -> None:
    """Options are what a kept result is found by."""
    plain = make_request(dataset="mug", model="reconviagen")
    assert plain.options() == make_request(dataset="mug", model="reconviagen", steps=7, resolution=99).options()
    refining = make_request(dataset="mug", model="reconviagen", refine="nvdiffrec", steps=7, resolution=99)
    assert refining.options() != plain.options()
    settings = refining.options().settings()
    assert isinstance(settings, ReconviagenSettings)
    assert settings.refinement is not None
    assert (settings.refinement.steps, settings.refinement.resolution) == (7, 99)
    assert settings.texture_size == settings.refinement.texture_size
