"""DINOv2 and VGGT against the goldens, and what must hold for any weights."""

from __future__ import annotations

import re

import pytest
import torch
from golden_files import Golden, assert_matches
from torch import nn

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.vggt_aggregator import VGGT
from reconflow.reconviagen.vggt_heads import cameras_from_encoding, rotation_from_quaternion
from reconflow.reconviagen.vggt_point_head import PointHead
from reconflow.reconviagen.vit import RotaryTable, normalise_images


def norm_epsilons(module: nn.Module) -> set[float]:
    return {part.eps for part in module.modules() if isinstance(part, nn.LayerNorm)}


@pytest.mark.golden("dinov2_reg", gpu=True)
@torch.no_grad()
def test_dinov2_matches_the_golden(golden: Golden) -> None:
    network = golden.load(DinoVisionTransformer(**golden.facts["args"]))
    tolerance = golden.tolerance(1e-6)
    for name, images in golden.inputs.items():
        suffix = name.removeprefix("images")
        tokens = network(normalise_images(images))
        actual = {
            "x_prenorm": tokens.prenorm,
            "image_feats": tokens.image_features,
            "x_norm_patchtokens": tokens.normed_patches,
        }
        checked = [key for key in actual if key + suffix in golden.outputs]
        assert checked
        for key in checked:
            assert_matches(actual[key], golden.outputs[key + suffix], tolerance)
        torch.testing.assert_close(network.image_features(images), tokens.image_features)


@pytest.mark.golden("vggt_aggregator", gpu=True)
@torch.no_grad()
def test_vggt_and_its_cameras_match_the_golden(golden: Golden) -> None:
    network = golden.load(VGGT(**golden.facts["args"], heads=("camera",)))
    images, outputs, tolerance = golden.inputs["images"], golden.outputs, golden.tolerance(1e-6)
    expected = {int(name[6:]): value for name, value in outputs.items() if re.fullmatch(r"tokens\d+", name)}
    tokens = network(images, keep=tuple(expected))
    assert tokens.keys() == expected.keys()
    for layer, value in expected.items():
        assert_matches(tokens[layer], value, tolerance)
    encodings = network.camera_head(tokens[max(tokens)])
    assert_matches(encodings, outputs["pose_enc"], tolerance)
    extrinsic, intrinsic = cameras_from_encoding(outputs["pose_enc"][-1], tuple(images.shape[-2:]))
    assert_matches(extrinsic, outputs["extrinsic"], tolerance)
    assert_matches(intrinsic, outputs["intrinsic"], tolerance)


@pytest.mark.golden("vggt_point_head", gpu=True)
@torch.no_grad()
def test_the_point_head_matches_the_golden(golden: Golden) -> None:
    head = golden.load(PointHead(**golden.facts["args"]))
    tokens = {int(name.removeprefix("tokens")): value for name, value in golden.inputs.items()}
    image_hw = tuple(golden.facts["image_size"])
    points, confidence = head(tokens, image_hw, golden.facts["patch_start_idx"], frames_at_once=2)
    assert_matches(points, golden.outputs["points"], golden.tolerance(2e-6))
    assert_matches(confidence, golden.outputs["conf"], golden.tolerance(2e-6))


