"""The generative pipeline: images of one object in, Gaussians and a mesh out, in the model's own frame.

The order of the networks and what goes from one to the next. Each network is opened, run and dropped before the next
one; both conditions are computed once, from features that are dropped with them. Noise is drawn on the CPU, first for
the structure, then for the latent, so that a seed means the same object on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reconflow.errors import ModelConvergenceError
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.conditioning import LAYERS
from reconflow.reconviagen.gaussian_parameters import GaussianParameters
from reconflow.reconviagen.generation_stages import Stages
from reconflow.reconviagen.mesh_extraction import ExtractedMesh, extract_mesh
from reconflow.reconviagen.networks import Networks, Role, free_memory
from reconflow.reconviagen.options import MAX_VOXELS
from reconflow.reconviagen.sampling import FlowSampler, SamplerSettings, run_to_end
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet
from reconflow.reconviagen.structure_decoder import occupied_voxels


@dataclass(frozen=True)
class GenerationSettings:
    """How an object is generated.

    Attributes:
        structure: Sampling of the sparse structure.
        latent: Sampling of the structured latent.
        seed: Of the noise.
        max_voxels: Most occupied voxels.
    """

    structure: SamplerSettings
    latent: SamplerSettings
    seed: int = 0
    max_voxels: int = MAX_VOXELS


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the views say.

    Attributes:
        structure: [1, queries, C].
        latent: One [1, tokens, C] for each view.
    """

    structure: Tensor
    latent: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Structure:
    """Where the object is.

    Attributes:
        noise: [1, C, R, R, R] that it was sampled from.
        latent: Of the same shape.
        logits: [1, 1, R', R', R'].
        voxels: Those above 0.
    """

    noise: Tensor
    latent: Tensor
    logits: Tensor
    voxels: VoxelSet


@dataclass(frozen=True, eq=False)
class Generation:
    """A generated object in the cube [-0.5, 0.5]³, z up.

    Attributes:
        gaussians: Its appearance.
        mesh: Its surface.
        voxels: Occupied voxels.
        timings_s: Seconds by stage.
        notes: What was unusual about the weights.
    """

    gaussians: GaussianParameters
    mesh: ExtractedMesh
    voxels: int
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@torch.no_grad()
def generate(
    images: Tensor, networks: Networks, settings: GenerationSettings, on_progress: OnProgress = ignore_progress
) -> Generation:
    """Generate an object from its images.

    Args:
        images: [N, 3, S, S] RGB in [0, 1], S the networks' image size, the object on black.
        networks: Provider of the networks.
        settings: How to sample.
        on_progress: Called at every stage and after every sampler step; may raise `Cancelled`.

    Raises:
        ModelConvergenceError: The structure is empty or too large, or values are not numbers.
        ModelGpuOutOfMemoryError, ModelOutOfMemoryError: A stage ran out of memory; it is named.
        WeightsMissingError, WeightsInvalidError: A network cannot be loaded.
    """
    clock = Stages.of(networks, on_progress, views=len(images))
    generator = torch.Generator().manual_seed(settings.seed)
    conditions = encode_views(images, networks, clock)
    structure = sample_structure(conditions.structure, networks, settings, generator, clock)
    voxels = structure.voxels
    del structure
    latent = sample_latent(voxels, conditions.latent, networks, settings, generator, clock)
    del conditions
    free_memory(networks.device)
    gaussians = decode_gaussians(latent, networks, clock)
    mesh = decode_mesh(latent, networks, clock)
    on_progress(1000, 1000, "the object is generated")
    return Generation(gaussians, mesh, len(voxels), clock.seconds, networks.notes)


@torch.no_grad()
def encode_views(images: Tensor, networks: Networks, clock: Stages | None = None) -> Conditions:
    """Compute both conditions of the views; arguments as for `generate`."""
    clock = clock or Stages.of(networks, views=len(images))
    with clock.stage("views", 0.0, 0.06, "reading the views together"), networks.open(Role.VGGT) as vggt:
        on_device = images.to(networks.device)
        tokens: dict[int, Tensor] = vggt(on_device[None], LAYERS)
    with clock.stage("features", 0.06, 0.09, "reading each view"), networks.open(Role.DINOV2) as dinov2:
        features = torch.cat([dinov2.image_features(image[None]) for image in on_device])[None]
    with (
        clock.stage("structure_condition", 0.09, 0.11, "fusing the views"),
        networks.open(Role.STRUCTURE_CONDITION) as network,
    ):
        of_structure = _finite(network(tokens, features), "the views")
    with (
        clock.stage("latent_condition", 0.11, 0.12, "fusing the views"),
        networks.open(Role.LATENT_CONDITION) as network,
    ):
        of_latent = [_finite(view, "the views") for view in network(tokens, features)]
    return Conditions(of_structure, of_latent)


