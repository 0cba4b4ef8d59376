"""The official files by their manifests: names, shapes and dtypes of every tensor, in files as large as the real ones.

The files are sparse: they hold zeros that take no space.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from reconflow.errors import WeightsInvalidError
from reconflow.reconviagen.checkpoints import build_network, check_tensors, fill_network, opened_safetensors, read_pth
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.vggt_aggregator import IGNORED_PREFIXES, VGGT

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_DTYPES = {"F32": torch.float32, "F16": torch.float16}
_PUBLISHED = (
    "slat_dec_gs_swin8_B_64l8gs32_fp16",
    "slat_dec_mesh_swin8_B_64l8m256c_fp16",
    "slat_flow_img_dit_L_64l8p2_fp16",
    "slat_vggt_cond",
    "ss_dec_conv3d_16l8_fp16",
    "ss_flow_img_dit_L_16l8_fp16",
    "ss_vggt_cond",
)


def manifest(manifests: Path, stem: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((manifests / f"{stem}.json").read_text("utf-8"))
    return content


def configuration(facts: dict[str, Any]) -> dict[str, Any]:
    return {"name": facts["class_name"], "args": facts["args"]}


def write_sparse(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write a safetensors file whose data are a hole."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)


@pytest.mark.parametrize("stem", _PUBLISHED)
def test_names_shapes_and_dtypes_are_those_of_the_official_file(manifests: Path, stem: str) -> None:
    facts = manifest(manifests, stem)
    official = build_network(configuration(facts), device="cuda").state_dict()
    wanted = {name: (_DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in facts["tensors"].items()}
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in official.items()} == wanted
    on_cpu = build_network(configuration(facts)).state_dict()
    assert {tensor.dtype for tensor in on_cpu.values()} == {torch.float32}


def test_names_and_shapes_of_the_networks_that_read_pictures_are_the_official_ones(manifests: Path) -> None:
    for stem, kind, arguments, ignored in (
        ("dinov2_vitl14_reg", DinoVisionTransformer, {}, ()),
        ("vggt_object_v0_1", VGGT, {}, IGNORED_PREFIXES),
    ):
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in kind(**arguments).state_dict().items()}
        found = {name: shape for name, (_, shape) in manifest(manifests, stem)["tensors"].items()}
        check_tensors(shapes, found, stem, ignored)


@pytest.mark.slow
@pytest.mark.parametrize("stem", _PUBLISHED)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_file_as_large_as_the_official_one_is_loaded_strictly(
    manifests: Path, tmp_path: Path, stem: str, device: str
) -> None:
    facts, path = manifest(manifests, stem), tmp_path / "x.safetensors"
    write_sparse(path, facts["tensors"])
    network = build_network(configuration(facts), device=device)  # for a GPU: its precision, here on the CPU
    with opened_safetensors(path, stem) as (shapes, read):
        fill_network(network, shapes, read, source=stem)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    assert sum(parameter.numel() for parameter in network.parameters()) == facts["num_parameters"]


@pytest.mark.slow
def test_the_official_vggt_file_is_loaded_without_its_heads(manifests: Path, tmp_path: Path) -> None:
    facts, path = manifest(manifests, "vggt_object_v0_1"), tmp_path / "model.safetensors"
    write_sparse(path, facts["tensors"])
    with torch.device("meta"):
        network = VGGT(heads=())
    ignored = (*IGNORED_PREFIXES, "camera_head.", "point_head.")
    with opened_safetensors(path, "vggt") as (shapes, read):
        fill_network(network, shapes, read, source="vggt", ignored=ignored)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.slow
def test_the_official_dinov2_file_is_loaded_without_unpickling_anything_else(manifests: Path, tmp_path: Path) -> None:
    facts, path = manifest(manifests, "dinov2_vitl14_reg"), tmp_path / "x.pth"
    state = {name: torch.zeros(1).expand(*shape) for name, (_, shape) in facts["tensors"].items()}
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, path)
    assert zipfile.is_zipfile(path)
    read = read_pth(path, "dinov2")
    with torch.device("meta"):
        network = DinoVisionTransformer()
    fill_network(network, {name: tuple(t.shape) for name, t in read.items()}, read.__getitem__, source="dinov2")
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize("stem", _PUBLISHED)
def test_one_tensor_too_many_or_too_few_is_refused(manifests: Path, tmp_path: Path, stem: str) -> None:
    facts, path = manifest(manifests, stem), tmp_path / "x.safetensors"
    tensors = dict(facts["tensors"])
    first = next(iter(tensors))
    tensors["other"] = tensors.pop(first)
    write_sparse(path, tensors)
    network = build_network(configuration(facts))
    with (
        pytest.raises(WeightsInvalidError) as caught,
        opened_safetensors(path, stem) as (shapes, read),
    ):
        fill_network(network, shapes, read, source=stem)
    messages = str(caught.value.details["faults"])
    assert first in messages
    assert "other" in messages
