"""How an object is fitted, never what it is fitted to: presets and the options that override them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Preset(StrEnum):
    """How much work to spend; every number a preset stands for can be overridden."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"


class FitSettings(BaseModel):
    """The numbers that a fit runs with, all of them decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid_resolution: int
    """Cells along the longest side of the carving grid."""
    steps: int
    """Iterations of the geometry fit; four times as many where photos and depth renders disagree."""
    resolution: int
    """Longest image side that the geometry is fitted at, pixels."""
    texture_size: int
    """Side of the square base-colour texture, texels; a preset's is cut to twice the photos' side."""
    texture_steps: int
    """Correction passes of the texture through the renderer."""
    target_faces: int
    """Upper bound on the mesh's faces."""
    paint_rims: bool
    """Whether the colours of the geometry fit reach right to the rims where photos disagree; pays in long fits."""
    seed: int
    """Seeds every random choice; recorded in the manifest."""


_PRESETS: dict[Preset, dict[str, int]] = {
    Preset.DRAFT: {
        "grid_resolution": 128, "steps": 60, "resolution": 384, "texture_size": 1024, "texture_steps": 2,
        "target_faces": 20_000, "paint_rims": False,
    },
    Preset.STANDARD: {
        "grid_resolution": 224, "steps": 400, "resolution": 1024, "texture_size": 2048, "texture_steps": 4,
        "target_faces": 60_000, "paint_rims": False,
    },
    Preset.HIGH: {
        "grid_resolution": 320, "steps": 1000, "resolution": 1024, "texture_size": 3072, "texture_steps": 6,
        "target_faces": 80_000, "paint_rims": True,
    },
}  # fmt: skip


class NvdiffrecOptions(BaseModel):
    """Options of the nvdiffrec model; what is None comes from the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = Field(
        default=Preset.STANDARD, title="Preset", description="draft, standard or high: how much work to spend."
    )
    steps: Annotated[int, Field(ge=0, le=20_000)] | None = Field(
        default=None, title="Steps", description="Iterations of the geometry fit; a few dozen give a preview."
    )
    resolution: Annotated[int, Field(ge=64, le=4096)] | None = Field(
        default=None, title="Fit resolution", description="Longest image side the geometry is fitted at, pixels."
    )
    texture_size: Annotated[int, Field(ge=64, le=8192)] | None = Field(
        default=None, title="Texture size", description="Side of the square base-colour texture, texels."
    )
    target_faces: Annotated[int, Field(ge=200, le=2_000_000)] | None = Field(
        default=None, title="Face budget", description="Upper bound on the mesh's faces."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0, title="Seed", description="Seeds every random choice; equal seeds give equal files."
    )

    def settings(self) -> FitSettings:
        """Return the numbers to run with: the preset's, overridden by what was given."""
        chosen = dict(_PRESETS[self.preset])
        given = {
            name: value
            for name in ("steps", "resolution", "texture_size", "target_faces")
            if (value := getattr(self, name)) is not None
        }
        return FitSettings(**(chosen | given), seed=self.seed)
