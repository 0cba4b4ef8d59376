"""What stages need of memory: the estimates, and that too little memory is said before anything is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._full_size import PUBLISHED, full_size_network
from benchmarks.generate import ROLES
from reconflow.errors import ModelGpuOutOfMemoryError, ModelOutOfMemoryError
from reconflow.reconviagen import generation_stages
from reconflow.reconviagen.generation_stages import Stages, check_room
from reconflow.reconviagen.inference import GenerationSettings, encode_views, generate
from reconflow.reconviagen.memory_needs import (
    GPU_CONTEXT_BYTES,
    GPU_LIBRARY_BYTES,
    STAGES,
    peak_bytes,
    stage_bytes,
    what_helps,
)
from reconflow.reconviagen.networks import PipelineFacts, Role
from reconflow.reconviagen.options import RandomWeights, ReconviagenOptions
from reconflow.reconviagen.random_networks import tiny_networks
from reconflow.reconviagen.sampling import SamplerSettings
from reconflow.resources import GIB, estimate_needs

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    Role.STRUCTURE_CONDITION: "ss_vggt_cond",
    Role.LATENT_CONDITION: "slat_vggt_cond",
    Role.STRUCTURE_FLOW: "ss_flow_img_dit_L_16l8_fp16",
    Role.STRUCTURE_DECODER: "ss_dec_conv3d_16l8_fp16",
    Role.LATENT_FLOW: "slat_flow_img_dit_L_64l8p2_fp16",
    Role.GAUSSIAN_DECODER: "slat_dec_gs_swin8_B_64l8gs32_fp16",
    Role.MESH_DECODER: "slat_dec_mesh_swin8_B_64l8m256c_fp16",
}


def test_the_estimates_count_every_parameter() -> None:
    assert set(ROLES) == set(STAGES)
    for stage, role in ROLES.items():
        network = full_size_network(role, "meta")
        assert sum(parameter.numel() for parameter in network.parameters()) == STAGES[stage].parameters, stage
        size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        assert size <= STAGES[stage].gpu_weight_bytes * 1.0001, stage


def test_the_benchmark_measures_networks_of_the_published_sizes(manifests: Path) -> None:
    assert set(FILES) == set(PUBLISHED)
    for role, stem in FILES.items():
        official = json.loads((manifests / f"{stem}.json").read_text("utf-8"))["tensors"]
        ours = {name: list(tensor.shape) for name, tensor in full_size_network(role, "meta").state_dict().items()}
        assert ours == {name: shape for name, (_, shape) in official.items()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("stage", ["latent_condition", "gaussians", "mesh"])
def test_an_estimate_bounds_what_a_small_case_takes(stage: str, device: str) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    size = {"views": 1, "voxels": 500, "steps": 1, "threads": 1}
    options = [text for name, value in size.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.generate", "--child", "--device", device, "--stages", stage, *options]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )
    taken = found["peak_bytes"] - found["start_bytes"]
    estimate = stage_bytes(stage, device, views=1, voxels=500) + (GPU_CONTEXT_BYTES if device != "cpu" else 0)
    assert found["weight_bytes"] < taken <= estimate
    assert device != "cpu" or estimate <= 1.5 * taken + 256 * 2**20


def test_more_views_and_more_voxels_need_more() -> None:
    six, twelve = (stage_bytes("latent", "cpu", views, 10_000) for views in (6, 12))
    assert twelve - six == 6 * STAGES["latent"].view_bytes
    assert peak_bytes("cpu", 6, 50_000) > peak_bytes("cpu", 6, 10_000)
    assert peak_bytes("cuda", 6, 10_000) < 14e9
    options = ReconviagenOptions()
    whole = estimate_needs(6 * 512**2, 6, options.settings())
    assert 4 * GIB < whole.memory_bytes < 8 * GIB
    assert estimate_needs(6 * 512**2, 6, options.settings(), "cuda").gpu_bytes < 14e9


def test_on_a_gpu_the_main_memory_has_to_hold_the_raw_mesh_and_the_gaussians() -> None:
    few, many = (
        estimate_needs(6 * 512**2, 6, ReconviagenOptions(max_voxels=voxels).settings(), "cuda").memory_bytes
        for voxels in (1_000, 20_000)
    )
    assert many - few == 19_000 * (64 * 320 + 32 * 500)
    tiny = ReconviagenOptions(random_weights=RandomWeights.TINY).settings()
    assert estimate_needs(6 * 512**2, 6, tiny, "cuda").memory_bytes < few


class NoneOpened:
    """Networks of the published sizes, none of which may be opened."""

    device, notes, facts = "cpu", (), PipelineFacts((0.0,), (1.0,), published_sizes=True)

    @contextmanager
    def open(self, role: Role) -> Iterator[Any]:
        pytest.fail(f"{role} was opened")
        yield


def test_a_stage_without_room_is_refused_before_its_network_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_stages, "available_memory_bytes", lambda: GIB)
    with pytest.raises(ModelOutOfMemoryError, match="reading the views together needs about") as caught:
        encode_views(torch.zeros(6, 3, 14, 14), NoneOpened())
    assert caught.value.details["stage"] == "views"
    assert caught.value.details["needed_bytes"] == stage_bytes("views", "cpu", 6)
    assert caught.value.suggestion


def test_a_gpu_without_room_is_said_with_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_stages, "_free_gpu_bytes", lambda: 2 * GIB)
    check_room("cuda", 2 * GIB, "decoding the mesh", "mesh")
    with pytest.raises(ModelGpuOutOfMemoryError, match=r"needs about 3.0 GiB, and 2.0 GiB are free") as caught:
        check_room("cuda", 3 * GIB, "decoding the mesh", "mesh")
    assert "another seed" in caught.value.suggestion
    assert caught.value.details == {"stage": "mesh", "needed_bytes": 3 * GIB, "available_bytes": 2 * GIB}


def test_a_gpu_too_full_for_cuda_to_begin_is_said_with_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> int:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(generation_stages, "_free_gpu_bytes", ask)
    networks = NoneOpened()
    networks.device = "cuda"
    with pytest.raises(ModelGpuOutOfMemoryError, match="ran out while reading the views together") as caught:
        encode_views(torch.zeros(6, 3, 14, 14), networks)
    assert "max_views" in caught.value.suggestion


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_advice_names_what_a_stage_depends_on_and_nothing_else(device: str) -> None:
    named = {
        stage: {option for option in ("max_views", "max_voxels") if option in what_helps(stage, device)}
        for stage in STAGES
    }
    assert named == {
        "views": {"max_views"},
        "features": {"max_views"},
        "structure_condition": {"max_views"},
        "latent_condition": {"max_views"},
        "structure": set(),
        "structure_decoder": set(),
        "latent": {"max_views", "max_voxels"},
        "gaussians": {"max_voxels"},
        "mesh": {"max_voxels"},
    }
    assert what_helps("structure", "cuda") == (
        "Stop other programs on the GPU, use a GPU with more memory, or choose the device cpu."
    )


def test_a_gpu_that_is_in_use_needs_no_room_for_cuda_itself() -> None:
    structure = STAGES["structure"]
    activations = structure.fixed_bytes + GPU_LIBRARY_BYTES
    assert stage_bytes("structure", "cuda", 6, 10_000) == structure.gpu_weight_bytes + activations
    largest = max(stage_bytes(stage, "cuda", 6, 10_000) for stage in STAGES)
    assert peak_bytes("cuda", 6, 10_000) == largest + GPU_CONTEXT_BYTES


def test_stages_after_the_structure_are_checked_with_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[int, int]] = {}

    def note(stage: str, device: str, views: int = 0, voxels: int = 0) -> int:
        asked[stage] = views, voxels
        return 0

    monkeypatch.setattr(generation_stages, "stage_bytes", note)
    networks = tiny_networks(2)
    networks.facts = PipelineFacts(networks.facts.latent_mean, networks.facts.latent_std, 56, published_sizes=True)
    few = SamplerSettings(1, 1.0)
    found = generate(torch.rand(2, 3, 56, 56), networks, GenerationSettings(few, few))
    assert set(asked) == set(STAGES)
    assert asked["views"] == (2, 0)
    assert asked["latent"] == asked["mesh"] == (2, found.voxels)


def test_tiny_networks_are_not_held_against_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_stages, "available_memory_bytes", lambda: 1)
    with Stages.of(tiny_networks(1), views=6).stage("views", 0, 1, "reading"):
        pass
