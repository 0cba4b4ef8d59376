from functools import cache

import numpy as np
import pytest

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.depth import SurfaceObservation, observe
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.nvdiffrec.initial import initial_surface, smooth_surface
from reconflow.nvdiffrec.pieces import keep_shown_pieces
from tests.geometry.shapes import SOLIDS, iso_surface, joined
from tests.nvdiffrec.painted_objects import grey, painted, photographed, rig, scaled


@cache
def solid(name: str) -> TriangleMesh:
    return scaled(iso_surface(SOLIDS[name][0], resolution=40), 0.8)


def observed(mesh: TriangleMesh, *, bits: int | None = 8) -> list[SurfaceObservation]:
    dataset, calibration = photographed(painted(mesh, grey, 128), rig(96), bits=bits)
    listed = zip(dataset.views, calibration.cameras, calibration.depth_scales, strict=True)
    return [observe(view, camera, scale) for view, camera, scale in listed]


@pytest.mark.parametrize("name", ["bumpy_sphere", "torus", "box_with_hole"])
@pytest.mark.parametrize("budget", [800, 4000])
def test_the_first_surface_is_one_closed_piece_of_the_right_shape_within_its_budget(name: str, budget: int) -> None:
    distance, genus = SOLIDS[name]
    mesh = initial_surface(observed(solid(name)), 64, budget)
    facts = mesh_facts(mesh)
    assert facts.manifold
    assert facts.components == 1
    assert facts.degenerate_faces == 0
    assert facts.genus == genus
    assert 0.7 * budget < facts.faces <= budget
    assert facts.volume == pytest.approx(mesh_facts(solid(name)).volume, rel=0.08)
    off = np.abs(0.8 * distance(mesh.vertices.astype(np.float64) / 0.8))
    assert off.mean() < 0.02


def test_silhouettes_alone_give_a_closed_first_surface() -> None:
    facts = mesh_facts(initial_surface(observed(solid("torus"), bits=None), 64, 2000))
    assert facts.manifold
    assert facts.components == 1
    assert facts.genus == 1


def ball(radius: float, *centre: float) -> TriangleMesh:
    mesh = scaled(iso_surface(SOLIDS["sphere"][0], resolution=32), radius)
    return TriangleMesh(mesh.vertices + np.float32(centre), mesh.faces)


@pytest.mark.parametrize("bits", [8, None])
def test_two_pieces_that_views_show_apart_both_stay(bits: int | None) -> None:
    pair = joined(ball(0.4, -0.45, 0.1, -0.3), ball(0.25, 0.5, -0.2, 0.3))
    mesh = initial_surface(observed(pair, bits=bits), 64, 3000)
    facts = mesh_facts(mesh)
    assert (facts.components, facts.genus) == (2, 0)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), pair.vertices.max(axis=0), atol=0.05)


def test_floaters_are_left_out() -> None:
    body, inside, behind = ball(0.5, 0, 0, 0), ball(0.1, 0, 0, 0), ball(0.1, 0.8, 0.8, 0.8)
    carved = joined(body, inside, behind)
    kept = keep_shown_pieces(carved, observed(body))
    assert mesh_facts(kept).components == 1
    assert max(mesh_facts(kept).bbox_max) < 0.6
    one_view_only = [*observed(body)[1:], observed(joined(body, behind))[0]]
    assert mesh_facts(keep_shown_pieces(carved, one_view_only)).components == 1
    assert mesh_facts(keep_shown_pieces(carved, observed(joined(body, behind)))).components == 2


def test_views_that_show_nothing_in_common_are_refused() -> None:
    apart = [
        TriangleMesh(
            np.float32(0.3) * solid("bumpy_sphere").vertices + np.float32([x, 0, 0]), solid("bumpy_sphere").faces
        )
        for x in (-0.7, 0.7)
    ]
    mixed = [observed(apart[0])[0], observed(apart[1])[1]]
    with pytest.raises(ModelConvergenceError):
        initial_surface(mixed, 48, 1000)


def test_smoothing_takes_noise_off_and_leaves_the_shape() -> None:
    ball = iso_surface(SOLIDS["sphere"][0], resolution=32)
    noise = 0.02 * np.random.default_rng(0).normal(size=ball.vertices.shape)
    rough = TriangleMesh((ball.vertices + noise).astype(np.float32), ball.faces)
    smooth = smooth_surface(rough, 2.0)
    np.testing.assert_array_equal(smooth.faces, rough.faces)
    spread = [np.std(np.linalg.norm(m.vertices, axis=1)) for m in (rough, smooth)]
    assert spread[1] < 0.6 * spread[0]
    assert np.linalg.norm(smooth.vertices, axis=1).mean() == pytest.approx(1, abs=0.01)
