"""The reconviagen model: prepare the pictures, generate, then finish in the cameras' frame. The order and nothing else.

What computes is imported when it is needed: to be asked for its version, a model must not cost a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from reconflow.errors import (
    GpuUnavailableError,
    InvalidFileFormatError,
    ReconflowError,
    ValidationFailedError,
    WeightsInvalidError,
)
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconviagen.options import GaussianEngine, ReconviagenOptions, ReconviagenSettings

if TYPE_CHECKING:
    from PIL import Image

    from reconflow.cameras.calibration import Calibration
    from reconflow.checkpoints import Checkpoint
    from reconflow.datasets.dataset import Dataset, View
    from reconflow.reconstruction import Reconstruction
    from reconflow.reconviagen.export import FinishSettings, Generated
    from reconflow.reconviagen.inference import Generation, GenerationSettings
    from reconflow.reconviagen.networks import Networks

RANDOM_NOTE = (
    "The weights were random (random_weights=tiny), for trying the way of a run out: the shape has nothing to do with "
    "the pictures."
)


class ReconvGenModel:
    """A shape generated from all views at once, by the networks of ReconViaGen v0.2."""

    name: ClassVar[str] = "reconviagen"
    version: ClassVar[str] = "4"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __init__(self) -> None:
        self._device = "cpu"

    def load(self, device: str = "cpu") -> None:
        """Choose the device; networks are loaded one after the other while reconstructing.

        Args:
            device: `cpu` or `cuda`.

        Raises:
            GpuUnavailableError: There is no GPU that PyTorch can use.
        """
        if device != "cpu":
            import torch

            if not torch.cuda.is_available():
                raise GpuUnavailableError(
                    "PyTorch finds no GPU that it can use.",
                    suggestion="Choose the device cpu, or install the CUDA build of PyTorch where there is a GPU.",
                    device=device,
                )
        self._device = device

    def reconstruct(
        self,
        dataset: Dataset,
        calibration: Calibration,
        options: ReconviagenOptions,
        on_progress: OnProgress = ignore_progress,
        checkpoint: Checkpoint | None = None,
    ) -> Reconstruction:
        """Generate the object and lay it where the cameras see it; fit it to the views if that is asked for.

        Args:
            dataset: Views with masks.
            calibration: Their cameras and depth scales.
            options: How to generate.
            on_progress: Receiver of progress, told of every sampler step; may raise `Cancelled`.
            checkpoint: Keeps the generated object and the state of the fit that refines it. A generation alone is
                short, and starts anew.

        Returns:
            The mesh in the frame of the calibration's cameras; `statistics["registration"]` says how well it lies.

        Raises:
            WeightsMissingError, WeightsInvalidError: The weights cannot be used.
            ModelConvergenceError: Nothing usable was generated, it cannot be aligned with the views, or the fit that
                refines it diverged.
            GpuUnavailableError, ModelUnavailableError: The engine asked for Gaussians cannot be used.
            ModelGpuOutOfMemoryError, ModelOutOfMemoryError: A stage ran out of memory.
            ValidationFailedError: A picture shows no object.
        """
        from dataclasses import replace

        from reconflow.reconviagen.export import finish
        from reconflow.reconviagen.gaussian_engines import choose_engine

        settings = options.settings()
        engine = choose_engine(settings.gaussian_engine, self._device)
        if settings.refinement is not None:
            finished, facts = self._refine(dataset, calibration, options, engine, on_progress, checkpoint)
        else:
            generating, finishing = part_of(on_progress, 0.0, 0.7), part_of(on_progress, 0.7, 1.0)
            generated, facts, seconds = self._generate(dataset, options, generating)
            finish_as = finish_settings(settings, facts["raw_faces"], engine)
            finished = finish(generated, dataset, calibration, finish_as, finishing)
            finished = replace(finished, timings_s=seconds | finished.timings_s)
        notes = [*finished.statistics["notes"], *facts["notes"]]
        told = {"notes": notes, "settings": settings.model_dump(mode="json"), "engines": {"gaussians": engine.value}}
        return replace(finished, statistics={**finished.statistics, **facts, **told})

    def _generate(
        self, dataset: Dataset, options: ReconviagenOptions, on_progress: OnProgress
    ) -> tuple[Generated, dict[str, Any], dict[str, float]]:
        """Return what the networks make of the views, JSON-able facts of that, and the seconds of its stages."""
        from reconflow.reconviagen.inference import generate
        from reconflow.reconviagen.preprocess import images_to_tensor

        settings, started = options.settings(), time.perf_counter()
        networks, weights = open_networks(options, self._device, part_of(on_progress, 0.0, 0.03))
        size = networks.facts.image_size
        views = chosen_views(dataset.views, settings.max_views)
        images = images_to_tensor([_prepared(view, size) for view in views], resolution=size)
        opened_s = round(time.perf_counter() - started, 3)
        generation = generate(images, networks, generation_settings(settings), part_of(on_progress, 0.03, 1.0))
        notes = [*generation.notes, *([RANDOM_NOTE] if settings.random_weights else [])]
        if len(views) < len(dataset.views):
            notes.append(f"The shape was generated from {len(views)} of the {len(dataset.views)} views, evenly chosen.")
        facts = {
            "weights": weights,
            "views": [view.name for view in views],
            "voxels": generation.voxels,
            "raw_vertices": len(generation.mesh.vertices),
            "raw_faces": len(generation.mesh.faces),
            "gaussians": len(generation.gaussians),
            "notes": notes,
        }
        generated, seconds = _on_cpu(generation), generation.timings_s
        del generation, networks, images
        self.release()
        return generated, facts, {"open": opened_s, **seconds}

    def _refine(
        self,
        dataset: Dataset,
        calibration: Calibration,
        options: ReconviagenOptions,
        engine: GaussianEngine,
        on_progress: OnProgress,
        checkpoint: Checkpoint | None,
    ) -> tuple[Reconstruction, dict[str, Any]]:
        """Return the generated object fitted to the views, and facts of its generation, which may be an earlier one."""
        from dataclasses import replace

        from reconflow.nvdiffrec.fitting import useful_settings
        from reconflow.reconviagen.export import place
        from reconflow.reconviagen.refinement import finish_refined
        from reconflow.reconviagen.refinement_start import RefinementStart

        settings, seconds = options.settings(), dict[str, float]()
        assert settings.refinement is not None
        start = None if checkpoint is None else RefinementStart.load(checkpoint)
        if start is None:
            generated, facts, seconds = self._generate(dataset, options, part_of(on_progress, 0.0, 0.5))
            finish_as, placing = finish_settings(settings, facts["raw_faces"], engine), part_of(on_progress, 0.5, 0.65)
            placed = place(generated, dataset, calibration, finish_as, placing, seconds)
            start = RefinementStart(placed, generated.gaussians, facts)
        finish_as = finish_settings(settings, start.facts["raw_faces"], engine)
        fit = useful_settings(settings.refinement, dataset, options.texture_size)
        fitting = part_of(on_progress, 0.65, 1.0)
        fitted = finish_refined(start, dataset, calibration, finish_as, fit, fitting, checkpoint)
        return replace(fitted, timings_s=seconds | fitted.timings_s), start.facts

    def release(self) -> None:
        """Give memory back; between calls this model keeps no network."""
        if self._device != "cpu":
            from reconflow.reconviagen.networks import free_memory

            free_memory(self._device)


def identify_weights(options: ReconviagenOptions, on_progress: OnProgress = ignore_progress) -> str:
    """Return a digest of the weights that a reconstruction would use, fetched to this machine if they are elsewhere.

    Args:
        options: Say where they are.
        on_progress: Hears of what is fetched and read.

    Raises:
        WeightsMissingError, WeightsInvalidError: They cannot be used.
    """
    if options.random_weights is not None:
        return f"random {options.random_weights.value}"
    from reconflow.reconviagen.weight_sources import resolve_weights
    from reconflow.reconviagen.weights import digest_of
    from reconflow.reconviagen.weights_record import check_files

    return digest_of(check_files(resolve_weights(options.weights), thoroughly=False, on_progress=on_progress))


def recorded_weights(options: ReconviagenOptions) -> str:
    """Return the digest of the weights by what is recorded of them on this machine; nothing is fetched or read.

    Args:
        options: Say where they are.

    Returns:
        As `identify_weights`; empty when the weights are not here, not recorded, or not what was recorded.
    """
    if options.random_weights is not None:
        return f"random {options.random_weights.value}"
    from reconflow.reconviagen.weight_sources import weights_folder
    from reconflow.reconviagen.weights_record import recorded_digest

    try:
        return recorded_digest(weights_folder(options.weights)) or ""
    except (ValidationFailedError, WeightsInvalidError):  # which is for a run to say
        return ""


def open_networks(
    options: ReconviagenOptions, device: str, on_progress: OnProgress = ignore_progress
) -> tuple[Networks, dict[str, Any]]:
    """Return the networks that the options ask for, and what is to be said about their weights.

    Raises:
        WeightsMissingError, WeightsInvalidError: They cannot be used.
    """
    if options.random_weights is not None:
        from reconflow.reconviagen.random_networks import tiny_networks

        return tiny_networks(0, device), {"random": options.random_weights.value, "licences": {}}
    from reconflow.reconviagen.networks import PublishedNetworks
    from reconflow.reconviagen.weight_sources import resolve_weights
    from reconflow.reconviagen.weights import digest_of
    from reconflow.reconviagen.weights_record import check_files

    folder = resolve_weights(options.weights)
    checksums = check_files(folder, thoroughly=False, on_progress=on_progress)
    licences = {bundle.source: bundle.licence for bundle in folder.bundles()}
    return PublishedNetworks(folder, device), {"digest": digest_of(checksums), "licences": licences}


def chosen_views(views: Sequence[View], at_most: int) -> list[View]:
    """Return the views that the networks read: all, or so many of them, evenly spaced in their order."""
    if len(views) <= at_most:
        return list(views)
    return [views[index * len(views) // at_most] for index in range(at_most)]


def generation_settings(settings: ReconviagenSettings) -> GenerationSettings:
    """Return the samplers' settings: those of the published demonstration but for steps and guidance."""
    from reconflow.reconviagen.inference import GenerationSettings
    from reconflow.reconviagen.sampling import SamplerSettings

    interval = (0.6, 1.0)
    return GenerationSettings(
        SamplerSettings(settings.structure_steps, settings.guidance, interval, 0.7, 5.0),
        SamplerSettings(settings.latent_steps, settings.guidance, interval, 0.5, 3.0),
        settings.seed,
        settings.max_voxels,
    )


