"""The whole pipeline: the golden, what its random networks make, and how it fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import Golden, assert_matches
from torch import Tensor

from reconflow.errors import (
    Cancelled,
    ModelConvergenceError,
    ModelGpuOutOfMemoryError,
    ModelOutOfMemoryError,
    ReconflowError,
)
from reconflow.reconviagen import inference
from reconflow.reconviagen.checkpoints import CLASSES
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.elementwise import TanhGELU
from reconflow.reconviagen.generation_stages import Stages
from reconflow.reconviagen.inference import GenerationSettings, generate
from reconflow.reconviagen.mesh_extraction import extract_mesh
from reconflow.reconviagen.networks import GivenNetworks, PipelineFacts, Role
from reconflow.reconviagen.random_networks import IMAGE_SIZE, TINY, tiny_networks
from reconflow.reconviagen.sampling import SamplerSettings
from reconflow.reconviagen.vggt_aggregator import VGGT

FEW = GenerationSettings(
    SamplerSettings(2, 3.0, (0.6, 1.0), 0.7, 5.0), SamplerSettings(2, 2.5, (0.6, 1.0), 0.5, 3.0), seed=3
)


def networks_of(golden: Golden) -> GivenNetworks:
    facts = golden.facts
    sigma, normalisation = facts["sigma_min"], facts["slat_normalization"]
    names = {role.value: TINY[role][0] for role in TINY}
    modules: dict[Role, Any] = {Role(name): CLASSES[names[name]](**args) for name, args in facts["models"].items()}
    modules[Role.VGGT] = VGGT(**facts["vggt"], heads=())
    modules[Role.DINOV2] = DinoVisionTransformer(**facts["dinov2"])
    weights = golden.weights
    for role, module in modules.items():
        start = f"{role.value}."
        own = {name[len(start) :]: value for name, value in weights.items() if name.startswith(start)}
        module.load_state_dict(own, strict=True)
        module.to(golden.device).eval().requires_grad_(requires_grad=False)
    mean, std = (tuple(normalisation[name]) for name in ("mean", "std"))
    return GivenNetworks(modules, PipelineFacts(mean, std, facts["image_size"], sigma), golden.device)


def settings_of(facts: dict[str, Any]) -> GenerationSettings:
    def sampler(name: str) -> SamplerSettings:
        given = {**facts["pipeline_defaults"], **facts[f"{name}_sampler_params"]}
        return SamplerSettings(**{**given, "cfg_interval": tuple(given["cfg_interval"])})

    return GenerationSettings(sampler("sparse_structure"), sampler("slat"), facts["seed"])


@pytest.mark.golden("pipeline_tiny", gpu=True)
@torch.no_grad()
def test_the_whole_pipeline_matches_the_golden(golden: Golden) -> None:
    networks, settings, expected = networks_of(golden), settings_of(golden.facts), golden.outputs
    rgba = golden.inputs["rgba"]
    images = rgba[..., :3].permute(0, 3, 1, 2).float() / 255
    conditions = inference.encode_views(images, networks)
    assert_matches(conditions.structure, expected["ss_cond"])
    assert_matches(torch.cat(list(conditions.latent)), expected["slat_cond"])
    generator = torch.Generator().manual_seed(settings.seed)
    structure = inference.sample_structure(conditions.structure, networks, settings, generator)
    assert torch.equal(structure.noise, expected["ss_noise"].cpu())
    assert_matches(structure.latent, expected["ss_latent"])
    assert_matches(structure.logits, expected["ss_logits"])
    assert_matches(structure.voxels.coords, expected["coords"])
    latent = inference.sample_latent(structure.voxels, conditions.latent, networks, settings, generator)
    assert_matches(latent.feats, expected["slat"])
    gaussians = inference.decode_gaussians(latent, networks)
    assert_matches(gaussians.positions, expected["gs_xyz"])
    assert_matches(gaussians.scales, expected["gs_scaling"])
    assert_matches(gaussians.rotations, expected["gs_rotation"])
    assert_matches(gaussians.opacities, expected["gs_opacity"])
    assert_matches(gaussians.colours.clamp(0, 1), expected["gs_color"])
    cubes, resolution, use_color = inference.decode_cubes(latent, networks)
    assert_matches(cubes.feats, expected["mesh_feats"])
    mesh = extract_mesh(expected["mesh_feats"], cubes.voxels.coords[:, 1:], resolution, use_color=use_color)
    assert_matches(mesh.faces, expected["faces"])
    assert_matches(mesh.vertices, expected["vertices"])
    if mesh.attributes is not None:
        assert_matches(mesh.attributes, expected["vertex_attrs"])


@pytest.mark.golden("pipeline_tiny", gpu=True)
def test_one_call_generates_the_golden_object(golden: Golden) -> None:
    images = golden.inputs["rgba"][..., :3].permute(0, 3, 1, 2).float() / 255
    generation = generate(images, networks_of(golden), settings_of(golden.facts))
    assert generation.voxels == len(golden.outputs["coords"])
    assert_matches(generation.gaussians.positions, golden.outputs["gs_xyz"])


@pytest.fixture(scope="module")
def tiny() -> GivenNetworks:
    return tiny_networks(0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


def test_random_networks_make_a_closed_lump_whatever_their_seed(images: Tensor) -> None:
    for seed in (0, 5):
        generation = generate(images, tiny_networks(seed), FEW)
        edges = generation.mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values
        _, counts = torch.unique(edges, dim=0, return_counts=True)
        assert counts.unique().tolist() == [2]
        assert generation.mesh.vertices.abs().max() < 0.5


def test_random_networks_leave_the_global_generator_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    tiny_networks(4)
    assert torch.equal(torch.rand(1), expected)


def test_every_sampler_step_is_told_and_progress_never_goes_back(tiny: GivenNetworks, images: Tensor) -> None:
    told: list[tuple[int, str]] = []
    generate(images, tiny, FEW, lambda step, total, message: told.append((step, message)))
    assert [step for step, _ in told] == sorted(step for step, _ in told)
    assert told[-1][0] == 1000
    for part in ("sampling the structure", "sampling the latent"):
        assert sum(message == part for _, message in told) == 2 + FEW.structure.steps


def test_a_run_can_be_cancelled_between_any_two_steps(tiny: GivenNetworks, images: Tensor) -> None:
    calls = 0

    def stop(step: int, total: int, message: str) -> None:
        nonlocal calls
        calls += message == "sampling the structure"
        if calls == 3:
            raise Cancelled("Stop.", suggestion="Go on.")

    with pytest.raises(Cancelled):
        generate(images, tiny, FEW, stop)
    assert calls == 3


class WithOther:
    """Networks one of which is replaced."""

    device = "cpu"
    notes = ()

    def __init__(self, inner: GivenNetworks, role: Role, change: Any) -> None:
        self.facts, self._inner, self._role, self._change = inner.facts, inner, role, change

    @contextmanager
    def open(self, role: Role) -> Iterator[Any]:
        with self._inner.open(role) as network:
            if role != self._role:
                yield network
                return
            hook = network.register_forward_hook(lambda _module, _inputs, output: self._change(output))
            try:
                yield network
            finally:
                hook.remove()


def raise_error(error: Exception) -> Any:
    def change(_output: Any) -> Any:
        raise error

    return change


FULL_CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
FULL_CUDA = "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"


@pytest.mark.parametrize(
    ("role", "change", "kind", "words"),
    [
        (Role.STRUCTURE_DECODER, lambda logits: logits - 1e3, ModelConvergenceError, "no voxel is occupied"),
        (Role.STRUCTURE_FLOW, lambda v: v * float("nan"), ModelConvergenceError, "step 1 of 2 gave values"),
        (Role.LATENT_CONDITION, lambda views: [v / 0 for v in views], ModelConvergenceError, "read from the views"),
        (Role.STRUCTURE_FLOW, raise_error(torch.OutOfMemoryError("full")), ModelGpuOutOfMemoryError, "the structure"),
        (Role.STRUCTURE_FLOW, raise_error(RuntimeError(FULL_CUBLAS)), ModelGpuOutOfMemoryError, "the structure"),
        (Role.VGGT, raise_error(RuntimeError(FULL_CUDA)), ModelGpuOutOfMemoryError, "reading the views together"),
        (Role.VGGT, raise_error(MemoryError()), ModelOutOfMemoryError, "reading the views together"),
    ],
    ids=["empty", "nan", "undefined condition", "gpu memory", "cuBLAS", "CUDA", "memory"],
)
def test_each_failure_is_an_error_of_its_own_with_a_way_out(
    tiny: GivenNetworks, images: Tensor, role: Role, change: Any, kind: type[ReconflowError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        generate(images, WithOther(tiny, role, change), FEW)
    assert caught.value.suggestion


class OnNoGpu:
    """Networks on a GPU whose memory is full, so that not even the pictures get there."""

    device, notes, facts = "cuda", (), PipelineFacts((0.0,), (1.0,))

    @contextmanager
    def open(self, role: Role) -> Iterator[Any]:
        yield None


class NoRoom(Tensor):
    """Pictures that find no room on a GPU."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError(FULL_CUDA)


