"""Networks built from the official arguments have exactly the tensors of the official files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reconflow.reconviagen.conditioning import ModulatedMultiViewCond, ModulatedSLATMultiViewCond
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.structure_decoder import SparseStructureDecoder
from reconflow.reconviagen.structure_flow import SparseStructureFlowModel
from reconflow.reconviagen.vggt_aggregator import IGNORED_PREFIXES, VGGT

_DTYPES = {torch.float32: "F32", torch.float16: "F16"}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "dinov2_vitl14_reg": DinoVisionTransformer,
    "vggt_object_v0_1": VGGT,
    "ss_vggt_cond": ModulatedMultiViewCond,
    "slat_vggt_cond": ModulatedSLATMultiViewCond,
    "ss_flow_img_dit_L_16l8_fp16": SparseStructureFlowModel,
    "ss_dec_conv3d_16l8_fp16": SparseStructureDecoder,
}


def layout_of(module: nn.Module) -> dict[str, tuple[str, list[int]]]:
    return {name: (_DTYPES[tensor.dtype], list(tensor.shape)) for name, tensor in module.state_dict().items()}


def read_manifest(manifests: Path, stem: str) -> tuple[dict[str, Any], dict[str, tuple[str, list[int]]]]:
    manifest = json.loads((manifests / f"{stem}.json").read_text(encoding="utf-8"))
    tensors = {name: (dtype, shape) for name, (dtype, shape) in manifest["tensors"].items()}
    return manifest["args"], tensors


@pytest.mark.parametrize("stem", NETWORKS)
def test_names_shapes_and_dtypes_are_those_of_the_official_file(manifests: Path, stem: str) -> None:
    arguments, expected = read_manifest(manifests, stem)
    if stem == "vggt_object_v0_1":
        expected = {name: layout for name, layout in expected.items() if not name.startswith(IGNORED_PREFIXES)}
    with torch.device("meta"):
        network = NETWORKS[stem](**arguments)
    assert layout_of(network) == expected


def test_ignored_parts_of_the_vggt_file_are_the_only_ones_this_network_lacks(manifests: Path) -> None:
    _, tensors = read_manifest(manifests, "vggt_object_v0_1")
    assert {name.split(".")[0] for name in tensors} == {
        "aggregator", "camera_head", "point_head", *(prefix.rstrip(".") for prefix in IGNORED_PREFIXES),
    }  # fmt: skip


@pytest.mark.parametrize("stem", NETWORKS)
def test_every_tensor_of_a_network_is_in_its_state_dict(manifests: Path, stem: str) -> None:
    """A network built without memory is complete once its state dict is assigned: it keeps nothing else."""
    arguments, _ = read_manifest(manifests, stem)
    with torch.device("meta"):
        network = NETWORKS[stem](**arguments)
    kept = {name for name, _ in network.named_parameters()} | {name for name, _ in network.named_buffers()}
    assert kept == set(network.state_dict())
    plain = [key for part in network.modules() for key, value in vars(part).items() if isinstance(value, torch.Tensor)]
    assert plain == []
