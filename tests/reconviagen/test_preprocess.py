"""Cutting objects out of pictures for the networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_files import Golden
from PIL import Image

from reconflow.errors import InvalidFileFormatError, ValidationFailedError
from reconflow.reconviagen.preprocess import images_to_tensor, prepare_image


def picture(box: tuple[int, int, int, int], size: tuple[int, int] = (100, 80)) -> Image.Image:
    """A grey picture with one opaque white rectangle (left, top, right, bottom)."""
    image = Image.new("RGBA", size, (90, 90, 90, 0))
    image.paste((255, 255, 255, 255), box)
    return image


@pytest.mark.golden("preprocess")
def test_prepared_images_match_the_golden_within_one_level(golden: Golden) -> None:
    for index, case in enumerate(golden.facts["cases"]):
        given = Image.fromarray(golden.tensors[f"in.{index}.rgba"].numpy(), "RGBA")
        prepared = np.asarray(prepare_image(given, resolution=case["resolution"])).astype(int)
        expected = golden.tensors[f"out.{index}.rgba"].numpy().astype(int)
        assert prepared.shape == expected.shape
        assert np.abs(prepared - expected).max() <= 1


def test_the_object_is_centred_and_fills_ten_elevenths() -> None:
    prepared = np.asarray(prepare_image(picture((10, 20, 51, 41)), resolution=88))
    rows, columns = np.nonzero(prepared[..., 3] > 204)
    assert abs((columns.min() + columns.max()) / 2 - 43.5) <= 1.5
    assert abs((rows.min() + rows.max()) / 2 - 43.5) <= 1.5
    assert np.ptp(columns) == pytest.approx(88 * 40 / 44, abs=2)
    assert not prepared[prepared[..., 3] <= 204][:, :3].any()


def test_a_picture_without_transparency_needs_a_mask() -> None:
    opaque = picture((10, 20, 51, 41)).convert("RGB")
    with pytest.raises(InvalidFileFormatError, match="no transparency"):
        prepare_image(opaque)
    with pytest.raises(InvalidFileFormatError, match="no transparency"):
        prepare_image(opaque.convert("RGBA"))
    by_mask = prepare_image(opaque, resolution=40, matting=lambda rgb: np.asarray(rgb)[..., 0] > 100)
    by_alpha = prepare_image(picture((10, 20, 51, 41)), resolution=40)
    assert np.array_equal(by_mask, by_alpha)


def test_large_pictures_are_reduced_before_the_mask_is_sought() -> None:
    seen = []

    def matting(rgb: Image.Image) -> np.ndarray:
        seen.append(rgb.size)
        return np.ones((rgb.height, rgb.width), bool)

    prepare_image(Image.new("RGB", (2048, 1001)), resolution=14, matting=matting)
    assert seen == [(1024, 500)]


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 5, 6, 6)])
def test_a_picture_without_an_object_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValidationFailedError, match="shows no object"):
        prepare_image(picture(box))


def test_the_networks_see_colours_in_0_to_1_and_no_alpha() -> None:
    image = Image.new("RGBA", (28, 28), (255, 51, 0, 0))
    stack = images_to_tensor([image, image], resolution=28)
    torch.testing.assert_close(stack[1, :, 3, 5], torch.tensor([1, 0.2, 0]))
    assert images_to_tensor([image], resolution=14).shape == (1, 3, 14, 14)
    with pytest.raises(ValidationFailedError, match="no images"):
        images_to_tensor([])
