"""Where the networks of the pipeline come from: published weights, one network in memory at a time, or given modules.

A provider opens one network after the other; when the block ends, the network's memory is free. What is done with
them is in `inference`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import nn

from reconflow.reconviagen.checkpoints import build_network, fill_network, opened_safetensors, read_pth, unusual_buffers
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.preprocess import RESOLUTION
from reconflow.reconviagen.vggt_aggregator import IGNORED_PREFIXES, VGGT
from reconflow.reconviagen.weights import (
    DINOV2_FILE,
    PIPELINE_FILE,
    VGGT_CONFIG,
    VGGT_FILE,
    WeightFile,
    WeightsFolder,
    fault,
    invalid_error,
    missing_error,
    read_json,
    read_pipeline,
)
from reconflow.reconviagen.weights_record import revision_notes

_LATENT_CHANNELS: Final = 8
_HEADS: Final = ("camera_head.", "point_head.")
AnyModel = TypeVar("AnyModel", bound=BaseModel)


class Role(StrEnum):
    """What a network does in the pipeline; those of `pipeline.json` have their names there."""

    VGGT = "vggt"
    DINOV2 = "dinov2"
    STRUCTURE_CONDITION = "sparse_structure_vggt_cond"
    LATENT_CONDITION = "slat_vggt_cond"
    STRUCTURE_FLOW = "sparse_structure_flow_model"
    STRUCTURE_DECODER = "sparse_structure_decoder"
    LATENT_FLOW = "slat_flow_model"
    GAUSSIAN_DECODER = "slat_decoder_gs"
    MESH_DECODER = "slat_decoder_mesh"


@dataclass(frozen=True)
class PipelineFacts:
    """What belongs to the networks besides their weights.

    Attributes:
        latent_mean: Of the structured latent, one number for each channel.
        latent_std: Like it.
        image_size: Width and height of the images, pixels.
        sigma_min: Noise that is left at the end of sampling.
        published_sizes: Whether the networks are as large as the published ones, whose needs of memory are known.
    """

    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    image_size: int = RESOLUTION
    sigma_min: float = 1e-5
    published_sizes: bool = False


class _SamplerArguments(BaseModel, strict=True):
    sigma_min: float = Field(ge=0, lt=1, allow_inf_nan=False)


class _Sampler(BaseModel, strict=True):
    name: Literal["FlowEulerGuidanceIntervalSampler"]
    """Of the published file; the others there are guide by another formula."""
    args: _SamplerArguments


class _Normalisation(BaseModel, strict=True):
    mean: list[FiniteFloat] = Field(min_length=_LATENT_CHANNELS, max_length=_LATENT_CHANNELS)
    std: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(min_length=_LATENT_CHANNELS, max_length=_LATENT_CHANNELS)


class _Pipeline(BaseModel, strict=True):
    """What is used of `args` in `pipeline.json`, besides where the networks are."""

    sparse_structure_sampler: _Sampler
    slat_sampler: _Sampler
    slat_normalization: _Normalisation
    image_cond_model: Literal["dinov2_vitl14_reg"]


class _Configuration(BaseModel, strict=True):
    """A network's configuration; what its arguments may be is in `checkpoints`."""

    name: str
    args: dict[str, Any]


class _VggtArguments(BaseModel, strict=True):
    """What is used of VGGT's `config.json`; what it leaves out is as published."""

    img_size: int = Field(518, ge=14, le=4096)
    patch_size: int = Field(14, ge=1, le=128)
    embed_dim: int = Field(1024, ge=1, le=16384)


class Networks(Protocol):
    """A provider of networks."""

    device: str
    facts: PipelineFacts

    def open(self, role: Role) -> AbstractContextManager[Any]:
        """Return a network, ready to infer on the device, for the length of a block."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unusual about the weights opened so far."""


class GivenNetworks:
    """Networks that are in memory and stay there.

    Args:
        modules: By role, all of them.
        facts: What belongs to them.
        device: Where they are.
    """

    def __init__(self, modules: Mapping[Role, nn.Module], facts: PipelineFacts, device: str = "cpu") -> None:
        self.device, self.facts = device, facts
        self._modules = dict(modules)

    @contextmanager
    def open(self, role: Role) -> Iterator[Any]:
        """Return a network."""
        yield self._modules[role]

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


