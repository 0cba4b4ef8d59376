from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.colour import linear_from_srgb, linear_from_srgb_u8
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.atlas_raster import rasterize_atlas
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.photos import Photo, prepare_photo
from reconflow.nvdiffrec.texel_views import locate_texels
from reconflow.nvdiffrec.texture import Corrections, fit_texture
from reconflow.quality.metrics import psnr_db, squared_error
from reconflow.rendering.shade import render_textured
from tests.geometry.shapes import SOLIDS, iso_surface
from tests.nvdiffrec.painted_objects import (
    Paint,
    checker,
    gradient,
    grey,
    looking_at_origin,
    painted,
    photographed,
    rig,
    scaled,
)

TEXTURE = 512


@cache
def bumpy() -> TriangleMesh:
    return scaled(iso_surface(SOLIDS["bumpy_sphere"][0], resolution=40), 0.8)


@cache
def truth(paint: Paint) -> TexturedMesh:
    return painted(bumpy(), paint)


def photos_of(mesh: TriangleMesh, paint: Paint, size: int = 128) -> list[Photo]:
    textured = truth(paint) if mesh is bumpy() else painted(mesh, paint)
    dataset, found = photographed(textured, rig(size), bits=None)
    return [prepare_photo(view, camera, size) for view, camera in zip(dataset.views, found.cameras, strict=True)]


def fitted(mesh: TriangleMesh, photos: list[Photo], steps: int = 3) -> TexturedMesh:
    return fit_texture(mesh, unwrap(mesh, TEXTURE), photos, TEXTURE, steps)[0]


def covered_texels(textured: TexturedMesh) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Linear colour and position of every texel that the surface covers."""
    size = textured.base_colour_srgb.shape[0]
    texels = locate_texels(textured.mesh, *rasterize_atlas(textured.uvs, textured.uv_faces, (size, size)))
    return linear_from_srgb_u8(textured.base_colour_srgb).reshape(-1, 3)[texels.index], texels.position


def object_psnr_db(textured: TexturedMesh, reference: TexturedMesh, size: int = 128) -> float:
    """Mean over the six views, on the object's pixels."""
    values = []
    for camera in rig(size):
        ours, theirs = render_textured(textured, camera), render_textured(reference, camera)
        values.append(psnr_db(float(squared_error(ours.rgb_srgb, theirs.rgb_srgb)[theirs.coverage > 0].mean())))
    return float(np.mean(values))


@pytest.mark.parametrize(("paint", "least_db"), [(checker, 28.0), (gradient, 45.0)])
def test_renders_of_a_fitted_texture_match_the_photos(paint: Paint, least_db: float) -> None:
    result = fitted(bumpy(), photos_of(bumpy(), paint))
    assert object_psnr_db(result, truth(paint)) > least_db


def test_corrections_through_the_renderer_bring_the_picture_closer() -> None:
    photos = photos_of(bumpy(), checker)
    gathered, corrected = (object_psnr_db(fitted(bumpy(), photos, steps), truth(checker)) for steps in (0, 3))
    assert corrected > gathered + 0.5


def test_least_squares_corrections_end_nearer_to_photos_that_disagree_with_each_other() -> None:
    photos = photos_of(bumpy(), checker)
    photos = [replace(p, linear=np.roll(p.linear, 2 * (n % 3 - 1), axis=1)) for n, p in enumerate(photos)]
    atlas = unwrap(bumpy(), TEXTURE)
    ends = []
    for corrections in (Corrections.UNGUARDED, Corrections.LEAST_SQUARES):
        _, facts = fit_texture(bumpy(), atlas, photos, TEXTURE, 4, corrections=corrections)
        losses = [loss for _, loss in facts["rgb_mse"]]
        ends.append(losses[-1])
    assert losses == sorted(losses, reverse=True)
    assert ends[1] < 0.9 * ends[0]


def test_texels_that_no_view_sees_are_filled_from_their_neighbours() -> None:
    mesh = scaled(iso_surface(SOLIDS["sphere"][0], resolution=32), 0.8)
    textured, facts = fit_texture(mesh, unwrap(mesh, TEXTURE), photos_of(mesh, grey)[:1], TEXTURE, 2)
    assert isinstance(facts["seen_share"], float)
    assert facts["seen_share"] < 0.55
    colour, _ = covered_texels(textured)
    np.testing.assert_allclose(colour, 0.3, atol=0.03)


def test_a_hidden_patch_continues_the_colours_around_it() -> None:
    """The inside of a tube's middle is unseen: red at one end and blue at the other meet there."""

    def tube(p: NDArray[np.float64]) -> NDArray[np.float64]:
        across = np.hypot(p[..., 0], p[..., 1])
        return np.maximum(np.abs(across - 0.3) - 0.1, np.abs(p[..., 2]) - 0.9)

    def red_to_blue(p: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.clip(0.5 + 0.6 * p[:, 2:], 0, 1)
        return share * [0.6, 0.05, 0.05] + (1 - share) * [0.05, 0.05, 0.6]

    mesh = scaled(iso_surface(tube), 0.8)
    colour, position = covered_texels(fitted(mesh, photos_of(mesh, red_to_blue)))
    inside = (np.hypot(position[:, 0], position[:, 1]) < 0.22) & (np.abs(position[:, 2]) < 0.3)
    assert inside.any()
    assert (colour[inside] >= 0.02).all()
    assert (colour[inside][:, 1] < 0.12).all()
    upper, lower = inside & (position[:, 2] > 0.15), inside & (position[:, 2] < -0.15)
    assert colour[upper, 0].mean() > colour[lower, 0].mean()


def test_a_tenth_more_exposure_in_one_view_leaves_no_step() -> None:
    mesh = scaled(iso_surface(SOLIDS["sphere"][0]), 0.8)
    photos = photos_of(mesh, grey)
    brighter = 1.1 * photos[2].linear - 0.1 * (1 - photos[2].coverage[..., None])
    photos[2] = replace(photos[2], linear=brighter.astype(np.float32))
    render = render_textured(fitted(mesh, photos), looking_at_origin("between", (2.1, 0, 2.1), 192))
    light = linear_from_srgb(render.rgb_srgb)[..., 1]
    row = light[96][render.coverage[96] >= 1][6:-6]
    difference = 0.1 * 0.3
    assert row.max() - row.min() > 0.5 * difference
    assert np.abs(np.diff(row)).max() < 0.35 * difference


def test_progress_ends_at_the_total() -> None:
    mesh = scaled(iso_surface(SOLIDS["sphere"][0], resolution=16), 0.8)
    told: list[tuple[int, int]] = []
    fit_texture(
        mesh, unwrap(mesh, 128), photos_of(mesh, grey, 64), 128, 2, lambda step, total, _: told.append((step, total))
    )
    steps = [step for step, _ in told]
    assert steps == sorted(steps)
    assert told[-1][0] == told[-1][1]
