"""What a caller may ask of a run: one closed, typed object behind the form, the command line and the Python API.

Imports nothing heavy, so that a command line can refuse bad options at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from reconflow.errors import ValidationFailedError
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset
from reconflow.reconviagen.options import (
    GUIDANCE,
    MAX_VIEWS,
    MAX_VOXELS,
    GaussianEngine,
    RandomWeights,
    ReconviagenOptions,
    Refinement,
)

ModelOptions = NvdiffrecOptions | ReconviagenOptions
"""Options of one model; each has `settings()`, the numbers to run with."""


class ModelName(StrEnum):
    """The reconstruction models of this version, and all of them one after the other."""

    NVDIFFREC = "nvdiffrec"
    RECONVIAGEN = "reconviagen"
    BOTH = "both"


class Device(StrEnum):
    """What a model computes on."""

    AUTO = "auto"
    """What the worker was set up for; where none was, a GPU if there is one. A model without a GPU version: the CPU."""
    CPU = "cpu"
    CUDA = "cuda"


class RunRequest(BaseModel):
    """One reconstruction: of what, by which model, with which options, and where the result goes."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Reconstruction")

    dataset: str = Field(
        min_length=1,
        title="Dataset",
        description="Where the pictures are: a folder or s3:// address with multi_views/ and depth_renders/, or with a "
        "transforms.json; or block://NAME.",
        examples=["samples/lantern", "s3://bucket/datasets/mug"],
    )
    out: str = Field(
        "out",
        min_length=1,
        title="Results",
        description="Where the results go, below runs/ and the run's id: a folder, s3:// address or block://NAME.",
    )
    model: ModelName = Field(
        ModelName.NVDIFFREC,
        title="Model",
        description="Which reconstruction model runs: nvdiffrec fits a mesh to the views, reconviagen generates one.",
    )
    preset: Preset = Field(
        Preset.STANDARD,
        title="Preset",
        description="How much work to spend: draft for a look, standard, high for the best. Single numbers below "
        "override it.",
    )
    device: Device = Field(
        Device.AUTO,
        title="Device",
        description="What the models compute on; auto: what the worker is set up for, and the CPU for a model without "
        "a GPU version. A GPU that is asked for and missing is an error, never replaced.",
    )
    fov_deg: Annotated[float, Field(gt=1.0, lt=170.0)] | None = Field(
        None,
        title="Field of view",
        description="Of the cameras, horizontal, degrees (above 1, below 170), when it is known; else it is found from "
        "the pictures.",
    )
    object_size_m: Annotated[float, Field(gt=0.0, le=1e4)] | None = Field(
        None,
        title="Object size",
        description="Longest side of the object, metres (up to 10000); gives the result a real scale.",
    )
    quality_thresholds: str | None = Field(
        None,
        title="Quality thresholds",
        description="Name of a saved block of that type; the built-in thresholds when left out.",
    )
    texture_size: Annotated[int, Field(ge=64, le=8192)] | None = Field(
        None,
        title="Texture size",
        description="Side of the square texture, texels (64 to 8192); from the preset when left out.",
    )
    target_faces: Annotated[int, Field(ge=200, le=2_000_000)] | None = Field(
        None,
        title="Face budget",
        description="At most so many triangles (200 to 2000000); from the preset when left out.",
    )
    resolution: Annotated[int, Field(ge=64, le=4096)] | None = Field(
        None,
        title="Fit resolution",
        description="Longest side of the pictures that the shape is fitted to, pixels (64 to 4096); from the preset "
        "when left out.",
    )
    steps: Annotated[int, Field(ge=0, le=20_000)] | None = Field(
        None,
        title="Steps",
        description="Iterations of nvdiffrec's fit, also of a refinement (0 to 20000); from the preset when left out.",
    )
    structure_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        title="Structure steps",
        description="Sampler steps of reconviagen's sparse structure (1 to 1000); from the preset when left out.",
    )
    latent_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        title="Latent steps",
        description="Sampler steps of reconviagen's structured latent (1 to 1000); from the preset when left out.",
    )
    guidance: Annotated[float, Field(ge=1, le=50)] = Field(
        GUIDANCE, title="Guidance", description="How strictly reconviagen keeps to the views (1 to 50)."
    )
    max_views: Annotated[int, Field(ge=1, le=256)] = Field(
        MAX_VIEWS,
        title="Most views",
        description="So many views reconviagen's networks read at most (1 to 256), chosen evenly; fewer take less "
        "memory and time.",
    )
    max_voxels: Annotated[int, Field(ge=100, le=300_000)] = Field(
        MAX_VOXELS,
        title="Most voxels",
        description="With more occupied voxels than this (100 to 300000) reconviagen refuses a structure before it is "
        "decoded, which takes memory and time in proportion. Objects have about ten thousand.",
    )
    gaussian_engine: GaussianEngine = Field(
        GaussianEngine.AUTO,
        title="Gaussian engine",
        description="What pictures reconviagen's Gaussians: numba (CPU) or gsplat (GPU); auto: gsplat where the model "
        "computes on a GPU and gsplat is installed. gsplat that is asked for and missing is an error.",
    )
    refine: Refinement = Field(
        Refinement.NONE,
        title="Refine",
        description="What reconviagen does with its mesh once it is aligned with the views; nvdiffrec: fit it to them, "
        "from the generated mesh on.",
    )
    weights: str | None = Field(
        None,
        title="Weights",
        description="Where reconviagen's weights are: a folder, s3:// address or block://NAME; the folder that "
        "`reconflow weights fetch` fills when left out.",
    )
    random_weights: RandomWeights | None = Field(
        None,
        title="Random weights",
        description="For trying reconviagen out without weights: tiny random networks. The result means nothing.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, title="Seed", description="Seeds every random choice; equal seeds give equal files."
    )

    @field_validator("refine")
    @classmethod
    def _has_something_to_refine(cls, refine: Refinement, info: ValidationInfo) -> Refinement:
        if refine is not Refinement.NONE and info.data.get("model") is ModelName.NVDIFFREC:
            raise PydanticCustomError("nothing_to_refine", "there is nothing to refine without the model reconviagen")
        return refine

    def dataset_name(self) -> str:
        """Return what the dataset is called: the last folder of its location."""
        name = PurePosixPath(self.dataset).name
        return name if name not in ("", "..") else Path(self.dataset).resolve().name or "dataset"

    def models(self) -> tuple[str, ...]:
        """Return the names of the models that run, in their order."""
        if self.model is ModelName.BOTH:
            return (ModelName.NVDIFFREC.value, ModelName.RECONVIAGEN.value)
        return (self.model.value,)

    def options(self, model: str | None = None) -> ModelOptions:
        """Return the own options of one of the models, of the first one without a name."""
        if (model or self.models()[0]) == ModelName.RECONVIAGEN:
            return self.generation_options()
        return self.fit_options()

    def generation_options(self) -> ReconviagenOptions:
        """Return what the request asks of reconviagen."""
        return ReconviagenOptions(
            preset=self.preset,
            structure_steps=self.structure_steps,
            latent_steps=self.latent_steps,
            guidance=self.guidance,
            max_views=self.max_views,
            max_voxels=self.max_voxels,
            gaussian_engine=self.gaussian_engine,
            refine=self.refine,
            **self._of_refinement(),
            texture_size=self.texture_size,
            target_faces=self.target_faces,
            weights=self.weights,
            random_weights=self.random_weights,
            seed=self.seed,
        )

    def _of_refinement(self) -> dict[str, int | None]:
        """Return what only a refinement heeds, so that it makes no difference without one."""
        return {} if self.refine is Refinement.NONE else {"steps": self.steps, "resolution": self.resolution}

    def fit_options(self) -> NvdiffrecOptions:
        """Return what the request asks of nvdiffrec."""
        return NvdiffrecOptions(
            preset=self.preset,
            seed=self.seed,
            steps=self.steps,
            resolution=self.resolution,
            texture_size=self.texture_size,
            target_faces=self.target_faces,
        )


