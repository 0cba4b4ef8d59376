"""Generating an object with networks of the published sizes and random weights: seconds and peak memory of every stage.

    python -m benchmarks.generate [--views 6] [--voxels 4000] [--steps 1] [--threads N] [--stages NAME ...]
    python -m benchmarks.generate --device cuda --voxels 12000 --steps 5

Each stage runs in a process of its own, so that its peak memory is that stage's alone. A sampler takes a few steps of
each kind; their means, times the number of steps of the published demonstration, are its extrapolated seconds. The
occupied voxels are a shell about one voxel thick. What weights take to be read from a disk is not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks._full_size import full_size_network
from benchmarks._voxels import sphere_shell
from reconflow.gpus import visible_gpus
from reconflow.reconviagen.checkpoints import CLASSES
from reconflow.reconviagen.conditioning import LAYERS
from reconflow.reconviagen.generation_stages import Stages
from reconflow.reconviagen.inference import (
    GenerationSettings,
    decode_gaussians,
    decode_mesh,
    sample_latent,
    sample_structure,
)
from reconflow.reconviagen.model import generation_settings
from reconflow.reconviagen.networks import GivenNetworks, PipelineFacts, Role
from reconflow.reconviagen.options import ReconviagenOptions
from reconflow.reconviagen.random_networks import TINY
from reconflow.reconviagen.sampling import SamplerSettings
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet
from reconflow.resources import GIB, peak_rss_bytes, rss_bytes

ROLES = {
    "views": Role.VGGT,
    "features": Role.DINOV2,
    "structure_condition": Role.STRUCTURE_CONDITION,
    "latent_condition": Role.LATENT_CONDITION,
    "structure": Role.STRUCTURE_FLOW,
    "structure_decoder": Role.STRUCTURE_DECODER,
    "latent": Role.LATENT_FLOW,
    "gaussians": Role.GAUSSIAN_DECODER,
    "mesh": Role.MESH_DECODER,
}
TOKENS = 1374
DEMONSTRATION = generation_settings(ReconviagenOptions().settings())


@dataclass(frozen=True)
class Measured:
    """What a stage took.

    Attributes:
        parameters: Of its network.
        once: Wall and CPU seconds outside of steps.
        plain: Wall and CPU seconds of a step without guidance, none where nothing is sampled.
        guided: The same of a guided step.
        start_bytes: Resident before the network was made.
        weight_bytes: Of the network.
        peak_bytes: Highest resident size; on a GPU the most that the process took of its memory: what PyTorch held,
            used or not, and what CUDA and its libraries took beside.
        result: What came out, in words.
    """

    parameters: int
    once: tuple[float, float]
    plain: tuple[float, float] | None = None
    guided: tuple[float, float] | None = None
    start_bytes: int = 0
    weight_bytes: int = 0
    peak_bytes: int = 0
    result: str = ""


@dataclass
class _Clock:
    """Wall and CPU seconds between calls; a receiver of progress."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, step: int, total: int, message: str) -> None:  # noqa: ARG002 - as a receiver of progress
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def spans(self) -> list[tuple[float, float]]:
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]


