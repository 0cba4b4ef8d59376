"""The nvdiffrec model: carve a first surface, then fit it and its texture to the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from reconflow.cameras.calibration import Calibration
from reconflow.checkpoints import Checkpoint
from reconflow.datasets.dataset import Dataset
from reconflow.errors import GpuUnavailableError
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.mesh import TriangleMesh
from reconflow.nvdiffrec.fitting import fit_to_views, useful_settings
from reconflow.nvdiffrec.initial import initial_surface
from reconflow.nvdiffrec.options import NvdiffrecOptions
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction

_WORTH_SAYING: Final = 0.05
"""Share of the surface that no view sees, from which on people are told."""


class NvdiffrecModel:
    """Geometry and texture fitted to the views through the differentiable renderer."""

    name: ClassVar[str] = "nvdiffrec"
    version: ClassVar[str] = "2"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def load(self, device: str = "cpu") -> None:
        """Make ready; this model has no weights.

        Args:
            device: "cpu".

        Raises:
            GpuUnavailableError: Another device was asked for; this version fits on the CPU.
        """
        if device != "cpu":
            raise GpuUnavailableError(
                f"nvdiffrec runs on the CPU in this version, not on {device!r}.",
                suggestion="Choose the device cpu.",
                device=device,
            )

    def reconstruct(
        self,
        dataset: Dataset,
        calibration: Calibration,
        options: NvdiffrecOptions,
        on_progress: OnProgress = ignore_progress,
        checkpoint: Checkpoint | None = None,
    ) -> Reconstruction:
        """Fit a textured mesh to a calibrated dataset.

        Args:
            dataset: Views with masks, and depth where there is any.
            calibration: Its cameras and depth scales.
            options: How to fit.
            on_progress: Receiver of progress; may raise `Cancelled`.
            checkpoint: As in `fit_to_views`.

        Returns:
            The mesh in the frame of the calibration's cameras.

        Raises:
            ModelConvergenceError: The views have no common solid, or the fit diverged.
        """
        settings = useful_settings(options.settings(), dataset, options.texture_size)

        def carved(observations: Sequence[SurfaceObservation], on_progress: OnProgress) -> TriangleMesh:
            carving = part_of(on_progress, 0.2, 1.0)
            return initial_surface(observations, settings.grid_resolution, settings.target_faces, carving)

        fitted = fit_to_views(dataset, calibration, settings, carved, on_progress, checkpoint)
        return replace(fitted, statistics=fitted.statistics | {"notes": _notes(fitted)})

    def release(self) -> None:
        """Give memory back; this model keeps none between calls."""


def _notes(fitted: Reconstruction) -> list[str]:
    unseen = 1.0 - fitted.statistics["texture"]["seen_share"]
    note = (
        f"No view sees {unseen:.0%} of the surface: there its shape is what no view contradicts, and its colour "
        "continues what lies around."
    )
    return [note] if unseen >= _WORTH_SAYING else []
