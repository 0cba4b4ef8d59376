"""Finishing a generated object: known shapes stand for what the decoders give."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from reconflow.colour import linear_from_srgb, linear_from_srgb_u8, srgb_from_linear
from reconflow.errors import ModelConvergenceError
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.atlas_raster import rasterize_atlas
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_from_vector
from reconflow.nvdiffrec.photos import prepare_photo
from reconflow.nvdiffrec.texel_views import locate_texels
from reconflow.quality.metrics import psnr_db, squared_error
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.baking import GaussianPictures, bake_texture, matching_gains
from reconflow.reconviagen.export import Y_UP_FROM_Z_UP, FinishSettings, Generated, clean_surface, finish
from reconflow.rendering.shade import render_textured
from tests.geometry.shapes import joined
from tests.nvdiffrec.painted_objects import gradient, painted, photographed, rig, scaled
from tests.reconviagen.test_inner_walls import ball
from tests.reconviagen.test_registration import solid

SMALL = FinishSettings(
    simplify=0.5,
    visibility_views=40,
    visibility_size=128,
    texture_size=256,
    texture_steps=2,
    gaussian_views=12,
    gaussian_size=160,
    registration_size=128,
)


def surface_gaussians(mesh: TriangleMesh, colours_srgb: NDArray[np.floating], spacing: float) -> Gaussians:
    """A small round Gaussian at every vertex."""
    count = len(mesh.vertices)
    return Gaussians(
        positions=mesh.vertices,
        scales=np.full((count, 3), spacing, np.float32),
        rotations=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        opacities=np.full(count, 0.95, np.float32),
        colours=colours_srgb.astype(np.float32),
    )


@cache
def truth() -> TexturedMesh:
    return painted(scaled(solid(0), 0.9), gradient, 256)


def generated(move: Similarity) -> Generated:
    """The true object in the generator's frame, as if the networks had found it."""
    mesh = move.apply_to_mesh(truth().mesh)
    colours = srgb_from_linear(gradient(truth().mesh.vertices.astype(np.float64)))
    return Generated(mesh, colours.astype(np.float32), surface_gaussians(mesh, colours, 0.02))


@cache
def finished() -> Reconstruction:
    turn = rotation_from_vector(np.array([0.2, 0.1, 1.4]))
    move = Similarity(0.5, turn, np.array([0.02, -0.01, 0.03]))
    dataset, calibration = photographed(truth(), rig(128))
    return finish(generated(move), dataset, calibration, SMALL)


def test_a_finished_object_looks_like_its_photos() -> None:
    result = finished()
    for camera in rig(128)[:3]:
        ours, photo = (render_textured(mesh, camera) for mesh in (result.textured, truth()))
        assert psnr_db(squared_error(ours.rgb_srgb, photo.rgb_srgb).mean()) > 28


def test_a_finished_object_is_a_sound_surface_with_a_record() -> None:
    result = finished()
    facts = mesh_facts(result.textured.mesh)
    assert facts.watertight
    statistics = result.statistics
    assert statistics["surface"]["faces"] == len(result.textured.mesh.faces)
    assert statistics["registration"]["confidence"] > 0.6
    assert statistics["registration"]["residuals"]["mask_iou"] > 0.97
    assert 0 < statistics["texture"]["gaussian_share"] < 0.5
    assert set(result.timings_s) == {"clean_surface", "register", "texture"}


def test_what_no_photo_shows_is_painted_by_the_gaussians() -> None:
    """Only the front is photographed, in another exposure; the back's colours come from the Gaussians, matched."""
    mesh = truth().mesh
    dataset, calibration = photographed(truth(), rig(128)[:1], bits=None)
    colours = srgb_from_linear(0.8 * gradient(mesh.vertices.astype(np.float64)))
    pictures = GaussianPictures(surface_gaussians(mesh, colours, 0.04), Similarity.identity(), 20, 160)
    # the Gaussians fill more than the unit cube, and the cameras stand outside of it
    photos = [prepare_photo(dataset.views[0], calibration.cameras[0], 128)]
    textured, facts = bake_texture(mesh, unwrap(mesh, 256), photos, pictures, 256, 2)
    assert facts["gaussian_share"] > 0.4
    assert_allclose(facts["gains"], 1.25, rtol=0.1)
    face, bary = rasterize_atlas(textured.uvs, textured.uv_faces, (256, 256))
    texels = locate_texels(mesh, face, bary)
    away = texels.normal[:, 2] < -0.3
    painted_linear = linear_from_srgb_u8(textured.base_colour_srgb).reshape(-1, 3)[texels.index]
    error = np.abs(painted_linear - gradient(texels.position.astype(np.float64)))[away]
    assert np.median(error) < 0.03