@torch.no_grad()
def sample_structure(
    condition: Tensor,
    networks: Networks,
    settings: GenerationSettings,
    generator: torch.Generator,
    clock: Stages | None = None,
) -> Structure:
    """Sample and decode which voxels are occupied.

    Args:
        condition: [1, queries, C].
        networks: Provider of the networks.
        settings: How to sample.
        generator: On the CPU; gives the noise.
        clock: Of the whole.

    Raises:
        ModelConvergenceError: None or too many of them are, or values are not numbers.
    """
    clock, sampler = clock or Stages.of(networks), FlowSampler(networks.facts.sigma_min)
    with (
        clock.stage("structure", 0.12, 0.55, "sampling the structure") as progress,
        networks.open(Role.STRUCTURE_FLOW) as flow,
    ):
        noise = torch.randn(1, flow.in_channels, *[flow.resolution] * 3, generator=generator)
        pair = flow.predict_guided if networks.device != "cpu" else None  # one pass of twice the batch fills a GPU
        steps = sampler.trajectory(
            flow, noise.to(networks.device), flow.prepare(condition), settings.structure, pair=pair
        )
        latent = run_to_end(steps, settings.structure.steps, progress, "sampling the structure")
        del steps
    with (
        clock.stage("structure_decoder", 0.55, 0.57, "decoding the structure"),
        networks.open(Role.STRUCTURE_DECODER) as decoder,
    ):
        logits: Tensor = decoder(latent)
        coords = occupied_voxels(logits)
    if len(coords) > settings.max_voxels:
        raise ModelConvergenceError(
            f"The generated structure has {len(coords)} occupied voxels; objects have about ten thousand, and at most "
            f"{settings.max_voxels} are decoded.",
            suggestion="Check that the masks cut the object out of its background, try another seed, or raise "
            "max_voxels if memory allows.",
            voxels=len(coords),
            max_voxels=settings.max_voxels,
        )
    return Structure(noise, latent, logits, VoxelSet(coords, 1))


@torch.no_grad()
def sample_latent(
    voxels: VoxelSet,
    condition: Sequence[Tensor],
    networks: Networks,
    settings: GenerationSettings,
    generator: torch.Generator,
    clock: Stages | None = None,
) -> SparseTensor:
    """Sample the structured latent, [T, C] on the voxels, denormalised; arguments as for `sample_structure`.

    Raises:
        ModelConvergenceError: Values are not numbers.
    """
    clock, facts = clock or Stages.of(networks, views=len(condition)), networks.facts
    clock.voxels = len(voxels)
    with (
        clock.stage("latent", 0.57, 0.93, "sampling the latent") as progress,
        networks.open(Role.LATENT_FLOW) as flow,
    ):
        noise = torch.randn(len(voxels), flow.in_channels, generator=generator).to(networks.device)

        def velocity(x: Tensor, t: Tensor, view: Any) -> Tensor:
            predicted: Tensor = flow(SparseTensor(voxels, x), t, view).feats
            return predicted

        def velocities(x: Tensor, t: Tensor, view: Any) -> tuple[Tensor, Tensor]:
            positive, negative = flow.predict_guided(SparseTensor(voxels, x), t, view)
            return positive.feats, negative.feats

        steps = FlowSampler(facts.sigma_min).trajectory(
            velocity,
            noise,
            flow.prepare(list(condition)),
            settings.latent,
            pair=velocities,
            item_lengths=voxels.item_lengths,
        )
        latent = run_to_end(steps, settings.latent.steps, progress, "sampling the latent")
        del steps
        mean, std = (latent.new_tensor(values) for values in (facts.latent_mean, facts.latent_std))
        return SparseTensor(voxels, latent * std + mean)


@torch.no_grad()
def decode_gaussians(latent: SparseTensor, networks: Networks, clock: Stages | None = None) -> GaussianParameters:
    """Decode the Gaussians of a denormalised latent."""
    clock = clock or Stages.of(networks)
    clock.voxels = len(latent.voxels)
    with (
        clock.stage("gaussians", 0.93, 0.95, "decoding the Gaussians"),
        networks.open(Role.GAUSSIAN_DECODER) as decoder,
    ):
        gaussians: GaussianParameters = decoder.decode(latent)[0]
        _finite(gaussians.stored_xyz, "the Gaussians")
    return gaussians


@torch.no_grad()
def decode_mesh(latent: SparseTensor, networks: Networks, clock: Stages | None = None) -> ExtractedMesh:
    """Decode the mesh of a denormalised latent.

    Raises:
        ModelConvergenceError: It has no surface, or values are not numbers.
    """
    clock = clock or Stages.of(networks)
    clock.voxels = len(latent.voxels)
    with clock.stage("mesh", 0.95, 1.0, "decoding the mesh"):
        cubes, resolution, use_color = decode_cubes(latent, networks)
        return extract_mesh(cubes.feats, cubes.voxels.coords[:, 1:], resolution, use_color=use_color)


@torch.no_grad()
def decode_cubes(latent: SparseTensor, networks: Networks) -> tuple[SparseTensor, int, bool]:
    """Decode the features of the mesh's cubes; also how many there are along an axis, and whether they hold colours."""
    with networks.open(Role.MESH_DECODER) as decoder:
        cubes: SparseTensor = decoder(latent)
        return cubes, 4 * int(decoder.resolution), bool(decoder.use_color)


def _finite(values: Tensor, what: str) -> Tensor:
    """Return values; refuse those that are not numbers."""
    if not bool(torch.isfinite(values).all()):
        raise ModelConvergenceError(
            f"What was read from {what} holds values that are not numbers.",
            suggestion="Check the pictures, and the weights with `reconflow weights verify`; on a GPU try the CPU, "
            "which computes in float32.",
        )
    return values
