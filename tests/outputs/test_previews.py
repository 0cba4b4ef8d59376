"""Previews and turntable: what they show, from where, and that they repeat."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reconflow.cameras.camera import project_points
from reconflow.cameras.six_axis import six_axis_pose, six_axis_rig
from reconflow.errors import Cancelled
from reconflow.outputs.images import decode_image, encode_image, resize_to_width, thumbnail_url
from reconflow.outputs.previews import orbit_pose, turntable_cameras, write_previews, write_turntable
from reconflow.outputs.runs import RunLayout
from tests.outputs.objects import SIDE_COLOURS, labelled_box


def test_every_camera_gets_a_textured_and_a_wireframe_picture(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path, "abcd1234")
    write_previews(labelled_box(2), six_axis_rig(0.9, 2.4, (60, 90)), layout, width=48)
    names = sorted(path.name for path in layout.previews.iterdir())
    assert len(names) == 12
    for view, colour in SIDE_COLOURS.items():
        with Image.open(layout.textured_preview(view)) as picture:
            assert picture.size == (48, 32)
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
        assert np.abs(pixels - colour).max(axis=1).min() <= 4, view
        with Image.open(layout.wireframe_preview(view)) as picture:
            assert picture.size == (48, 32)


def test_the_turntable_starts_at_the_front_and_shows_its_right_next(tmp_path: Path) -> None:
    write_turntable(labelled_box(2), tmp_path / "turn.webp", frames=4, size=64)
    with Image.open(tmp_path / "turn.webp") as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (64, 64), 0)
        for number, view in enumerate(("front", "right", "back", "left")):
            animation.seek(number)
            pixels = np.asarray(animation.convert("RGB")).reshape(-1, 3).astype(int)
            near = (np.abs(pixels - SIDE_COLOURS[view]).max(axis=1) < 30).sum()
            others = [(np.abs(pixels - SIDE_COLOURS[o]).max(axis=1) < 30).sum() for o in SIDE_COLOURS if o != view]
            assert near > max(others), view


def test_the_turntable_repeats_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a.webp", "b.webp"):
        write_turntable(labelled_box(2), tmp_path / name, frames=3, size=48)
    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()


def test_an_orbit_without_elevation_passes_through_the_rigs_poses() -> None:
    for view, azimuth in (("front", 0.0), ("left", math.pi / 2), ("back", math.pi), ("right", -math.pi / 2)):
        np.testing.assert_allclose(orbit_pose(np.zeros(3), 2.0, azimuth, 0.0), six_axis_pose(view, 2.0), atol=1e-12)


def test_the_object_stays_inside_every_frame() -> None:
    mesh = labelled_box(2).mesh
    for camera in turntable_cameras(mesh, 7, 100):
        points, depth = project_points(mesh.vertices.astype(np.float64), camera)
        assert points.min() > 0
        assert points.max() < 100
        assert depth.min() > 0


def test_a_cancelled_preview_stops_and_leaves_no_half_file(tmp_path: Path) -> None:
    def cancel(step: int, total: int, message: str) -> None:
        if step == 1:
            raise Cancelled("Stopped.", suggestion="")

    with pytest.raises(Cancelled):
        write_turntable(labelled_box(2), tmp_path / "turn.webp", frames=3, size=32, on_progress=cancel)
    assert not list(tmp_path.iterdir())


def test_png_keeps_every_pixel_and_shrinking_averages() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(encode_image(image)), image)
    assert resize_to_width(image, 8) is image
    np.testing.assert_allclose(resize_to_width(image, 4)[0, 0], image[:2, :2].mean(axis=(0, 1)), atol=1)


def test_a_thumbnail_is_a_small_data_url() -> None:
    url = thumbnail_url(np.full((400, 600, 3), 200, np.uint8))
    assert url.startswith("data:image/webp;base64,")
    assert len(url) < 4000
