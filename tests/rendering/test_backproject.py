"""Back-projection is the transpose of the textured render, the same bits for any number of threads and strips."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from render_shapes import bumpy_sphere, look_from, spherical_uvs

from reconflow.colour import linear_from_srgb, linear_from_srgb_u8
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.rendering import backproject
from reconflow.rendering.backproject import backproject_image
from reconflow.rendering.shade import render_textured

CAMERA = look_from((0.4, 0.5, 1.0), 3.4, 40)


def textured_ball() -> TexturedMesh:
    vertices, faces = bumpy_sphere(2)
    codes = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return TexturedMesh(TriangleMesh(vertices, faces), spherical_uvs(vertices), faces, codes)


def backprojected(image: NDArray[np.float32], supersample: int = 2) -> NDArray[np.float32]:
    ball, sums = textured_ball(), np.zeros((24, 24, 4), np.float32)
    backproject_image(ball.mesh, ball.uvs, ball.uv_faces, CAMERA, image, sums, supersample)
    return sums


def random_image() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(40, 40, 3)).astype(np.float32)


def test_render_and_backprojection_are_each_others_transpose() -> None:
    image, ball = random_image(), textured_ball()
    render = render_textured(ball, CAMERA, supersample=2)
    object_part = linear_from_srgb(render.rgb_srgb).astype(np.float64) - (1 - render.coverage[..., None])
    texture = linear_from_srgb_u8(ball.base_colour_srgb)
    one_way = float((object_part * image).sum())
    other_way = float((texture.astype(np.float64) * backprojected(image)[..., :3]).sum())
    assert one_way == pytest.approx(other_way, abs=2e-3)


def test_the_weights_of_all_texels_add_up_to_the_covered_pixels() -> None:
    render = render_textured(textured_ball(), CAMERA, supersample=2)
    assert backprojected(random_image())[..., 3].sum() == pytest.approx(render.coverage.sum(), rel=1e-5)


def test_threads_and_strips_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, threads = backprojected(random_image()), numba.get_num_threads()
    monkeypatch.setattr(backproject, "SAMPLES_PER_BAND", 700)
    try:
        for count in (1, threads):
            numba.set_num_threads(count)
            np.testing.assert_array_equal(backprojected(random_image()), expected)
    finally:
        numba.set_num_threads(threads)