class PublishedNetworks:
    """Networks of a folder of weights, each loaded when it is opened and dropped afterwards.

    Args:
        folder: The weights.
        device: `cpu` or `cuda`.

    Raises:
        WeightsMissingError: A file is missing.
        WeightsInvalidError: `pipeline.json` is not what it should be.
    """

    def __init__(self, folder: WeightsFolder, device: str = "cpu") -> None:
        missing = folder.missing()
        if missing:
            raise missing_error(missing)
        self.device = device
        self.facts = read_facts(folder)
        self._folder = folder
        self._notes = list(revision_notes(folder).values())
        self._states = {file.name: _state(folder.need(file)) for file in folder.files()}

    @contextmanager
    def open(self, role: Role) -> Iterator[Any]:
        """Load a network.

        Raises:
            WeightsInvalidError: Its file is damaged, was replaced since the first network was opened, or holds other
                tensors than the network; all are listed.
        """
        network = self._load(role)
        try:
            yield network
        finally:
            network.to("meta")  # whoever still holds the module holds no memory
            del network
            free_memory(self.device)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which weights are of another revision than is meant, and which stored tables differ from their formulas."""
        return tuple(dict.fromkeys(self._notes))

    def _load(self, role: Role) -> nn.Module:
        if role == Role.DINOV2:
            network = _on_meta(DinoVisionTransformer)
            state = read_pth(self._same(DINOV2_FILE), DINOV2_FILE.name)
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            fill_network(network, shapes, state.__getitem__, device=self.device, source=DINOV2_FILE.name)
            return network
        if role == Role.VGGT:
            config = read_as(_VggtArguments, read_json(self._same(VGGT_CONFIG), VGGT_CONFIG), VGGT_CONFIG)
            network = _on_meta(VGGT, heads=(), **config.model_dump())
            self._fill(network, self._same(VGGT_FILE), VGGT_FILE.name, (*IGNORED_PREFIXES, *_HEADS))
            return network
        self._same(PIPELINE_FILE)
        configuration, weights = self._folder.role_files(role)
        facts = read_as(_Configuration, read_json(self._same(configuration), configuration), configuration)
        network = build_network(facts.model_dump(), device=self.device, source=configuration.name)
        self._fill(network, self._same(weights), weights.name)
        self._notes += unusual_buffers(network)
        return network

    def _same(self, file: WeightFile) -> Path:
        """Return where a file is; the networks of one generation are those that were there at its start."""
        path = self._folder.need(file)
        if _state(path) != self._states.get(file.name):
            problem = "it was replaced while it was in use"
            raise invalid_error([fault(file, problem)], "Start the run again: it then uses what is there now.")
        return path

    def _fill(self, network: nn.Module, path: Path, name: str, ignored: tuple[str, ...] = ()) -> None:
        with opened_safetensors(path, name) as (shapes, read):
            fill_network(network, shapes, read, device=self.device, source=name, ignored=ignored)


def read_as(kind: type[AnyModel], content: Mapping[str, Any], file: WeightFile) -> AnyModel:
    """Return what a JSON object of the weights says.

    Raises:
        WeightsInvalidError: It says something else; every place is listed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        places = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors(include_url=False)]
        raise invalid_error([fault(file, f"{place}: {message}") for place, message in places]) from error


def read_facts(folder: WeightsFolder) -> PipelineFacts:
    """Read from `pipeline.json` what belongs to the networks.

    Raises:
        WeightsInvalidError: The normalisation of the structured latent is not there, or it names other samplers or
            image features than this implementation has.
    """
    found = read_as(_Pipeline, read_pipeline(folder.need(PIPELINE_FILE)), PIPELINE_FILE)
    sigmas = {sampler.args.sigma_min for sampler in (found.sparse_structure_sampler, found.slat_sampler)}
    if len(sigmas) != 1:
        raise invalid_error([fault(PIPELINE_FILE, "its samplers leave different amounts of noise")])
    mean, std = found.slat_normalization.mean, found.slat_normalization.std
    return PipelineFacts(tuple(mean), tuple(std), sigma_min=sigmas.pop(), published_sizes=True)


def free_memory(device: str) -> None:
    """Give back what dropped tensors have left."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _state(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _on_meta(kind: type[nn.Module], **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return kind(**arguments)
