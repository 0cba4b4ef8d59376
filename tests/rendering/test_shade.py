from __future__ import annotations

import numpy as np
import pytest
from render_shapes import bumpy_sphere, look_from, spherical_uvs
from test_raster import raycast

from reconflow.colour import linear_from_srgb, linear_from_srgb_u8, srgb_from_linear
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.rendering import shade


def make_textured(subdivisions: int = 2) -> TexturedMesh:
    vertices, faces = bumpy_sphere(subdivisions)
    codes = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return TexturedMesh(TriangleMesh(vertices, faces), spherical_uvs(vertices), faces, codes)


def bilinear(image: np.ndarray, u: float, v: float) -> np.ndarray:
    """One wrapping lookup, v up, texel centres at +0.5."""
    height, width = image.shape[:2]
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(3)
    for i, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for j, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            total += wy * wx * image[i % height, j % width]
    return total


def test_a_textured_render_agrees_with_casting_nine_rays_a_pixel() -> None:
    textured, camera = make_textured(), look_from((0.4, 0.5, 1.0), 3.4, 24)
    rays = raycast(textured.mesh.vertices, textured.mesh.faces, camera.resized((72, 72)))
    samples = np.ones((72, 72, 3))
    image = linear_from_srgb(textured.base_colour_srgb / 255)
    for row, col in zip(*np.nonzero(rays.face_id >= 0), strict=True):
        b0, b1 = rays.bary[row, col].astype(float)
        uv = np.array([b0, b1, 1 - b0 - b1]) @ textured.uvs[textured.uv_faces[rays.face_id[row, col]]]
        samples[row, col] = bilinear(image, *uv)
    expected = srgb_from_linear(samples.reshape(24, 3, 24, 3, 3).mean(axis=(1, 3)))
    covered = (rays.face_id >= 0).reshape(24, 3, 24, 3).mean(axis=(1, 3))
    found = shade.render_textured(textured, camera)
    assert np.abs(found.rgb_srgb - expected).mean() < 1e-4
    assert np.abs(found.coverage - covered).mean() < 1e-4


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    textured, camera = make_textured(), look_from((0.4, 0.5, 1.0), 3.4, 48)
    whole = shade.render_textured(textured, camera)
    monkeypatch.setattr(shade, "SAMPLES_PER_BAND", 1000)
    banded = shade.render_textured(textured, camera)
    assert whole.rgb_srgb.tobytes() == banded.rgb_srgb.tobytes()


def test_the_textures_top_row_appears_on_top() -> None:
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    codes = np.zeros((8, 8, 3), np.uint8)
    codes[1:3, 1:3, 0] = 255  # red near the top left corner
    textured = TexturedMesh(TriangleMesh(square, faces), uvs, faces, codes)
    rgb = shade.render_textured(textured, look_from((0, 0, 1), 3.0, 64)).rgb_srgb
    red = (rgb[..., 0] > 0.5) & (rgb[..., 1] < 0.1)
    rows, cols = np.nonzero(red)
    assert red.any()
    assert rows.max() < 32
    assert cols.max() <= 32


def test_the_wireframe_shows_only_the_edges_in_front() -> None:
    near = np.array([[-1, -1, 0.5], [1, -1, 0.5], [1, 1, 0.5], [-1, 1, 0.5]], np.float32)
    far = near * np.float32([0.5, 0.5, -1])
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    camera = look_from((0, 0, 1), 4.0, 64)
    alone = shade.render_wireframe(TriangleMesh(near, faces), camera)
    with_hidden = shade.render_wireframe(
        TriangleMesh(np.concatenate([near, far]), np.concatenate([faces, faces + 4])), camera
    )
    assert np.array_equal(alone.rgb_srgb, with_hidden.rgb_srgb)
    assert alone.rgb_srgb.min() < 0.5
    assert np.array_equal(alone.rgb_srgb[0, 0], [1, 1, 1])


def grid_square(cells: int) -> TriangleMesh:
    """A square in the plane z = 0 of 2 cells² triangles, seen from the front."""
    x, y = np.meshgrid(np.linspace(-1, 1, cells + 1), np.linspace(-1, 1, cells + 1))
    vertices = np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3).astype(np.float32)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).reshape(-1, 1)
    step = cells + 1
    faces = np.concatenate([corner + np.array([0, 1, step + 1]), corner + np.array([0, step + 1, step])]).astype(
        np.int32
    )
    return TriangleMesh(vertices, faces)


@pytest.mark.parametrize("cells", [8, 40, 80])
def test_a_wireframe_stays_light_and_its_lines_visible_however_fine_the_mesh(cells: int) -> None:
    """The square is 128 pixels wide, so that the edges are 18 down to 1.8 pixels long; unlined it is one grey."""
    camera = look_from((0, 0, 1), 4.0, 192)
    lined = shade.render_wireframe(grid_square(cells), camera, supersample=6)
    bare = shade.render_wireframe(grid_square(cells), camera, line_width_px=0.0, supersample=6)
    inside = lined.coverage == 1
    face = float(np.median(bare.rgb_srgb[inside]))
    assert face - 0.25 < lined.rgb_srgb[inside].mean() < face - 0.02
    assert lined.rgb_srgb[inside].min() < face - 0.05


def test_srgb_and_linear_are_inverse_and_agree_on_codes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    linear = linear_from_srgb_u8(codes)
    np.testing.assert_allclose(srgb_from_linear(linear) * 255, codes, atol=2e-3)
    np.testing.assert_allclose(linear, linear_from_srgb(codes / 255), atol=1e-7)
    assert srgb_from_linear(np.array([-1.0, 2.0])).tolist() == [0.0, 1.0]