def test_what_lies_outside_the_masks_is_painted_by_the_gaussians_and_not_by_the_background() -> None:
    """A generated surface is nowhere exactly where the photos' is; here it is larger, and seen before white."""
    mesh = scaled(truth().mesh, 1.15)
    dataset, calibration = photographed(truth(), rig(128))
    photos = [prepare_photo(view, calibration.cameras[index], 128) for index, view in enumerate(dataset.views)]
    assert all(photo.on_white for photo in photos)
    colours = np.tile(np.array([0.9, 0.1, 0.1], np.float32), (len(mesh.vertices), 1))
    pictures = GaussianPictures(surface_gaussians(mesh, colours, 0.04), Similarity.identity(), 20, 160)
    textured, facts = bake_texture(mesh, unwrap(mesh, 256), photos, pictures, 256, 2)
    face, bary = rasterize_atlas(textured.uvs, textured.uv_faces, (256, 256))
    texels = locate_texels(mesh, face, bary)
    painted_linear = linear_from_srgb_u8(textured.base_colour_srgb).reshape(-1, 3)[texels.index]
    assert (painted_linear.min(axis=1) > 0.75).mean() < 1e-3
    assert facts["gaussian_share"] > 0.15


def test_gains_match_medians_and_need_enough_texels() -> None:
    rng = np.random.default_rng(0)
    colours = rng.uniform(0.1, 0.5, (1000, 3)).astype(np.float32)
    assert_allclose(matching_gains(colours, colours * np.array([1.2, 0.9, 1.0], np.float32)), [1.2, 0.9, 1], rtol=1e-4)
    assert_allclose(matching_gains(colours, 5 * colours), 2.0)
    assert_allclose(matching_gains(colours[:10], 5 * colours[:10]), 1.0)


def test_cleaning_removes_specks_and_cavities_and_keeps_colours() -> None:
    speck = TriangleMesh(
        (0.01 * ball(0.45, resolution=10).vertices + 0.49).astype(np.float32), ball(0.45, resolution=10).faces
    )
    raw = joined(ball(0.45), ball(0.3, inside_out=True), speck)
    outside = np.linalg.norm(raw.vertices, axis=1) > 0.4
    colours = np.where(outside[:, None], [0.8, 0.2, 0.1], [0.0, 1.0, 0.0]).astype(np.float32)
    nothing = surface_gaussians(raw, colours, 0.01)
    mesh, linear, facts = clean_surface(Generated(raw, colours, nothing), SMALL)
    assert mesh_facts(mesh).watertight
    assert mesh_facts(mesh).components == 1
    assert facts["inner_parts_removed"] == 1
    assert_allclose(linear, np.tile(linear_from_srgb(np.array([0.8, 0.2, 0.1])), (len(linear), 1)), atol=1e-5)


@pytest.mark.parametrize("most", [200, 1500])
def test_the_face_budget_is_kept_also_where_holes_are_filled(most: int) -> None:
    whole = ball(0.45, resolution=48)
    away = np.linalg.norm(whole.vertices[whole.faces].mean(axis=1) - [0, 0, 0.45], axis=1) > 0.1
    raw = TriangleMesh(whole.vertices, whole.faces[away])
    colours = np.full((len(raw.vertices), 3), 0.5, np.float32)
    settings = replace(SMALL, simplify=0.0, target_faces=most)
    assert len(raw.faces) > 4000
    mesh, _, facts = clean_surface(Generated(raw, colours, surface_gaussians(raw, colours, 0.01)), settings)
    assert facts["holes_filled"] == 1
    assert 0.9 * most < len(mesh.faces) == facts["faces"] <= most


def test_a_surface_without_a_face_budget_is_not_made_coarser_than_a_few_thousand_faces() -> None:
    assert FinishSettings().face_budget(20_000) == 4000
    assert FinishSettings().face_budget(200_000) == 10_000
    assert FinishSettings(target_faces=300).face_budget(200_000) == 300


def test_up_stays_up() -> None:
    assert_allclose(Y_UP_FROM_Z_UP.apply(np.array([1.0, 2.0, 3.0])), [1, 3, -2])
    assert np.linalg.det(Y_UP_FROM_Z_UP.rotation) == pytest.approx(1)


def test_an_empty_surface_is_named() -> None:
    nothing = TriangleMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    with pytest.raises(ModelConvergenceError, match="empty"):
        clean_surface(
            Generated(nothing, np.zeros((0, 3), np.float32), surface_gaussians(nothing, np.zeros((0, 3)), 1)), SMALL
        )