def test_a_gpu_without_room_for_the_pictures_is_said_with_a_way_out() -> None:
    with pytest.raises(ModelGpuOutOfMemoryError, match="reading the views together") as caught:
        inference.encode_views(torch.zeros(2, 3, 14, 14).as_subclass(NoRoom), OnNoGpu())
    assert "max_views" in caught.value.suggestion


def test_stages_compute_convolutions_and_products_in_full_float32_and_leave_the_setting_alone() -> None:
    def digits() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    before = digits()
    with Stages("cpu").stage("views", 0.0, 1.0, "reading"):
        assert digits() == ("ieee", "ieee")
    assert digits() == before
    with pytest.raises(KeyError), Stages("cpu").stage("views", 0.0, 1.0, "reading"):
        raise KeyError
    assert digits() == before


def test_too_many_voxels_are_refused_before_the_latent_is_sampled(tiny: GivenNetworks, images: Tensor) -> None:
    with pytest.raises(ModelConvergenceError, match="216 occupied voxels") as caught:
        generate(images, tiny, replace(FEW, max_voxels=100))
    assert caught.value.details["max_voxels"] == 100


def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    script = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1]))\n"
        "from reconflow.reconviagen.inference import GenerationSettings, generate\n"
        "from reconflow.reconviagen.random_networks import tiny_networks\n"
        "from reconflow.reconviagen.sampling import SamplerSettings\n"
        "images = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))\n"
        "few = SamplerSettings(2, 7.5, (0.6, 1.0), 0.7, 5.0)\n"
        "found = generate(images, tiny_networks(2), GenerationSettings(few, few, 3))\n"
        "torch.save([found.mesh.vertices, found.mesh.faces, found.gaussians.stored_xyz], sys.argv[2])\n"
    )
    results = []
    for threads in (1, 3):
        path = tmp_path / f"{threads}.pt"
        subprocess.run([sys.executable, "-c", script, str(threads), str(path)], check=True)
        results.append(torch.load(path, weights_only=True))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_gelu_does_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        for count in (1000, 16_385, 20_000, 55_296, 131_072):
            x = 3 * torch.randn(count, generator=torch.Generator().manual_seed(0))
            results = []
            for threads in (1, 2, 3, 5, 7, 16):
                torch.set_num_threads(threads)
                results.append(TanhGELU()(x))
            assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(before)


COMPILED = (
    "spconv", "cumm", "flash_attn", "xformers", "kaolin", "nvdiffrast", "torchvision", "diff_gaussian_rasterization",
    "pymeshfix", "igraph", "utils3d", "torchsparse", "vox2seq",
)  # fmt: skip


def test_no_compiled_package_of_the_original_is_needed_or_imported() -> None:
    script = (
        "import importlib, pkgutil, sys\n"
        f"names = {COMPILED!r}\n"
        "for name in names:\n"
        "    sys.modules[name] = None\n"  # whoever imports it gets an error
        "import reconflow.reconviagen as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'reconflow.reconviagen.{module.name}')\n"
        "print([name for name in names if sys.modules[name] is not None])\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_no_module_of_the_model_names_such_a_package_in_an_import() -> None:
    found = [
        (path.name, name)
        for path in (Path(inference.__file__).parent).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in imported_names(node)
        if name in COMPILED
    ]
    assert found == []


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module.split(".")[0]]
    return []
