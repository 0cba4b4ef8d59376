import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.geometry.atlas import unwrap
from reconflow.geometry.atlas_raster import rasterize_atlas
from reconflow.geometry.mesh import TriangleMesh
from reconflow.nvdiffrec.texel_views import Texels, depth_edges, gather, locate_texels, see_mesh
from tests.geometry.shapes import SOLIDS, iso_surface, joined
from tests.nvdiffrec.painted_objects import looking_at_origin, rig, scaled

SIZE = 256
TEXTURE = 128
RED, GREEN = (np.broadcast_to(np.float32(c), (SIZE, SIZE, 3)).copy() for c in ([0.8, 0.1, 0.1], [0.1, 0.7, 0.2]))


def plate(z: float, half: float = 0.3) -> TriangleMesh:
    """A square that faces +z."""
    corners = np.float32([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    return TriangleMesh(corners, np.array([[0, 1, 2], [0, 2, 3]], np.int32))


def texels_of(mesh: TriangleMesh) -> Texels:
    atlas = unwrap(mesh, TEXTURE)
    return locate_texels(mesh, *rasterize_atlas(atlas.uvs, atlas.uv_faces, (TEXTURE, TEXTURE)))


def inner(texels: Texels, reach: float = 0.1) -> NDArray[np.bool_]:
    return np.asarray((np.abs(texels.position[:, :2]) < reach).all(axis=1))


def test_texels_lie_on_the_surface_with_its_normals() -> None:
    texels = texels_of(iso_surface(SOLIDS["sphere"][0]))
    assert len(texels.index) > 0.3 * TEXTURE**2
    np.testing.assert_allclose(np.linalg.norm(texels.position, axis=1), 1, atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(texels.normal, axis=1), 1, atol=1e-5)
    assert ((texels.position * texels.normal).sum(axis=1) > 0.98).all()


def test_a_texel_seen_head_on_by_one_view_takes_that_views_colour() -> None:
    mesh = plate(0.0)
    texels = texels_of(mesh)
    front, back = rig(SIZE)[0], rig(SIZE)[1]
    colour, quality = gather(texels, [see_mesh(mesh, front), see_mesh(mesh, back)], [RED, GREEN])
    seen = inner(texels)
    assert seen.any()
    np.testing.assert_allclose(colour[seen], np.broadcast_to(RED[0, 0], (seen.sum(), 3)), atol=1e-5)
    assert quality[seen].min() > 0.8
    assert quality.max() <= 1


def test_a_texel_takes_its_colour_from_the_pixel_it_projects_to() -> None:
    """The photo shows where each of its pixels lies on the plate."""
    mesh, camera = plate(0.0, half=0.8), rig(SIZE)[0]
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    photo = np.stack([x / SIZE, y / SIZE, np.zeros_like(x)], axis=-1).astype(np.float32)
    texels = texels_of(mesh)
    colour, quality = gather(texels, [see_mesh(mesh, camera)], [photo])
    half_width = 3.0 * np.tan(0.4)
    expected_x = 0.5 + 0.5 * texels.position[:, 0] / half_width
    expected_y = 0.5 - 0.5 * texels.position[:, 1] / half_width
    trusted = quality > 0.5
    assert trusted.mean() > 0.5
    np.testing.assert_allclose(colour[trusted, 0], expected_x[trusted], atol=1e-4)
    np.testing.assert_allclose(colour[trusted, 1], expected_y[trusted], atol=1e-4)


def test_photos_of_another_resolution_are_looked_up_in_the_same_place() -> None:
    mesh, camera = plate(0.0, half=0.8), rig(SIZE)[0]
    texels = texels_of(mesh)
    found = []
    for size in (SIZE, 3 * SIZE):
        y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
        photo = np.stack([x, y, x * 0], axis=-1).astype(np.float32)
        found.append(gather(texels, [see_mesh(mesh, camera)], [photo])[0])
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_an_occluded_view_contributes_nothing() -> None:
    """The near plate hides the far one from the first camera; the second one sees both past it."""
    mesh = joined(plate(0.5), plate(-0.5))
    cameras = [looking_at_origin("front", (0, 0, 3), SIZE), looking_at_origin("aside", (2.5, 0, 2.5), SIZE)]
    texels = texels_of(mesh)
    geometry = [see_mesh(mesh, camera) for camera in cameras]
    colour, quality = gather(texels, geometry, [RED, GREEN])
    far = (texels.position[:, 2] < 0) & inner(texels)
    assert (quality[far] > 0.1).all()
    np.testing.assert_allclose(colour[far], np.broadcast_to(GREEN[0, 0], (far.sum(), 3)), atol=1e-5)
    alone, unseen = gather(texels, geometry[:1], [RED])
    np.testing.assert_array_equal(unseen[far], 0)
    np.testing.assert_array_equal(alone[far], 0)


def red_share(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    return (colour[:, 0] - GREEN[0, 0, 0]) / (RED[0, 0, 0] - GREEN[0, 0, 0])


@pytest.mark.parametrize(("power", "least", "most"), [(5.0, 0.85, 1.0), (1.0, 0.5, 0.8)])
def test_a_grazing_view_counts_less(power: float, least: float, most: float) -> None:
    mesh = plate(0.0)
    texels = texels_of(mesh)
    cameras = [looking_at_origin("front", (0, 0, 3), SIZE), looking_at_origin("aside", (2.6, 0, 1.5), SIZE)]
    colour, _ = gather(texels, [see_mesh(mesh, c) for c in cameras], [RED, GREEN], grazing_power=power)
    share = red_share(colour[inner(texels)])
    assert least < share.min() <= share.max() < most


def test_equal_views_count_equally_and_a_nearer_one_more() -> None:
    mesh = plate(0.0)
    texels = texels_of(mesh)
    middle = inner(texels, 0.03)
    shares = []
    for nearer in (1.0, 0.7):
        cameras = [
            looking_at_origin("left", (-1.5 * nearer, 0, 2.6 * nearer), SIZE),
            looking_at_origin("right", (1.5, 0, 2.6), SIZE),
        ]
        colour, _ = gather(texels, [see_mesh(mesh, c) for c in cameras], [RED, GREEN])
        shares.append(float(red_share(colour[middle]).mean()))
    assert shares[0] == pytest.approx(0.5, abs=0.02)
    assert shares[1] > 0.6


def test_quality_falls_towards_the_silhouette() -> None:
    mesh = scaled(iso_surface(SOLIDS["sphere"][0]), 0.8)
    texels = texels_of(mesh)
    _, quality = gather(texels, [see_mesh(mesh, rig(SIZE)[0])], [RED])
    height = texels.position[:, 2] / 0.8
    rings = [quality[(height > low) & (height < low + 0.1)].mean() for low in (0.3, 0.5, 0.7, 0.9)]
    assert rings == sorted(rings)
    assert rings[-1] > 0.9
    assert (quality[height < 0] == 0).all()


def test_depth_edges_are_where_surfaces_end_and_not_on_slopes() -> None:
    ball = scaled(iso_surface(SOLIDS["sphere"][0]), 0.8)
    camera = rig(SIZE)[0]
    depth = see_mesh(ball, camera).depth
    edges = depth_edges(depth, camera.focal_px[0])
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5 - SIZE / 2
    from_rim = np.hypot(x, y) - np.sqrt((depth > 0).sum() / np.pi)
    assert edges[np.abs(from_rim) < 0.5].all()
    assert not edges[np.abs(from_rim) > 6].any()
