"""How an object is generated, never from what: presets and the options that override them. Imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from reconflow.nvdiffrec.options import FitSettings, NvdiffrecOptions, Preset


class RandomWeights(StrEnum):
    """Random networks that may stand in for the published ones when asked for by name."""

    TINY = "tiny"
    """The official structure at tiny sizes; the result has nothing to do with the pictures."""


class Refinement(StrEnum):
    """What is done to the generated mesh once it is aligned with the views."""

    NONE = "none"
    """Nothing; it is painted as it is."""
    NVDIFFREC = "nvdiffrec"
    """It is the start of nvdiffrec's fit, instead of a surface carved from the views."""


class GaussianEngine(StrEnum):
    """What pictures the Gaussians that paint what no photo shows."""

    AUTO = "auto"
    """gsplat where the networks compute on a GPU and gsplat can be used, numba elsewhere."""
    NUMBA = "numba"
    """The CPU."""
    GSPLAT = "gsplat"
    """The GPU, by a package that is installed apart."""


class ReconviagenSettings(BaseModel):
    """The numbers that a generation runs with, all of them decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    structure_steps: int
    """Sampler steps of the sparse structure."""
    latent_steps: int
    """Sampler steps of the structured latent."""
    guidance: float
    """Weight of the prediction with the views; 1 switches guidance off."""
    max_views: int
    """Views that the networks read at most; from more of them so many are chosen evenly."""
    max_voxels: int
    """Occupied voxels beyond which a structure is refused."""
    texture_size: int
    """Side of the square base-colour texture, texels."""
    texture_steps: int
    """Correction passes of the texture towards the photos."""
    target_faces: int | None
    """Upper bound on the mesh's faces; a twentieth of the raw ones when None."""
    gaussian_views: int
    """Pictures of the Gaussians that paint what no photo shows."""
    gaussian_size: int
    """Side of those pictures, pixels."""
    gaussian_engine: GaussianEngine
    """What makes them; what `auto` meant is in the manifest's engines."""
    visibility_views: int
    """From how many sides walls inside the object are looked for."""
    random_weights: RandomWeights | None
    """Which random networks stand in for the published ones."""
    refinement: FitSettings | None
    """How nvdiffrec's fit goes on from the generated mesh, when asked for; it has no carving grid."""
    seed: int
    """Seeds the noise; equal seeds give equal files."""


_PRESETS: dict[Preset, dict[str, Any]] = {
    Preset.DRAFT: {
        "structure_steps": 12, "latent_steps": 8, "texture_size": 1024, "texture_steps": 2, "gaussian_views": 12,
        "gaussian_size": 512, "visibility_views": 60,
    },
    Preset.STANDARD: {
        "structure_steps": 30, "latent_steps": 12, "texture_size": 1024, "texture_steps": 4, "gaussian_views": 30,
        "gaussian_size": 768, "visibility_views": 200,
    },
    Preset.HIGH: {
        "structure_steps": 50, "latent_steps": 25, "texture_size": 2048, "texture_steps": 6, "gaussian_views": 60,
        "gaussian_size": 1024, "visibility_views": 500,
    },
}  # fmt: skip
GUIDANCE: Final = 7.5
MAX_VOXELS: Final = 50_000
"""Objects have about ten thousand; training had at most 32768."""
MAX_VIEWS: Final = 16
"""What the published demonstration was measured with; the cost grows with the square of the views."""


class ReconviagenOptions(BaseModel):
    """Options of the reconviagen model; what is None comes from the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = Field(
        default=Preset.STANDARD, title="Preset", description="draft, standard or high: how much work to spend."
    )
    structure_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, title="Structure steps", description="Sampler steps of the sparse structure."
    )
    latent_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, title="Latent steps", description="Sampler steps of the structured latent."
    )
    guidance: Annotated[float, Field(ge=1, le=50)] = Field(
        default=GUIDANCE, title="Guidance", description="Weight of the prediction with the views; 1 for none."
    )
    max_views: Annotated[int, Field(ge=1, le=256)] = Field(
        default=MAX_VIEWS, title="Most views", description="Of more views so many are chosen evenly; all are painted."
    )
    max_voxels: Annotated[int, Field(ge=100, le=300_000)] = Field(
        default=MAX_VOXELS, title="Most voxels", description="Structures with more occupied voxels are refused."
    )
    texture_size: Annotated[int, Field(ge=64, le=8192)] | None = Field(
        default=None, title="Texture size", description="Side of the square base-colour texture, texels."
    )
    target_faces: Annotated[int, Field(ge=200, le=2_000_000)] | None = Field(
        default=None, title="Face budget", description="Upper bound on the mesh's faces, as far as its shape allows."
    )
    gaussian_engine: GaussianEngine = Field(
        default=GaussianEngine.AUTO,
        title="Gaussian engine",
        description="numba (CPU) or gsplat (GPU) pictures the Gaussians; auto: gsplat on a GPU where it is installed.",
    )
    refine: Refinement = Field(
        default=Refinement.NONE,
        title="Refine",
        description="nvdiffrec: the aligned mesh is the start of nvdiffrec's fit to the views.",
    )
    steps: Annotated[int, Field(ge=0, le=20_000)] | None = Field(
        default=None, title="Steps", description="Iterations of that fit."
    )
    resolution: Annotated[int, Field(ge=64, le=4096)] | None = Field(
        default=None, title="Fit resolution", description="Longest image side of that fit, pixels."
    )
    weights: str | None = Field(
        default=None, title="Weights", description="Folder or s3:// address; the machine's own folder when left out."
    )
    random_weights: RandomWeights | None = Field(
        default=None, title="Random weights", description="Random networks instead of the published ones, for tests."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0, title="Seed", description="Seeds the noise; equal seeds give equal files."
    )

    def settings(self) -> ReconviagenSettings:
        """Return the numbers to run with: the preset's, overridden by what was given.

        The texture of a refined mesh is as fine as nvdiffrec's preset makes it.
        """
        chosen, refinement = dict(_PRESETS[self.preset]), self._refinement()
        if refinement is not None:
            chosen |= {"texture_size": refinement.texture_size, "texture_steps": refinement.texture_steps}
        given = {
            name: value
            for name in ("structure_steps", "latent_steps", "texture_size")
            if (value := getattr(self, name)) is not None
        }
        kept = {
            name: getattr(self, name)
            for name in (
                "guidance",
                "max_views",
                "max_voxels",
                "target_faces",
                "gaussian_engine",
                "random_weights",
                "seed",
            )
        }
        return ReconviagenSettings(**(chosen | given | kept), refinement=refinement)

    def _refinement(self) -> FitSettings | None:
        if self.refine is Refinement.NONE:
            return None
        shared = ("preset", "steps", "resolution", "texture_size", "target_faces", "seed")
        return NvdiffrecOptions(**{name: getattr(self, name) for name in shared}).settings()