def tiny_vggt() -> VGGT:
    torch.manual_seed(0)
    network = VGGT(
        28, 14, 16, depth=3, num_heads=2, vit_depth=1, vit_num_heads=2, camera_num_heads=2, heads=("camera",)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(requires_grad=False)


def test_only_wanted_blocks_are_kept_and_later_ones_not_computed() -> None:
    network, images = tiny_vggt(), torch.rand(1, 2, 3, 28, 42)
    everything = network.aggregator(images)
    assert list(everything) == [0, 1, 2]
    network.aggregator.frame_blocks[2] = nn.Module()  # calling it would fail
    some = network.aggregator(images, keep=(1,))
    assert list(some) == [1]
    assert torch.equal(some[1], everything[1])


def test_scenes_of_a_batch_do_not_see_each_other_and_later_frames_are_alike() -> None:
    network, images = tiny_vggt(), torch.rand(2, 3, 3, 28, 28)
    together = network(images, keep=(2,))[2]
    torch.testing.assert_close(together[1:], network(images[1:], keep=(2,))[2])
    swapped = network(images[:, [0, 2, 1]], keep=(2,))[2]
    torch.testing.assert_close(swapped[:, [0, 2, 1]], together)
    other_first = network(images[:, [1, 0, 2]], keep=(2,))[2]
    assert (other_first[:, [1, 0, 2]] - together).abs().max() > 1e-3


def test_rotary_attention_depends_on_relative_positions_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8).unbind(0)
    products = []
    for shift in (0, 5):
        tables = [RotaryTable(torch.tensor([[row + shift, column + shift]]), 8) for row, column in ((3, 1), (2, 7))]
        products.append((tables[0].rotate(query) * tables[1].rotate(key)).sum())
    torch.testing.assert_close(products[0], products[1])


def test_a_quaternion_of_any_length_is_a_rotation() -> None:
    half = 2**0.5
    quarter_turn_about_z = rotation_from_quaternion(torch.tensor([0.0, 0.0, half, half]))
    torch.testing.assert_close(quarter_turn_about_z, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    rotations = rotation_from_quaternion(torch.randn(5, 4, dtype=torch.float64))
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))


def test_a_field_of_view_of_90_degrees_has_a_focal_length_of_half_the_image() -> None:
    encoding = torch.tensor([1.0, 2, 3, 0, 0, 0, 1, torch.pi / 2, torch.pi / 2])
    extrinsic, intrinsic = cameras_from_encoding(encoding, (40, 60))
    torch.testing.assert_close(extrinsic, torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]]))
    torch.testing.assert_close(intrinsic, torch.tensor([[30.0, 0, 30], [0, 20, 20], [0, 0, 1]]))


def test_frames_at_once_do_not_change_the_points() -> None:
    torch.manual_seed(0)
    head = PointHead(12, 14, features=8, out_channels=(4, 4, 8, 8), intermediate_layer_idx=(0, 0, 1, 1)).eval()
    tokens = {layer: torch.randn(1, 3, 5 + 6, 12) for layer in (0, 1)}
    points, confidence = head(tokens, (28, 42))
    assert points.shape == (1, 3, 28, 42, 3)
    assert confidence.min() >= 1
    for part, whole in zip(head(tokens, (28, 42), frames_at_once=1), (points, confidence), strict=True):
        torch.testing.assert_close(part, whole)
    with pytest.raises(ValidationFailedError, match="11 tokens per frame"):
        head(tokens, (28, 28))


def test_epsilons_of_the_norms_are_the_official_ones() -> None:
    network = tiny_vggt()
    assert norm_epsilons(network.aggregator.patch_embed) == {1e-6}
    assert norm_epsilons(network.aggregator.frame_blocks) == norm_epsilons(network.aggregator.global_blocks) == {1e-5}
    assert network.camera_head is not None
    assert norm_epsilons(network.camera_head) == norm_epsilons(PointHead(12, out_channels=(4, 4, 4, 4))) == {1e-5}


def test_images_that_patches_do_not_fill_are_refused() -> None:
    network = tiny_vggt()
    with pytest.raises(ValidationFailedError, match="patches of 14 pixels"):
        network(torch.rand(1, 1, 3, 28, 30), keep=(0,))
    with pytest.raises(ValidationFailedError, match="wanted blocks"):
        network(torch.rand(1, 1, 3, 28, 28), keep=(7,))
    with pytest.raises(ModelError, match="not supported"):
        DinoVisionTransformer(28, 14, 16, 1, 2, ffn_layer="swiglu")
    with pytest.raises(ModelError, match="not supported"):
        PointHead(activation="norm_exp")
