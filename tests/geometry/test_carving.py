import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.datasets.dataset import DepthImage, MaskSource, View
from reconflow.errors import ErrorCode, ModelConvergenceError
from reconflow.geometry.carving import Grid, bounding_grid, carve, extract_surface, visible_bounds
from reconflow.geometry.depth import SurfaceObservation, observe
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.rendering.shade import render_depth
from tests.geometry.shapes import SOLIDS, iso_surface

SIZE = 128
RIG = six_axis_rig(0.9, 3.2, (SIZE, SIZE))


def seen_by(mesh: TriangleMesh, camera: PinholeCamera, *, bits: int | None = 16) -> SurfaceObservation:
    depth = render_depth(mesh, camera)
    alpha = (depth > 0).astype(np.float32)
    image, scale = None, None
    if bits is not None:
        scale = float(depth.max())
        top = 2**bits - 1
        image = DepthImage(np.round(depth * (top / scale)).astype(np.uint16), top)
    rgb = np.full((*alpha.shape, 3), 90, np.uint8)
    return observe(View(camera.name, rgb, alpha, MaskSource.ALPHA, image), camera, scale)


def carved(observations: list[SurfaceObservation], resolution: int = 64) -> TriangleMesh:
    grid = bounding_grid(observations, resolution)
    return extract_surface(carve(observations, grid), grid)


def distances(mesh: TriangleMesh, solid: str) -> NDArray[np.float64]:
    return SOLIDS[solid][0](mesh.vertices.astype(np.float64))


@pytest.mark.parametrize("bits", [8, 16])
def test_six_depth_renders_carve_a_sphere_of_the_right_radius(bits: int) -> None:
    truth = iso_surface(SOLIDS["sphere"][0])
    mesh = carved([seen_by(truth, camera, bits=bits) for camera in RIG])
    facts = mesh_facts(mesh)
    assert facts.manifold
    assert facts.components == 1
    assert facts.genus == 0
    radii = np.linalg.norm(mesh.vertices.astype(np.float64), axis=1)
    assert np.median(radii) == pytest.approx(1, abs=0.01)
    assert np.percentile(np.abs(radii - 1), 99) < 0.04
    assert facts.volume == pytest.approx(4 / 3 * np.pi, rel=0.03)


def test_finer_depth_carves_a_more_exact_surface() -> None:
    truth = iso_surface(SOLIDS["bumpy_sphere"][0])
    coarse, fine = (carved([seen_by(truth, camera, bits=bits) for camera in RIG], 96) for bits in (8, 16))
    errors = [np.abs(distances(mesh, "bumpy_sphere")).mean() for mesh in (coarse, fine)]
    assert errors[1] < errors[0]
    assert mesh_facts(fine).components == 1


@pytest.mark.parametrize("solid", ["torus", "box_with_hole", "double_torus"])
def test_carving_keeps_the_holes_that_views_look_through(solid: str) -> None:
    truth = iso_surface(SOLIDS[solid][0])
    mesh = carved([seen_by(truth, camera) for camera in RIG])
    facts = mesh_facts(mesh)
    assert facts.manifold
    assert facts.genus == SOLIDS[solid][1]
    assert np.median(np.abs(distances(mesh, solid))) < 0.02


@pytest.mark.parametrize("bits", [8, 16])
def test_a_thin_post_survives(bits: int) -> None:
    """Four pixels wide in the pictures."""
    truth = iso_surface(SOLIDS["thin_post"][0], resolution=64)
    facts = mesh_facts(carved([seen_by(truth, camera, bits=bits) for camera in RIG], 96))
    assert facts.components == 1
    assert facts.genus == 0
    assert facts.bbox_max[1] == pytest.approx(1, abs=0.03)
    assert facts.volume == pytest.approx(mesh_facts(truth).volume, rel=0.06)


def test_front_faces_look_outwards() -> None:
    mesh = carved([seen_by(iso_surface(SOLIDS["torus"][0]), camera) for camera in RIG])
    facts = mesh_facts(mesh)
    assert facts.consistent_winding
    assert facts.volume == pytest.approx(2 * np.pi**2 * 0.8 * 0.3**2, rel=0.06)


