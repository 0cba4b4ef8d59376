"""SSIM: agreement with scikit-image, and its own claims."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from reconflow.errors import ValidationFailedError
from reconflow.quality.ssim import ssim


def reference_ssim(first: np.ndarray, second: np.ndarray) -> float:
    return float(
        structural_similarity(
            first.astype(np.float64),
            second.astype(np.float64),
            channel_axis=2,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(11, 70), st.integers(11, 70), st.floats(0, 1), st.sampled_from([1, 3]))
def test_it_agrees_with_scikit_image(seed: int, height: int, width: int, noise: float, channels: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.random((height, width, channels))
    first[rng.random(first.shape) < 0.5] = 1.0
    second = np.clip(first + noise * rng.standard_normal(first.shape), 0, 1)
    assert ssim(first, second) == pytest.approx(reference_ssim(first, second), abs=1e-9)


def test_it_agrees_on_flat_white_with_a_shape_in_it() -> None:
    first, second = np.ones((2, 120, 150, 3))
    first[30:80, 40:90] = (0.8, 0.2, 0.1)
    second[32:82, 40:90] = (0.7, 0.25, 0.1)
    assert ssim(first, second) == pytest.approx(reference_ssim(first, second), abs=1e-9)


def test_equal_pictures_score_one_and_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 40, 50, 3))
    assert ssim(first, first) == pytest.approx(1.0, abs=1e-12)
    assert ssim(first, second) == pytest.approx(ssim(second, first), abs=1e-12)


def test_pictures_of_different_size_or_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValidationFailedError):
        ssim(np.ones((20, 20, 3)), np.ones((20, 21, 3)))
    with pytest.raises(ValidationFailedError):
        ssim(np.ones((10, 20, 3)), np.ones((10, 20, 3)))
