"""The networks at their published sizes with random weights: as heavy as the real ones, and what they make is noise.

Measures nothing.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from reconflow.reconviagen.checkpoints import CLASSES
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.networks import Role
from reconflow.reconviagen.vggt_aggregator import VGGT

_FLOW: Final = {
    "in_channels": 8, "out_channels": 8, "model_channels": 1024, "cond_channels": 1024, "num_blocks": 24,
    "num_heads": 16, "mlp_ratio": 4, "pe_mode": "ape", "qk_rms_norm": True, "use_fp16": True,
}  # fmt: skip
_DECODER: Final = {
    "resolution": 64, "model_channels": 768, "latent_channels": 8, "num_blocks": 12, "num_heads": 12, "mlp_ratio": 4,
    "attn_mode": "swin", "window_size": 8, "use_fp16": True,
}  # fmt: skip
_GAUSSIANS: Final = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True, "voxel_size": 1.5, "num_gaussians": 32, "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 0.0009, "scaling_bias": 0.004, "opacity_bias": 0.1, "scaling_activation": "softplus",
}  # fmt: skip
PUBLISHED: Final[dict[Role, tuple[str, dict[str, Any]]]] = {
    Role.STRUCTURE_CONDITION: (
        "ModulatedMultiViewCond",
        {"channels": 1024, "ctx_channels": 3072, "num_heads": 16, "mlp_ratio": 4, "qk_rms_norm": True,
         "num_init_tokens": 4096, "use_fp16": True},
    ),
    Role.LATENT_CONDITION: (
        "ModulatedSLATMultiViewCond", {"channels": 1024, "ctx_channels": 3072, "use_fp16": True},
    ),
    Role.STRUCTURE_FLOW: ("SparseStructureFlowModel", {**_FLOW, "resolution": 16, "patch_size": 1}),
    Role.STRUCTURE_DECODER: (
        "SparseStructureDecoder",
        {"out_channels": 1, "latent_channels": 8, "num_res_blocks": 2, "num_res_blocks_middle": 2,
         "channels": [512, 128, 32], "use_fp16": True},
    ),
    Role.LATENT_FLOW: (
        "SLatFlowModel",
        {**_FLOW, "resolution": 64, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [128]},
    ),
    Role.GAUSSIAN_DECODER: ("SLatGaussianDecoder", {**_DECODER, "representation_config": _GAUSSIANS}),
    Role.MESH_DECODER: ("SLatMeshDecoder", {**_DECODER, "representation_config": {"use_color": True}}),
}  # fmt: skip
"""Class and constructor arguments of the published networks, but for the two that read the pictures."""


def full_size_network(role: Role, device: str = "cpu") -> nn.Module:
    """Make a network of the published size in the precision that the device gets, with PyTorch's initial weights."""
    torch.manual_seed(0)
    with torch.device(device):
        if role in PUBLISHED:
            name, arguments = PUBLISHED[role]
            network = CLASSES[name](**{**arguments, "use_fp16": device != "cpu"})
        else:
            network = VGGT(heads=()) if role == Role.VGGT else DinoVisionTransformer()
    if role == Role.MESH_DECODER:  # a surface at both sides of the shell instead of one in every cube
        last: Any = network.out_layer
        last.weight.data.mul_(0.1)
        last.bias.data[:8] -= 0.5
    return network.eval().requires_grad_(requires_grad=False)
