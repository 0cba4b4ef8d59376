"""Single measures against values that can be worked out by hand."""

import numpy as np
import pytest

from reconflow.quality.metrics import MAX_PSNR_DB, depth_error, fit_depth_scale, mask_iou, psnr_db, squared_error
from reconflow.quality.report import QualityStatus, QualityThresholds


def test_an_error_of_a_tenth_everywhere_is_twenty_decibels() -> None:
    error = squared_error(np.full((4, 5, 3), 0.5), np.full((4, 5, 3), 0.6))
    assert error.shape == (4, 5)
    assert psnr_db(float(error.mean())) == pytest.approx(20.0)


def test_equal_pictures_get_the_finite_maximum() -> None:
    assert psnr_db(0.0) == MAX_PSNR_DB


def test_half_overlapping_masks_have_an_iou_of_a_third() -> None:
    first, second = np.zeros((2, 1, 3), bool)
    first[0, :2] = True
    second[0, 1:] = True
    assert mask_iou(first, second) == pytest.approx(1 / 3)
    assert mask_iou(first & False, second & False) == 1.0


def test_depth_errors_are_counted_in_levels_and_as_fractions() -> None:
    values = np.array([[200, 100, 0, 50]], np.uint16)
    rendered = np.array([[2.02, 0.98, 3.0, 0.0]])
    error = depth_error(values, rendered, 255, 2.55)
    assert error is not None
    assert error.mae_levels == pytest.approx(2.0)
    assert error.rmse_levels == pytest.approx(2.0)
    assert error.mae_relative == pytest.approx((0.01 + 0.02) / 2)
    assert error.overlap == pytest.approx(0.5)


def test_maps_that_do_not_overlap_have_no_depth_error() -> None:
    values, rendered = np.array([[9, 0]], np.uint16), np.array([[0.0, 1.0]])
    assert depth_error(values, rendered, 255, 1.0) is None
    assert fit_depth_scale(values, rendered, 255) is None


def test_the_depth_scale_survives_a_wrong_patch() -> None:
    values = np.full((20, 20), 128, np.uint16)
    rendered = np.full((20, 20), 1.28)
    rendered[:5] = 9.0
    assert fit_depth_scale(values, rendered, 255) == pytest.approx(2.55)


@pytest.mark.parametrize(
    ("psnr", "ssim", "status", "reasons"),
    [
        (25.0, 0.85, QualityStatus.NORMAL, 0),
        (24.99, 0.99, QualityStatus.WARNING, 1),
        (40.0, 0.80, QualityStatus.WARNING, 1),
        (20.0, 0.75, QualityStatus.WARNING, 2),
        (40.0, 0.74, QualityStatus.FAILURE, 1),
        (19.9, 0.9, QualityStatus.FAILURE, 1),
    ],
)
def test_thresholds_class_a_result(psnr: float, ssim: float, status: QualityStatus, reasons: int) -> None:
    found, sentences = QualityThresholds().classify(psnr, ssim)
    assert (found, len(sentences)) == (status, reasons)
