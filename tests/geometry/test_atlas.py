from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from reconflow.errors import ModelConvergenceError, ValidationFailedError
from reconflow.geometry.atlas import Atlas, ChartOptions, unwrap
from reconflow.geometry.atlas_charts import Charts, Surface, projection_directions
from reconflow.geometry.atlas_flatten import flatten_charts, plane_axes, split_overlaps
from reconflow.geometry.atlas_raster import count_coverage, dilate, rasterize_atlas
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import fix_non_manifold, remesh_isotropic
from reconflow.geometry.stretch import measure_stretch, seam_edges, seam_length
from tests.geometry.shapes import SOLIDS, cube, iso_surface, joined


@cache
def solid(name: str) -> TriangleMesh:
    return remesh_isotropic(fix_non_manifold(iso_surface(SOLIDS[name][0])), 0.06)


@cache
def atlas_of(name: str) -> Atlas:
    return unwrap(solid(name), 512)


def rough_sphere() -> TriangleMesh:
    mesh = solid("sphere")
    noise = np.random.default_rng(3).normal(0, 0.012, mesh.vertices.shape).astype(np.float32)
    return TriangleMesh(mesh.vertices + noise, mesh.faces)


def spiral_ramp(turns: float = 2.0, steps: int = 120) -> TriangleMesh:
    """A ramp that winds over itself: every face looks up, yet seen from above it covers itself."""
    angle = np.linspace(0, 2 * np.pi * turns, steps)
    ring = np.stack([np.cos(angle), 0.12 * angle, -np.sin(angle)], axis=1)
    vertices = np.concatenate([0.5 * ring * [1, 2, 1], ring]).astype(np.float32)
    i = np.arange(steps - 1)
    quads = np.stack([i, i + steps, i + steps + 1, i + 1], axis=1)
    return TriangleMesh(vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32))


def assert_no_overlap(atlas: Atlas) -> None:
    cover = count_coverage(atlas.uvs, atlas.uv_faces, (4096, 4096))
    assert cover.max() == 1
    assert (cover > 0).mean() == pytest.approx(atlas.facts.utilisation, abs=1e-3)


@pytest.mark.parametrize("name", list(SOLIDS))
def test_no_texel_belongs_to_two_faces(name: str) -> None:
    atlas = atlas_of(name)
    assert_no_overlap(atlas)
    assert atlas.facts.flipped_faces == 0


def test_a_noisy_surface_overlaps_nowhere_either() -> None:
    atlas = unwrap(rough_sphere(), 512)
    assert_no_overlap(atlas)
    assert atlas.facts.flipped_faces == 0


def test_a_ramp_that_winds_over_itself_is_cut() -> None:
    ramp = spiral_ramp()
    atlas = unwrap(ramp, 256)
    assert_no_overlap(atlas)
    assert 2 <= atlas.facts.charts <= 6


def test_a_chart_that_covers_itself_is_noticed_and_one_that_does_not_is_left() -> None:
    up = np.array([[0.0, 1.0, 0.0]])
    for turns, parts in ((0.9, 1), (1.9, 2)):
        ramp = spiral_ramp(turns)
        whole = Charts(np.zeros(len(ramp.faces), dtype=np.int32), up)
        assert len(split_overlaps(ramp, whole, Surface.of(ramp)).directions) == parts


@pytest.mark.parametrize("name", ["torus_knot", "bumpy_sphere", "thin_post"])
def test_charts_keep_the_gutter_between_them_and_half_of_it_to_the_border(name: str) -> None:
    size, gutter = 512, 6
    atlas = unwrap(solid(name), size, gutter=gutter)
    assert atlas.uvs.min() * size >= gutter / 2 - 1e-3
    assert atlas.uvs.max() * size <= size - gutter / 2 + 1e-3
    face, _ = rasterize_atlas(atlas.uvs, atlas.uv_faces, (size, size))
    chart = np.where(face >= 0, atlas.face_charts[face], -1)
    window = 2 * (gutter - 1) + 1
    highest = maximum_filter(chart, window)
    lowest = minimum_filter(np.where(face >= 0, chart, 10**6), window)
    covered = face >= 0
    np.testing.assert_array_equal(highest[covered], chart[covered])
    np.testing.assert_array_equal(lowest[covered], chart[covered])