def main(argv: list[str] | None = None) -> None:
    """Measure the stages and print a table; as a child measure one and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--voxels", type=int, default=4000, help="occupied voxels of the 64³ grid")
    parser.add_argument("--steps", type=int, default=1, help="sampler steps of each kind that are taken")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stages", nargs="+", choices=list(ROLES), default=list(ROLES))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        (name,) = args.stages
        print(json.dumps(asdict(measure(name, args.device, args.views, args.voxels, args.steps, args.threads))))
        return
    print(f"{args.views} views, {args.voxels} voxels, {args.device}, {args.threads} thread(s); seconds as wall / CPU")
    print(
        "  stage                  params M          once    step, plain   step, guided  steps   extrapolated"
        "  weights GiB  peak GiB"
    )
    total = 0.0
    for name in args.stages:
        found = _in_a_child(name, args)
        seconds = [extrapolated(name, found, clock) for clock in (0, 1)]
        total += seconds[0]
        print(_row(name, found, seconds), flush=True)
    print(f"  together {total:.0f} s, {args.voxels / total:.2f} voxels/s")


def measure(name: str, device: str, views: int, voxels: int, steps: int, threads: int) -> Measured:
    """Run one stage in this process.

    Args:
        name: One of `ROLES`.
        device: `cpu` or `cuda`.
        views: How many pictures there are.
        voxels: Occupied voxels.
        steps: Of a sampler, of each kind.
        threads: Of the CPU.
    """
    torch.set_num_threads(threads)
    gpu_free = visible_gpus()[0].memory_free_bytes if device != "cpu" else 0
    torch.zeros(1, device=device)
    start = rss_bytes()
    network = full_size_network(ROLES[name], device)
    tensors = [*network.parameters(), *network.buffers()]
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        found = _run(name, network, device, views, voxels, steps)
    peak = peak_rss_bytes() if device == "cpu" else _peak_of_gpu(gpu_free)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return replace(
        found,
        parameters=parameters,
        start_bytes=start if device == "cpu" else 0,
        weight_bytes=weight_bytes,
        peak_bytes=peak,
    )


def _peak_of_gpu(free_bytes: int) -> int:
    """Return the most that this process has taken of a GPU of which so much was free before."""
    beside = free_bytes - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
    return torch.cuda.max_memory_reserved() + max(beside, 0)


def extrapolated(name: str, found: Measured, clock: int = 0) -> float:
    """Seconds of a stage with the steps of the published demonstration; wall (0) or CPU (1)."""
    settings = _sampler(name)
    if settings is None or found.plain is None or found.guided is None:
        return found.once[clock]
    guided = sum(settings.guides(t) for t in settings.times()[:-1])
    return found.once[clock] + guided * found.guided[clock] + (settings.steps - guided) * found.plain[clock]


def _run(name: str, network: Any, device: str, views: int, voxels: int, steps: int) -> Measured:
    """Run a stage as `inference.generate` does."""
    if name in ("structure", "latent"):
        return _run_sampler(name, network, device, views, voxels, steps)
    work = _work(name, network, device, views, voxels)
    clock = _Clock()
    clock(0, 1, name)
    result = work()
    clock(1, 1, name)
    return Measured(0, clock.spans()[0], result=result)


def _work(name: str, network: Any, device: str, views: int, voxels: int) -> Callable[[], str]:
    """Prepare what a stage takes; returns its computation."""
    if name == "views":
        images = torch.rand(1, views, 3, 518, 518, device=device)
        return lambda: f"{len(network(images, LAYERS))} layers"
    if name == "features":
        pictures = torch.rand(views, 1, 3, 518, 518, device=device)
        return lambda: f"{len(torch.cat([network.image_features(picture) for picture in pictures]))} views"
    if name in ("structure_condition", "latent_condition"):
        tokens = {layer: torch.randn(1, views, TOKENS, 2048, device=device) for layer in LAYERS}
        features = torch.randn(1, views, TOKENS, 1024, device=device)
        return lambda: f"{len(network(tokens, features))} conditions"
    if name == "structure_decoder":
        latent = torch.randn(1, 8, 16, 16, 16, device=device)
        return lambda: f"{tuple(network(latent).shape)}"
    shell = VoxelSet(sphere_shell(voxels).to(device), 1)
    latents = SparseTensor(shell, torch.randn(voxels, 8, device=device))
    networks = _given(network, name, device)
    if name == "gaussians":
        return lambda: f"{len(decode_gaussians(latents, networks).stored_xyz)} Gaussians"
    return lambda: f"{len(decode_mesh(latents, networks).faces)} faces"


def _run_sampler(name: str, network: Any, device: str, views: int, voxels: int, steps: int) -> Measured:
    """Take steps without and with guidance; the first run's time before its first step counts as what is done once."""
    networks = _given(network, name, device)
    published = _sampler(name)
    assert published is not None
    spans = []
    for weight in (1.0, published.cfg_strength):
        some = replace(published, steps=steps, cfg_strength=weight, cfg_interval=(0.0, 1.0))
        settings = GenerationSettings(some, some, max_voxels=64**3)
        clock, generator = _Clock(), torch.Generator().manual_seed(0)
        stages = Stages(device, clock)
        if name == "structure":
            condition = torch.randn(1, 4096, 1024, device=device)
            sample_structure(condition, networks, settings, generator, stages)
        else:
            shell = VoxelSet(sphere_shell(voxels).to(device), 1)
            of_views = [torch.randn(1, TOKENS, 1024, device=device) for _ in range(views)]
            sample_latent(shell, of_views, networks, settings, generator, stages)
        spans.append(clock.spans())
    plain, guided = (_mean(found[1 : 1 + steps]) for found in spans)
    return Measured(0, spans[0][0], plain, guided)


def _given(network: nn.Module, name: str, device: str) -> GivenNetworks:
    """The network of a stage; after the structure's flow a tiny decoder ends the stage."""
    kind, arguments = TINY[Role.STRUCTURE_DECODER]
    last = CLASSES[kind](**arguments).to(device)
    facts = PipelineFacts((0.0,) * 8, (1.0,) * 8)
    return GivenNetworks({Role.STRUCTURE_DECODER: last, ROLES[name]: network}, facts, device)


def _sampler(name: str) -> SamplerSettings | None:
    return {"structure": DEMONSTRATION.structure, "latent": DEMONSTRATION.latent}.get(name)


def _mean(spans: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(span[0] for span in spans) / len(spans), sum(span[1] for span in spans) / len(spans)


def _in_a_child(name: str, args: argparse.Namespace) -> Measured:
    numbers = {"views": args.views, "voxels": args.voxels, "steps": args.steps, "threads": args.threads}
    options = [text for key, value in numbers.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "benchmarks.generate", "--child", "--device", args.device, "--stages", name]
    root = Path(__file__).resolve().parents[1]
    output = subprocess.run([*command, *options], cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Measured(**json.loads(output.splitlines()[-1]))


def _row(name: str, found: Measured, seconds: list[float]) -> str:
    def both(pair: Any) -> str:
        return "" if pair is None else f"{pair[0]:.1f} / {pair[1]:.1f}"

    settings = _sampler(name)
    steps = "" if settings is None else str(settings.steps)
    return (
        f"  {name:20} {found.parameters / 1e6:10.1f} {both(found.once):>13}  {both(found.plain):>13}  "
        f"{both(found.guided):>13}  {steps:>5}  {both(seconds):>13}  {found.weight_bytes / GIB:11.2f}  "
        f"{(found.peak_bytes - found.start_bytes) / GIB:8.2f}  {found.result}"
    )


if __name__ == "__main__":
    main()
