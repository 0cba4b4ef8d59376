"""Networks of the official structure with tiny sizes and random weights: for tests and for trying out the way of a run.

What they make has nothing to do with the pictures: a lump near the middle. Nothing here is ever used in place of
published weights unless it is asked for by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from reconflow.reconviagen.checkpoints import CLASSES
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.networks import GivenNetworks, PipelineFacts, Role
from reconflow.reconviagen.vggt_aggregator import VGGT

_WIDTH: Final = 32
IMAGE_SIZE: Final = 56
_DECODER: Final = {"resolution": 8, "latent_channels": 8, "attn_mode": "swin", "window_size": 4}
_FLOW: Final = {
    "in_channels": 8, "out_channels": 8, "model_channels": 36, "cond_channels": _WIDTH, "num_blocks": 2,
    "num_heads": 3, "mlp_ratio": 2, "qk_rms_norm": True,
}  # fmt: skip
_GAUSSIANS: Final = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True, "voxel_size": 1.5, "num_gaussians": 4, "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 0.0009, "scaling_bias": 0.03, "opacity_bias": 0.5, "scaling_activation": "softplus",
}  # fmt: skip

TINY: Final[Mapping[Role, tuple[str, dict[str, Any]]]] = MappingProxyType(
    {
        Role.STRUCTURE_CONDITION: (
            "ModulatedMultiViewCond",
            {"channels": _WIDTH, "ctx_channels": 3 * _WIDTH, "num_heads": 2, "mlp_ratio": 2.0, "num_init_tokens": 12},
        ),
        Role.LATENT_CONDITION: ("ModulatedSLATMultiViewCond", {"channels": _WIDTH, "ctx_channels": 3 * _WIDTH}),
        Role.STRUCTURE_FLOW: ("SparseStructureFlowModel", {**_FLOW, "resolution": 4}),
        Role.STRUCTURE_DECODER: (
            "SparseStructureDecoder",
            {"latent_channels": 8, "num_res_blocks": 1, "num_res_blocks_middle": 1, "channels": [16, 8]},
        ),
        Role.LATENT_FLOW: (
            "SLatFlowModel",
            {**_FLOW, "resolution": 8, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [12]},
        ),
        Role.GAUSSIAN_DECODER: (
            "SLatGaussianDecoder",
            {**_DECODER, "model_channels": 24, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2,
             "representation_config": _GAUSSIANS},
        ),
        Role.MESH_DECODER: (
            "SLatMeshDecoder",
            {**_DECODER, "model_channels": 256, "num_blocks": 1, "num_heads": 4, "mlp_ratio": 1,
             "representation_config": {"use_color": True}},
        ),
    }
)  # fmt: skip
"""Class and constructor arguments of every network but the two that read the pictures."""


def tiny_networks(seed: int = 0, device: str = "cpu") -> GivenNetworks:
    """Make tiny networks with random weights.

    Args:
        seed: Of the weights; the global generator is left alone.
        device: Where they go.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = {role: CLASSES[name](**arguments) for role, (name, arguments) in TINY.items()}
        sizes: dict[str, Any] = {"img_size": IMAGE_SIZE, "embed_dim": _WIDTH, "num_heads": 2}
        modules[Role.VGGT] = VGGT(
            **sizes, depth=24, mlp_ratio=2.0, vit_depth=1, vit_num_heads=2, vit_mlp_ratio=2.0, heads=()
        )
        modules[Role.DINOV2] = DinoVisionTransformer(**sizes, depth=2, mlp_ratio=2.0)
        for module in modules.values():
            _randomise(module)
        _make_lump(modules[Role.STRUCTURE_DECODER], modules[Role.MESH_DECODER])
    for module in modules.values():
        module.eval().requires_grad_(requires_grad=False).to(device)
    return GivenNetworks(modules, PipelineFacts((0.0,) * 8, (1.0,) * 8, image_size=IMAGE_SIZE), device)


def _randomise(module: nn.Module) -> None:
    """Draw every parameter: matrices so that they keep the size of what goes through, vectors near what they were."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            fan_in = math.prod(parameter.shape[1:])
            nn.init.normal_(parameter, std=1 / math.sqrt(fan_in))
        else:
            parameter.data += 0.02 * torch.randn_like(parameter)


def _make_lump(structure_decoder: nn.Module, mesh_decoder: nn.Module) -> None:
    """Set the outputs so that there is always a surface: what lies off the grid's border is occupied and inside.

    Near the border the last convolution sums over fewer neighbours, and its weights here are all positive.
    """
    layers: Any = structure_decoder.out_layer
    norm, convolution = layers[0], layers[-1]
    norm.weight.data.mul_(0.5)
    norm.bias.data.fill_(1.0)
    convolution.weight.data.fill_(20 / convolution.weight[0].numel())
    convolution.bias.data.fill_(-12.5)
    last: Any = mesh_decoder.out_layer
    last.weight.data.mul_(0.1)
    last.bias.data[:8] -= 0.5
