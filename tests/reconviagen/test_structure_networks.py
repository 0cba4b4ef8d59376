"""Conditioners, sparse-structure flow and decoder: goldens, and what must hold for any weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_files import Golden, assert_matches
from torch import Tensor, nn

from reconflow.errors import ModelConvergenceError, ModelError, ValidationFailedError
from reconflow.reconviagen.attention import ZeroContext
from reconflow.reconviagen.conditioning import LAYERS, ModulatedMultiViewCond, ModulatedSLATMultiViewCond
from reconflow.reconviagen.sampling import FlowSampler, SamplerSettings
from reconflow.reconviagen.structure_decoder import SparseStructureDecoder, occupied_voxels, pixel_shuffle_3d
from reconflow.reconviagen.structure_flow import SparseStructureFlowModel, patchify, unpatchify


def with_random_weights(module: nn.Module, std: float = 0.2) -> Any:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval().requires_grad_(requires_grad=False)


def tokens_of(inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    start = "tokens_layer"
    return {int(name.removeprefix(start)): value for name, value in inputs.items() if name.startswith(start)}


@pytest.mark.golden("ss_vggt_cond", gpu=True)
@torch.no_grad()
def test_the_structure_condition_matches_the_golden(golden: Golden) -> None:
    network = golden.load(ModulatedMultiViewCond(**golden.facts["args"]))
    condition = network(tokens_of(golden.inputs), golden.inputs["image_feats"])
    assert_matches(condition, golden.outputs["cond"], golden.tolerance(1e-6))


@pytest.mark.golden("slat_vggt_cond", gpu=True)
@torch.no_grad()
def test_the_latent_condition_matches_the_golden(golden: Golden) -> None:
    network = golden.load(ModulatedSLATMultiViewCond(**golden.facts["args"]))
    views = network(tokens_of(golden.inputs), golden.inputs["image_feats"])
    assert_matches(torch.stack(views, dim=1), golden.outputs["cond"], golden.tolerance(1e-6))


@pytest.mark.golden("ss_flow", gpu=True)
@torch.no_grad()
def test_the_structure_flow_matches_the_golden(golden: Golden) -> None:
    network = golden.load(SparseStructureFlowModel(**golden.facts["args"]))
    inputs, tolerance = golden.inputs, golden.tolerance(1e-6)
    for condition in (inputs["cond"], network.prepare(inputs["cond"])):
        assert_matches(network(inputs["x"], inputs["t"], condition), golden.outputs["v"], tolerance)
    positive, negative = network.predict_guided(inputs["x"], inputs["t"], network.prepare(inputs["cond"]))
    assert_matches(positive, golden.outputs["v"], tolerance)
    assert_matches(negative, network(inputs["x"], inputs["t"], torch.zeros_like(inputs["cond"])), 2e-6)


@pytest.mark.golden("ss_decoder", gpu=True)
@torch.no_grad()
def test_the_structure_decoder_matches_the_golden(golden: Golden) -> None:
    network = golden.load(SparseStructureDecoder(**golden.facts["args"]))
    assert_matches(network(golden.inputs["z"]), golden.outputs["logits"], golden.tolerance(1e-6))
    assert_matches(occupied_voxels(golden.outputs["logits"]), golden.outputs["coords"])


def tiny_flow(**arguments: Any) -> SparseStructureFlowModel:
    sizes = {"resolution": 4, "in_channels": 3, "out_channels": 3, "model_channels": 24, "cond_channels": 10}
    flow = SparseStructureFlowModel(**sizes, num_blocks=2, num_heads=2, **{"qk_rms_norm": True, **arguments})
    return with_random_weights(flow)


def test_the_zero_condition_is_exact_and_needs_no_tokens() -> None:
    flow, x, t = tiny_flow(), torch.randn(2, 3, 4, 4, 4), torch.tensor([1000.0, 300.0])
    for zeros in (torch.zeros(2, 1, 10), torch.zeros(2, 9, 10), [torch.zeros(2, 9, 10)] * 3):
        torch.testing.assert_close(flow(x, t, ZeroContext()), flow(x, t, zeros))


def test_guidance_in_one_pass_samples_what_two_passes_sample() -> None:
    flow, noise = tiny_flow(), torch.randn(1, 3, 4, 4, 4)
    prepared = flow.prepare(torch.randn(1, 7, 10))
    settings = SamplerSettings(3, 4.0, (0.5, 1.0), 0.7)
    in_two, in_one = (
        list(FlowSampler().trajectory(flow, noise, prepared, settings, pair=pair))[-1].x_t
        for pair in (None, flow.predict_guided)
    )
    torch.testing.assert_close(in_two, in_one)


@pytest.mark.parametrize("arguments", [{"patch_size": 2}, {"share_mod": True}, {"qk_rms_norm_cross": True}])
def test_official_variants_of_the_flow_run(arguments: dict[str, Any]) -> None:
    flow, x = tiny_flow(**arguments), torch.randn(1, 3, 4, 4, 4)
    assert flow(x, torch.zeros(1), torch.randn(1, 5, 10)).shape == x.shape


def test_patches_keep_channels_slow_and_offsets_fast() -> None:
    x = torch.arange(2 * 8.0).reshape(1, 2, 2, 2, 2)
    assert patchify(x, 2)[0, 0].tolist() == list(range(16))
    grid = torch.randn(2, 3, 4, 4, 4)
    assert torch.equal(unpatchify(patchify(grid, 2), 2, 2), grid)
    assert torch.equal(patchify(grid, 1), grid.flatten(2).mT)


def test_children_of_a_voxel_come_from_its_eight_channels() -> None:
    spread = pixel_shuffle_3d(torch.arange(16.0).reshape(1, 16, 1, 1, 1))
    assert spread[0, 1].flatten().tolist() == list(range(8, 16))


def test_occupied_voxels_are_those_above_zero_in_row_major_order() -> None:
    logits = torch.full((2, 1, 3, 3, 3), -1.0)
    logits[0, 0, 2, 1, 0] = logits[0, 0, 0, 1, 2] = logits[1, 0, 1, 1, 1] = 1e-6
    logits[1, 0, 0, 0, 0] = 0
    voxels = occupied_voxels(logits)
    assert voxels.tolist() == [[0, 0, 1, 2], [0, 2, 1, 0], [1, 1, 1, 1]]
    assert voxels.dtype == torch.int32


def test_an_empty_or_undefined_structure_is_an_error_with_a_way_out() -> None:
    with pytest.raises(ModelConvergenceError, match="no voxel is occupied") as caught:
        occupied_voxels(torch.full((1, 1, 2, 2, 2), -1.0))
    assert caught.value.suggestion
    with pytest.raises(ModelConvergenceError, match="not numbers"):
        occupied_voxels(torch.full((1, 1, 2, 2, 2), float("nan")))


def test_conditions_of_views_depend_on_their_own_view_only() -> None:
    network = with_random_weights(ModulatedSLATMultiViewCond(8, 20))
    tokens = {layer: torch.randn(1, 3, 7, 12) for layer in LAYERS}
    features = torch.randn(1, 3, 7, 8)
    views = network(tokens, features)
    alone = network({layer: value[:, 1:2] for layer, value in tokens.items()}, features[:, 1:2])
    torch.testing.assert_close(alone[0], views[1])


def test_the_structure_condition_does_not_depend_on_the_order_of_views_or_on_prefix_tokens() -> None:
    network = with_random_weights(ModulatedMultiViewCond(8, 20, num_heads=2, num_init_tokens=4))
    tokens = {layer: torch.randn(2, 3, 7, 12) for layer in LAYERS}
    features = torch.randn(2, 3, 7, 8)
    condition = network(tokens, features)
    assert condition.shape == (2, 4, 8)
    turned = {layer: value.flip(1).clone() for layer, value in tokens.items()}
    for value in turned.values():
        value[:, :, :5] = 7
    torch.testing.assert_close(network(turned, features.flip(1)), condition)


def test_tokens_that_do_not_fit_are_refused() -> None:
    network = ModulatedSLATMultiViewCond(8, 20)
    tokens = {layer: torch.randn(1, 3, 7, 12) for layer in LAYERS}
    for wrong, features in (
        ({**tokens, 11: torch.randn(1, 2, 7, 12)}, torch.randn(1, 3, 7, 8)),
        ({4: tokens[4]}, torch.randn(1, 3, 7, 8)),
        (tokens, torch.randn(1, 3, 7, 9)),
    ):
        with pytest.raises(ValidationFailedError, match="do not fit"):
            network(wrong, features)


def test_configurations_and_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="pe_mode 'rope'"):
        tiny_flow(pe_mode="rope")
    with pytest.raises(ModelError, match="do not fill"):
        tiny_flow(patch_size=3)
    with pytest.raises(ModelError, match="norm_type 'group'"):
        SparseStructureDecoder(norm_type="group", channels=(8, 4))
    with pytest.raises(ValidationFailedError, match="do not fit the flow"):
        tiny_flow()(torch.randn(1, 3, 4, 4, 5), torch.zeros(1), ZeroContext())
    with pytest.raises(ValidationFailedError, match="structure decoder"):
        SparseStructureDecoder(channels=(8, 4))(torch.randn(1, 3, 4, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_torso_of_half_precision_gives_float32_near_the_float32_answer(dtype: torch.dtype) -> None:
    x, t, condition = torch.randn(1, 3, 4, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 10)
    exact = tiny_flow()(x, t, condition)
    flow = tiny_flow()
    flow.convert_to(dtype)
    for given in (condition, flow.prepare(condition)):
        velocity = flow(x, t, given)
        assert velocity.dtype == torch.float32
        torch.testing.assert_close(velocity, exact, atol=0.05, rtol=0.05)
