"""What a caller may ask of a run: one closed, typed object behind the form, the command line and the Python API.

Imports nothing heavy, so that a command line can refuse bad options at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reconflow.errors import ValidationFailedError
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset


class ModelName(StrEnum):
    """The reconstruction models of this version."""

    NVDIFFREC = "nvdiffrec"


class Device(StrEnum):
    """What a model computes on."""

    CPU = "cpu"
    CUDA = "cuda"


class RunRequest(BaseModel):
    """One reconstruction: of what, by which model, with which options, and where the result goes."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Reconstruction")

    dataset: str = Field(
        min_length=1,
        title="Dataset",
        description="Folder with multi_views/ and depth_renders/, or with a transforms.json.",
        examples=["samples/lantern"],
    )
    out: str = Field(
        "out", min_length=1, title="Output folder", description="Results go to runs/<run id> in this folder."
    )
    model: ModelName = Field(ModelName.NVDIFFREC, title="Model", description="Which reconstruction model runs.")
    preset: Preset = Field(
        Preset.STANDARD, title="Preset", description="How much work to spend; single numbers can be overridden below."
    )
    device: Device = Field(
        Device.CPU,
        title="Device",
        description="What the model computes on; a GPU that is asked for and missing is an error, never replaced.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, title="Seed", description="Seeds every random choice; equal seeds give equal files."
    )
    steps: Annotated[int, Field(ge=0, le=20_000)] | None = Field(
        None, title="Steps", description="Iterations of the geometry fit; from the preset when left out."
    )
    resolution: Annotated[int, Field(ge=64, le=4096)] | None = Field(
        None, title="Fit resolution", description="Longest image side the geometry is fitted at, pixels."
    )
    texture_size: Annotated[int, Field(ge=64, le=8192)] | None = Field(
        None, title="Texture size", description="Side of the square base-colour texture, texels."
    )
    target_faces: Annotated[int, Field(ge=200, le=2_000_000)] | None = Field(
        None, title="Face budget", description="Upper bound on the mesh's faces."
    )
    fov_deg: Annotated[float, Field(gt=1.0, lt=170.0)] | None = Field(
        None,
        title="Field of view",
        description="Horizontal field of view of the cameras, degrees; found from the pictures when left out.",
    )
    object_size_m: Annotated[float, Field(gt=0.0, le=1e4)] | None = Field(
        None,
        title="Object size",
        description="Longest side of the object, metres; gives the result a real scale.",
    )
    quality_thresholds: str | None = Field(
        None,
        title="Quality thresholds",
        description="Name of a saved quality-thresholds block; the built-in thresholds when left out.",
    )

    def models(self) -> tuple[str, ...]:
        """Return the names of the models that run, in their order."""
        return (self.model.value,)

    def options(self) -> NvdiffrecOptions:
        """Return the model's own options."""
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
    return f"{name} is {value!r}: {message[:1].lower()}{message[1:]}."


def _bounds_text(field: str) -> str:
    """Return the limits of a number in words; empty for anything else."""
    schema = RunRequest.model_json_schema()["properties"].get(field, {})
    number: dict[str, Any] = next(
        (kind for kind in (schema, *schema.get("anyOf", ())) if kind.get("type") in ("integer", "number")), {}
    )
    words = [f"{word} {number[key]:,.12g}" for key, word in _BOUND_WORDS.items() if key in number]
    kind = "a whole number" if number.get("type") == "integer" else "a number"
    return f"{kind}, {' and '.join(words)}" if words else ""
