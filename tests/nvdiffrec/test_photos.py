import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.colour import linear_from_srgb_u8
from reconflow.datasets.dataset import MaskSource, View
from reconflow.nvdiffrec.photos import prepare_photo, shrink
from tests.nvdiffrec.painted_objects import rig

SIZE = 96


def camera() -> PinholeCamera:
    return rig(SIZE)[0]


def disc(size: int = SIZE) -> NDArray[np.float32]:
    """A disc with soft edges."""
    y, x = np.mgrid[0:size, 0:size] + 0.5 - size / 2
    return np.clip(0.3 * size - np.hypot(x, y) + 0.5, 0, 1).astype(np.float32)


def photo_over(background: int, noise: int = 0) -> View:
    alpha = disc()
    rng = np.random.default_rng(1)
    rgb = np.where(alpha[..., None] > 0, rng.integers(0, 255, (SIZE, SIZE, 3)), background)
    rgb = np.clip(rgb - rng.integers(0, noise + 1, rgb.shape), 0, 255).astype(np.uint8)
    return View("front", rgb, alpha, MaskSource.ALPHA)


@pytest.mark.parametrize(
    ("background", "noise", "white"), [(255, 0, True), (255, 2, True), (240, 0, False), (0, 0, False)]
)
def test_a_white_background_is_recognised(background: int, noise: int, white: bool) -> None:
    assert prepare_photo(photo_over(background, noise), camera(), SIZE).on_white is white


def test_without_any_background_nothing_is_called_white() -> None:
    view = View("front", np.full((SIZE, SIZE, 3), 255, np.uint8), np.ones((SIZE, SIZE), np.float32), MaskSource.ALPHA)
    assert not prepare_photo(view, camera(), SIZE).on_white


def test_a_photo_on_black_is_laid_over_white_in_linear_light() -> None:
    photo = prepare_photo(photo_over(0), camera(), SIZE)
    alpha = disc()[..., None]
    expected = linear_from_srgb_u8(photo_over(0).rgb_srgb) * alpha + (1 - alpha)
    np.testing.assert_allclose(photo.over_white, expected, atol=1e-6)
    np.testing.assert_array_equal(photo.over_white[0, 0], [1, 1, 1])


def test_a_photo_on_white_is_taken_as_it_is() -> None:
    photo = prepare_photo(photo_over(255), camera(), SIZE)
    np.testing.assert_array_equal(photo.over_white, linear_from_srgb_u8(photo_over(255).rgb_srgb))


@pytest.mark.parametrize("size", [48, 40, 32, 7])
def test_shrinking_by_areas_keeps_the_mean(size: int) -> None:
    image = np.random.default_rng(0).random((SIZE, SIZE, 3), np.float32)
    small = shrink(image, (size, size))
    assert small.shape == (size, size, 3)
    np.testing.assert_allclose(small.mean(axis=(0, 1)), image.mean(axis=(0, 1)), rtol=2e-3)
    assert small.std() < image.std()


def test_shrinking_by_a_whole_factor_averages_blocks() -> None:
    image = np.random.default_rng(0).random((SIZE, SIZE // 2, 2), np.float32)
    blocks = image.reshape(SIZE // 4, 4, SIZE // 8, 4, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink(image, (SIZE // 4, SIZE // 8)), blocks, atol=1e-6)


def test_light_is_averaged_and_not_display_values() -> None:
    stripes = np.zeros((SIZE, SIZE, 3), np.uint8)
    stripes[::2] = 255
    view = View("front", stripes, np.ones((SIZE, SIZE), np.float32), MaskSource.ALPHA)
    np.testing.assert_allclose(prepare_photo(view, camera(), SIZE // 2).linear, 0.5, atol=1e-5)


def test_a_shrunk_photo_keeps_its_field_of_view_and_its_coverage() -> None:
    photo = prepare_photo(photo_over(255), camera(), 32)
    assert photo.linear.shape == (32, 32, 3)
    assert photo.camera.image_hw == (32, 32)
    assert photo.camera.fov_x_rad == pytest.approx(camera().fov_x_rad)
    assert photo.coverage.mean() == pytest.approx(disc().mean(), rel=1e-3)


def test_a_photo_is_never_enlarged() -> None:
    photo = prepare_photo(photo_over(255), camera(), 4 * SIZE)
    assert photo.linear.shape == (SIZE, SIZE, 3)
    assert photo.camera.image_hw == (SIZE, SIZE)