@pytest.mark.parametrize("name", list(SOLIDS))
def test_the_atlas_is_worth_its_texels(name: str) -> None:
    facts = atlas_of(name).facts
    assert facts.stretch_l2 < 1.05
    assert facts.stretch_linf < 4.0
    assert facts.utilisation > 0.45
    assert facts.charts < 60
    assert facts.sliver_charts <= 2


def test_every_chart_has_the_same_texel_density() -> None:
    mesh, atlas = solid("bumpy_sphere"), atlas_of("bumpy_sphere")
    corners, flat = mesh.vertices.astype(float)[mesh.faces], atlas.uvs.astype(float)[atlas.uv_faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    a, b = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    uv_areas = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    ratio = np.bincount(atlas.face_charts, weights=uv_areas) / np.bincount(atlas.face_charts, weights=areas)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_a_cube_is_unfolded_into_undistorted_faces() -> None:
    mesh = cube()
    atlas = unwrap(mesh, 256)
    assert atlas.facts.charts <= 6
    assert atlas.facts.stretch_l2 == pytest.approx(1.0, abs=1e-5)
    assert atlas.facts.stretch_linf == pytest.approx(1.0, abs=1e-5)
    assert 7.0 - 1e-5 <= atlas.facts.seam_length <= 12.0 + 1e-5  # a net has seven cut edges, six squares have twelve


def test_print_is_not_mirrored() -> None:
    right, up = plane_axes(projection_directions())
    np.testing.assert_allclose(np.cross(right, up), projection_directions(), atol=1e-12)
    front = projection_directions()[0]
    np.testing.assert_allclose(front, [0, 0, 1])
    np.testing.assert_allclose(right[0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(up[0], [0, 1, 0], atol=1e-12)


def test_a_tilted_plane_is_flattened_without_distortion() -> None:
    quad = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1.5], [0, 1, 1.5]], dtype=np.float32)
    mesh = TriangleMesh(quad, np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32))
    flat = flatten_charts(mesh, Charts(np.zeros(2, dtype=np.int32), np.array([[0.0, 0.0, 1.0]])))
    sides = np.linalg.norm(flat.points[flat.faces[0]] - np.roll(flat.points[flat.faces[0]], -1, axis=0), axis=1)
    np.testing.assert_allclose(sides, [1.0, np.sqrt(3.25), np.sqrt(4.25)], rtol=1e-6)


def test_costs_from_the_caller_move_the_seams() -> None:
    mesh = solid("sphere")
    directions = projection_directions(6)
    options = ChartOptions(min_cos=0.1)
    costs = np.zeros((len(mesh.faces), 6))
    costs[:, 1:] = 3.0
    plain = unwrap(mesh, 256, directions=directions, options=options)
    drawn = unwrap(mesh, 256, directions=directions, options=options, face_costs=costs)
    towards_front = mesh.vertices[mesh.faces].mean(axis=1)[:, 2] > 0.35

    def charts_in_front(atlas: Atlas) -> int:
        return len(np.unique(atlas.face_charts[towards_front]))

    assert charts_in_front(drawn) == 1
    assert charts_in_front(plain) > 1


def test_equal_inputs_give_equal_bytes() -> None:
    first, second = (unwrap(solid("torus"), 256) for _ in range(2))
    assert first.uvs.tobytes() == second.uvs.tobytes()
    assert first.uv_faces.tobytes() == second.uv_faces.tobytes()


def test_what_cannot_be_unwrapped_is_refused() -> None:
    empty = TriangleMesh(np.zeros((3, 3), dtype=np.float32), np.array([[0, 1, 2]], dtype=np.int32))
    with pytest.raises(ValidationFailedError):
        unwrap(empty, 256)
    with pytest.raises(ValidationFailedError):
        unwrap(cube(), 256, gutter=64)
    with pytest.raises(ValidationFailedError):
        unwrap(cube(), 256, face_costs=np.zeros((12, 5)))
    crowd = joined(*(cube(low=(3.0 * k, 0, 0)) for k in range(60)))
    with pytest.raises(ModelConvergenceError) as caught:
        unwrap(crowd, 16, gutter=1)
    assert caught.value.details["patches"] >= 60


