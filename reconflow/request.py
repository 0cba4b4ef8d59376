"""What a caller may ask of a run: one closed, typed object behind the form, the command line and the Python API.

Imports nothing heavy, so that a command line can refuse bad options at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reconflow.errors import ValidationFailedError
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset


class ModelName(StrEnum):
    """The reconstruction models of this version."""

    NVDIFFREC = "nvdiffrec"


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


def make_request(**values: Any) -> RunRequest:
    """Build a request from loose values.

    Raises:
        ValidationFailedError: A value is unknown or out of range; details list every fault.
    """
    try:
        return RunRequest(**values)
    except ValidationError as error:
        names = [".".join(map(str, fault["loc"])) for fault in error.errors()]
        sentences = [f"{name}: {fault['msg']}." for name, fault in zip(names, error.errors(), strict=True)]
        raise ValidationFailedError(
            f"The options are not usable. {' '.join(sentences)}",
            suggestion="Correct or leave out the options named.",
            options=names,
        ) from None
