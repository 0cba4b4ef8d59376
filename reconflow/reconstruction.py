"""What a reconstruction model takes and returns: the interface every model implements, and the registry of models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TexturedMesh


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A model's result, in the frame of the cameras it carries.

    Attributes:
        textured: Surface, UVs and base colour.
        cameras: The views' cameras in the mesh's frame, at the photos' resolution.
        statistics: JSON-able facts: loss curves (`losses`: name -> list of [step, value]), counts, options used.
            Nothing time-dependent, so that equal runs give equal statistics.
        timings_s: Seconds by phase; kept apart because they differ between equal runs.
        gaussians: The object's appearance in the mesh's frame, of a model that makes it.
    """

    textured: TexturedMesh
    cameras: tuple[PinholeCamera, ...]
    statistics: dict[str, Any] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    gaussians: Gaussians | None = None