def test_stretch_of_a_square_drawn_twice_as_wide() -> None:
    mesh = TriangleMesh(
        np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float32),
        np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32),
    )
    uvs = np.array([[0, 0], [1, 0], [1, 0.5], [0, 0.5]], dtype=np.float32)
    stretch = measure_stretch(mesh, uvs, mesh.faces)
    # World lengths per texture length are 1 and 2; the areas' ratio is 1/2.
    assert stretch.linf == pytest.approx(2 * np.sqrt(0.5))
    assert stretch.l2 == pytest.approx(np.sqrt((1 + 4) / 2) * np.sqrt(0.5))
    assert measure_stretch(mesh, uvs[:, ::-1], mesh.faces).flipped_faces == 2


def test_a_seam_is_where_the_texture_indices_differ() -> None:
    mesh = TriangleMesh(
        np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float32),
        np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32),
    )
    assert len(seam_edges(mesh, mesh.faces)) == 0
    torn = np.array([[0, 1, 2], [4, 5, 3]], dtype=np.int32)
    assert seam_length(mesh, torn) == pytest.approx(np.sqrt(2))


def slow_face_under(
    uvs: NDArray[np.float32], faces: NDArray[np.int32], row: int, column: int, size: int
) -> tuple[int, NDArray[np.float64]]:
    """Solve for the barycentric weights of one texel's centre in every face."""
    point = np.array([(column + 0.5) / size, 1 - (row + 0.5) / size])
    for index, corners in enumerate(uvs.astype(np.float64)[faces]):
        weights = np.linalg.solve(np.vstack([corners.T, np.ones(3)]), np.append(point, 1.0))
        if weights.min() > 1e-4:
            return index, weights
    return -1, np.zeros(3)


def test_the_texel_map_agrees_with_solving_for_each_texel() -> None:
    size = 24
    atlas = unwrap(cube(), 64)
    face, bary = rasterize_atlas(atlas.uvs, atlas.uv_faces, (size, size))
    for row in range(size):
        for column in range(size):
            expected, weights = slow_face_under(atlas.uvs, atlas.uv_faces, row, column, size)
            if expected >= 0:
                assert face[row, column] == expected
                np.testing.assert_allclose(bary[row, column], weights[:2], atol=2e-3)


def test_row_zero_of_the_texel_map_is_at_the_top() -> None:
    uvs = np.array([[0, 1], [0, 0.5], [0.5, 1]], dtype=np.float32)
    face, _ = rasterize_atlas(uvs, np.array([[0, 1, 2]], dtype=np.int32), (8, 8))
    assert face[0, 0] == 0
    assert (face[4:] == -1).all()


def test_texel_centres_on_a_common_edge_belong_to_exactly_one_face() -> None:
    uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32)
    for turned in (faces, faces[:, ::-1].copy()):
        np.testing.assert_array_equal(count_coverage(uvs, turned, (16, 16)), 1)


def test_filling_keeps_known_texels_and_continues_them_outwards() -> None:
    texture = np.zeros((64, 96, 3), dtype=np.float32)
    filled = np.zeros((64, 96), dtype=bool)
    filled[20:30, 20:30] = True
    filled[40:50, 70:80] = True
    texture[20:30, 20:30] = [1.0, 0.0, 0.0]
    texture[40:50, 70:80] = [0.0, 0.0, 1.0]
    texture[0, 0] = 99.0
    result = dilate(texture, filled, rings=4)
    np.testing.assert_array_equal(result[filled], texture[filled])
    np.testing.assert_array_equal(result[16:34, 16:34], np.broadcast_to([1.0, 0.0, 0.0], (18, 18, 3)))
    assert result.max() <= 1.0
    np.testing.assert_allclose(result.sum(axis=2), 1.0, atol=1e-5)
    assert (dilate(texture, np.zeros_like(filled)) == 0).all()
