from __future__ import annotations

import numpy as np
import pytest
from small_datasets import photo, silhouette

from reconflow.datasets.background import fit_background
from reconflow.datasets.masks import border_share, coverage_at, mask_from_background, without_specks
from reconflow.errors import ValidationFailedError


def disc(px: int, radius: float, centre: tuple[float, float] | None = None) -> np.ndarray:
    cy, cx = centre or (px / 2, px / 2)
    ys, xs = np.mgrid[0:px, 0:px] + 0.5
    return np.asarray((xs - cx) ** 2 + (ys - cy) ** 2 < radius**2)


def test_specks_go_and_separate_parts_stay() -> None:
    body = disc(256, 60)
    part = disc(256, 12, (40, 40))
    near = np.zeros_like(body)
    near[128, 190:193] = True
    far = np.zeros_like(body)
    far[240:243, 240:243] = True
    kept, removed = without_specks(body | part | near | far)
    np.testing.assert_array_equal(kept, body | part | near)
    assert removed == 9


def test_a_single_stray_pixel_goes_even_when_near() -> None:
    mask = disc(256, 60)
    mask[128, 192] = True
    assert without_specks(mask)[1] == 1


def test_a_mask_in_one_piece_is_returned_as_it_is() -> None:
    mask = disc(64, 20)
    assert without_specks(mask)[0] is mask


@pytest.mark.parametrize("px", [64, 96, 128, 256])
def test_resampled_coverage_keeps_place_and_area(px: int) -> None:
    small = disc(128, 40, (60, 70))
    coverage = coverage_at(small, (px, px))
    scale = px / 128
    assert coverage.sum() == pytest.approx(small.sum() * scale**2, rel=0.01)
    ys, xs = np.mgrid[0:px, 0:px] + 0.5
    assert (coverage * ys).sum() / coverage.sum() == pytest.approx(60 * scale, abs=0.05 * scale)
    assert (coverage * xs).sum() / coverage.sum() == pytest.approx(70 * scale, abs=0.05 * scale)
    assert coverage.min() == 0
    assert coverage.max() == 1
    assert bool(((coverage > 0) & (coverage < 1)).any()) == (px != 128)


def test_a_sloping_noisy_background_is_told_from_the_object() -> None:
    rng = np.random.default_rng(1)
    px = 128
    ys, xs = np.mgrid[0:px, 0:px] / px
    background = np.stack([235 - 25 * xs, 240 - 15 * ys, 238 - 10 * xs - 10 * ys], axis=-1)
    picture = np.where(silhouette(0, px)[..., None], photo(0, px), background) + rng.normal(0, 1.5, (px, px, 3))
    alpha = mask_from_background(np.clip(picture, 0, 255).astype(np.uint8), "front")
    assert ((alpha >= 0.5) != silhouette(0, px)).mean() < 0.002


def test_white_spots_on_the_object_belong_to_it_and_a_handle_stays_open() -> None:
    ring = disc(128, 50) & ~disc(128, 20)
    spot = disc(128, 1.5, (64, 98))
    picture = np.where((ring & ~spot)[..., None], np.uint8(90), np.uint8(255)).repeat(3, axis=-1)
    alpha = mask_from_background(picture, "front")
    np.testing.assert_array_equal(alpha >= 0.5, ring)


def test_a_busy_background_is_refused_with_a_way_out() -> None:
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert not fit_background(picture).usable
    with pytest.raises(ValidationFailedError) as caught:
        mask_from_background(picture, "front")
    assert "alpha" in caught.value.suggestion


def test_border_share_counts_every_rim_pixel_once() -> None:
    mask = np.zeros((10, 20), bool)
    mask[0] = True
    assert border_share(mask) == pytest.approx(20 / 56)
    assert border_share(np.ones((10, 20), bool)) == 1