def make_request(spelled: Mapping[str, str] = MappingProxyType({}), /, **values: Any) -> RunRequest:
    """Build a request from loose values.

    Args:
        spelled: How the caller's user writes the fields whose names are others there.
        **values: The fields.

    Raises:
        ValidationFailedError: A value is unknown or out of range; details list every fault.
    """
    try:
        return RunRequest(**values)
    except ValidationError as error:
        fields = [".".join(map(str, fault["loc"])) for fault in error.errors()]
        names = [spelled.get(field, field) for field in fields]
        sentences = [
            _sentence(name, field, fault["type"], fault["msg"], fault["input"])
            for name, field, fault in zip(names, fields, error.errors(), strict=True)
        ]
        raise ValidationFailedError(
            f"The options are not usable. {' '.join(sentences)}",
            suggestion="Correct or leave out the options named.",
            options=names,
        ) from None


_BOUND_WORDS: Final = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _sentence(name: str, field: str, kind: str, message: str, value: object) -> str:
    if kind == "extra_forbidden":
        return f"There is no option {name}."
    if kind == "string_too_short":
        return f"{name} is empty."
    bounds = _bounds_text(field)
    if bounds and isinstance(value, int | float):
        return f"{name} is {value}; it has to be {bounds}."
    shown = value.value if isinstance(value, StrEnum) else value
    return f"{name} is {shown!r}: {message[:1].lower()}{message[1:]}."


def _bounds_text(field: str) -> str:
    """Return the limits of a number in words; empty for anything else."""
    schema = RunRequest.model_json_schema()["properties"].get(field, {})
    number: dict[str, Any] = next(
        (kind for kind in (schema, *schema.get("anyOf", ())) if kind.get("type") in ("integer", "number")), {}
    )
    words = [f"{word} {number[key]:,.12g}" for key, word in _BOUND_WORDS.items() if key in number]
    kind = "a whole number" if number.get("type") == "integer" else "a number"
    return f"{kind}, {' and '.join(words)}" if words else ""