def finish_settings(settings: ReconviagenSettings, raw_faces: int, engine: GaussianEngine) -> FinishSettings:
    """Return how a generated object of so many faces is finished; a refinement has a face budget of its own."""
    from reconflow.reconviagen.export import FinishSettings

    kept = 0.05 if settings.target_faces is None else settings.target_faces / max(raw_faces, 1)
    return FinishSettings(
        simplify=max(0.0, 1.0 - kept),
        target_faces=settings.target_faces if settings.refinement is None else None,
        visibility_views=settings.visibility_views,
        texture_size=settings.texture_size,
        texture_steps=settings.texture_steps,
        gaussian_views=settings.gaussian_views,
        gaussian_size=settings.gaussian_size,
        gaussian_engine=engine.value,
    )


def _prepared(view: View, size: int) -> Image.Image:
    """Return a view as the networks take it; an error names the view."""
    import numpy as np
    from PIL import Image

    from reconflow.reconviagen.preprocess import prepare_image

    alpha = np.round(255 * view.alpha).astype(np.uint8)
    if alpha.min() == 255:
        raise ValidationFailedError(
            f"The view {view.name} is filled by the object: nothing of it is background.",
            suggestion="Supply a picture that shows the whole object, with a mask.",
            view=view.name,
        )
    try:
        return prepare_image(Image.fromarray(np.dstack([view.rgb_srgb, alpha]), "RGBA"), resolution=size)
    except (ValidationFailedError, InvalidFileFormatError) as error:
        raise _of_view(error, view.name) from error


def _of_view(error: ReconflowError, view: str) -> ReconflowError:
    return type(error)(f"{view}: {error.message}", suggestion=error.suggestion, **{**error.details, "view": view})


def _on_cpu(generation: Generation) -> Generated:
    """Return what the decoders made as the finishing steps take it."""
    import numpy as np

    from reconflow.geometry.mesh import TriangleMesh
    from reconflow.reconviagen.export import Generated

    mesh, gaussians = generation.mesh, generation.gaussians.activated()
    vertices = mesh.vertices.detach().float().cpu().numpy()
    faces = mesh.faces.cpu().numpy().astype(np.int32)
    if mesh.attributes is not None:
        colours = mesh.attributes[:, :3].detach().float().cpu().numpy()
    else:  # weights without colours at the surface: those of the nearest Gaussians
        from scipy.spatial import cKDTree

        _, nearest = cKDTree(gaussians.positions).query(vertices)
        colours = np.clip(gaussians.colours[nearest], 0, 1)
    return Generated(TriangleMesh(vertices, faces), colours, gaussians)