def test_depth_carves_the_hollow_that_silhouettes_cannot_show() -> None:
    """A bowl: every silhouette is full, only the top view's depth sees inside."""

    def bowl(p: NDArray[np.float64]) -> NDArray[np.float64]:
        ball = np.linalg.norm(p, axis=-1) - 1
        return np.maximum(np.maximum(ball, p[..., 1]), 0.8 - np.linalg.norm(p, axis=-1))

    truth = iso_surface(bowl, resolution=64)
    inside_the_hollow = Grid(np.array([0.0, -0.4, 0.0]), 1.0, (1, 1, 1))
    with_depth = carve([seen_by(truth, camera) for camera in RIG], inside_the_hollow)
    silhouettes = carve([seen_by(truth, camera, bits=None) for camera in RIG], inside_the_hollow)
    assert with_depth.item() == pytest.approx(0.4, abs=0.03)
    assert silhouettes.item() < 0
    hulls = [mesh_facts(carved([seen_by(truth, c, bits=b) for c in RIG])) for b in (16, None)]
    assert hulls[0].volume == pytest.approx(2 / 3 * np.pi * (1 - 0.8**3), rel=0.1)
    assert hulls[1].volume > 0.95 * 2 / 3 * np.pi


def test_silhouettes_alone_bound_the_object_tightly() -> None:
    truth = iso_surface(SOLIDS["box_with_hole"][0])
    observations = [seen_by(truth, camera, bits=None) for camera in RIG]
    low, high = visible_bounds(observations)
    half = np.array([0.9, 0.7, 0.5])
    assert (low < -0.97 * half).all()
    assert (high > 0.97 * half).all()
    assert (high - low).max() < 3.0
    facts = mesh_facts(carved(observations))
    assert facts.manifold
    assert facts.genus == 1
    assert (np.array(facts.bbox_min) > -1.2 * half).all()
    assert (np.array(facts.bbox_max) < 1.2 * half).all()


def test_the_hull_of_silhouettes_contains_the_object() -> None:
    truth = iso_surface(SOLIDS["bumpy_sphere"][0])
    observations = [seen_by(truth, camera, bits=None) for camera in RIG]
    inner = (0.97 * truth.vertices[::50]).astype(np.float64)
    values = [carve(observations, Grid(point, 1.0, (1, 1, 1))).item() for point in inner]
    assert max(values) < 0


def test_the_grid_encloses_what_the_views_see_with_a_margin() -> None:
    observations = [seen_by(iso_surface(SOLIDS["thin_post"][0]), camera) for camera in RIG]
    low, high = visible_bounds(observations)
    grid = bounding_grid(observations, 40)
    last = grid.origin + (np.array(grid.shape) - 1) * grid.spacing
    assert (grid.origin <= low - 2 * grid.spacing).all()
    assert (last >= high + 2 * grid.spacing).all()
    assert grid.spacing == pytest.approx((high - low).max() / 40)
    assert (carve(observations, grid)[[0, -1]] > 0).all()


def test_nothing_is_carved_where_the_frame_cuts_the_object() -> None:
    """The front camera is too close to see all of a sphere: what it cannot see stays as the others show it."""
    truth = iso_surface(SOLIDS["sphere"][0])
    close = six_axis_rig(0.45, 3.2, (SIZE, SIZE))[0]
    cut = seen_by(truth, close)
    assert cut.frame_cuts_object
    mesh = carved([cut, *(seen_by(truth, camera) for camera in RIG[1:])])
    assert mesh_facts(mesh).volume == pytest.approx(4 / 3 * np.pi, rel=0.06)


def test_an_object_that_fits_the_frame_is_carved_outside_of_it() -> None:
    truth = iso_surface(SOLIDS["sphere"][0])
    far_right = Grid(np.array([2.5, 0.0, 0.0]), 1.0, (1, 1, 1))
    assert carve([seen_by(truth, RIG[0])], far_right).item() > 0


@pytest.mark.parametrize("bits", [16, None])
def test_views_of_different_objects_have_no_common_solid(bits: int | None) -> None:
    ball = iso_surface(SOLIDS["sphere"][0])
    left, right = (
        TriangleMesh(np.float32(0.3) * ball.vertices + np.float32([x, 0, 0]), ball.faces) for x in (-0.6, 0.6)
    )
    observations = [seen_by(left, RIG[0], bits=bits), seen_by(right, RIG[1], bits=bits)]
    with pytest.raises(ModelConvergenceError) as raised:
        carved(observations)
    assert raised.value.code is ErrorCode.MODEL_CONVERGENCE_FAILED
    assert raised.value.suggestion


def test_a_point_behind_a_camera_that_holds_the_object_is_outside() -> None:
    truth = iso_surface(SOLIDS["sphere"][0])
    behind = Grid(np.array([0.0, 0.0, 4.0]), 0.1, (1, 1, 1))
    assert carve([seen_by(truth, RIG[0], bits=None)], behind).item() > 0
    close = six_axis_rig(0.45, 3.2, (SIZE, SIZE))[0]
    assert carve([seen_by(truth, close, bits=None)], behind).item() < 0


def test_a_field_without_an_inside_has_no_surface() -> None:
    grid = Grid(np.zeros(3), 0.1, (4, 4, 4))
    with pytest.raises(ModelConvergenceError):
        extract_surface(np.ones(grid.shape, np.float32), grid)
