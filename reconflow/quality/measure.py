"""Measuring a result: re-load the packaged GLB, look at it with the run's cameras, compare with the input views.

The protocol is in `Protocol` and goes into every report. Single measures live in `metrics` and `ssim`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reconflow.cameras.camera import PinholeCamera
from reconflow.colour import linear_from_srgb_u8, srgb_from_linear
from reconflow.datasets.dataset import Dataset, DepthEncoding, MaskSource, View
from reconflow.errors import ValidationFailedError
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.progress import OnProgress, ignore_progress
from reconflow.quality.glb_reader import read_glb
from reconflow.quality.mesh_quality import measure_mesh
from reconflow.quality.metrics import DepthError, depth_error, fit_depth_scale, mask_iou, psnr_db, squared_error
from reconflow.quality.report import (
    Protocol,
    QualityReport,
    QualityThresholds,
    ViewQuality,
    mean_over_views,
)
from reconflow.quality.ssim import ssim
from reconflow.rendering.shade import render_depth, render_textured

SAMPLES_PER_AXIS: Final = 3
_WHITE: Final = np.float32(1)


@dataclass(frozen=True, eq=False)
class Reference:
    """One input view as results are compared with it.

    Attributes:
        rgb_srgb: (H, W, 3) float32 display values in [0, 1], over white.
        mask: (H, W) true where the object covers at least half of the pixel.
    """

    rgb_srgb: NDArray[np.float32]
    mask: NDArray[np.bool_]


def measure_quality(
    glb_path: Path,
    cameras: Sequence[PinholeCamera],
    dataset: Dataset,
    depth_scales: Mapping[str, float] | None = None,
    *,
    size: int = 1024,
    thresholds: QualityThresholds | None = None,
    on_progress: OnProgress = ignore_progress,
) -> QualityReport:
    """Measure a packaged mesh against its input views.

    Args:
        glb_path: The packaged GLB; it is read from the disk, whatever is in memory.
        cameras: One per view, found by name, in the mesh's frame, at the photos' resolution.
        dataset: The input.
        depth_scales: World z of the stored depth's full range, by view name; where a view has none, the file's unit
            counts, or else the median ratio between render and file.
        size: Wider views are shrunk to this width, pixels.
        thresholds: For the classification; the defaults when None.
        on_progress: Told after every view.

    Raises:
        ValidationFailedError: A view has no camera.
        IncompleteResultsError: The GLB is missing or damaged.
    """
    thresholds = thresholds or QualityThresholds()
    textured = read_glb(glb_path)
    by_name = _cameras_by_name(cameras, dataset)
    views = []
    for number, view in enumerate(dataset.views):
        on_progress(number, len(dataset.views), f"measuring {view.name}")
        views.append(_measure_view(textured, by_name[view.name], view, (depth_scales or {}).get(view.name), size))
    on_progress(len(dataset.views), len(dataset.views), "measured")
    mean = mean_over_views(tuple(views))
    status, reasons = thresholds.classify(mean.psnr_db, mean.ssim)
    return QualityReport(
        status=status,
        reasons=reasons,
        thresholds=thresholds,
        mean=mean,
        views=tuple(views),
        mesh=measure_mesh(textured),
        protocol=Protocol(
            samples_per_pixel=SAMPLES_PER_AXIS**2,
            resolution=_resolution_text(dataset, size),
            masking=_masking_text(dataset),
        ),
    )


def reference_view(view: View, width: int) -> Reference:
    """Return a view as results are compared with it: shrunk by area averaging, on white.

    A photo with alpha is composited over white in linear light. A photo without alpha already shows its background in
    its edge pixels, so there the mask only decides which pixels become white.

    Args:
        view: The input view.
        width: Wider photos are shrunk to this, pixels.
    """
    alpha = np.round(view.alpha * 255).astype(np.uint8)
    if view.mask_source is MaskSource.ALPHA:
        rgba = _shrunk(np.dstack([view.rgb_srgb, alpha]), width)
        cover = rgba[..., 3:].astype(np.float32) / 255
        over_white = srgb_from_linear(linear_from_srgb_u8(rgba[..., :3]) * cover + (_WHITE - cover))
        return Reference(over_white, cover[..., 0] >= 0.5)
    mask = _shrunk(alpha, width) >= 128
    rgb = _shrunk(view.rgb_srgb, width).astype(np.float32) / 255
    return Reference(np.where(mask[..., None], rgb, _WHITE), mask)


def _shrunk(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if image.shape[1] <= width:
        return image
    height = round(image.shape[0] * width / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _measure_view(
    textured: TexturedMesh, camera: PinholeCamera, view: View, depth_scale: float | None, size: int
) -> ViewQuality:
    reference = reference_view(view, size)
    image_hw = (reference.mask.shape[0], reference.mask.shape[1])
    render = render_textured(textured, camera.resized(image_hw), SAMPLES_PER_AXIS)
    picture = np.round(render.rgb_srgb.astype(np.float64) * 255) / 255
    seen = render.coverage >= 0.5
    error = squared_error(reference.rgb_srgb, picture)
    either = seen | reference.mask
    measures = ViewQuality(
        view=view.name,
        psnr_db=psnr_db(float(error.mean())),
        psnr_object_db=psnr_db(float(error[either].mean())) if either.any() else None,
        ssim=ssim(reference.rgb_srgb, picture),
        mask_iou=mask_iou(reference.mask, seen),
    )
    found = _measure_depth(textured.mesh, camera, view, depth_scale)
    if found is None:
        return measures
    depth, source = found
    return measures.model_copy(
        update={
            "depth_mae_levels": depth.mae_levels,
            "depth_rmse_levels": depth.rmse_levels,
            "depth_mae_relative": depth.mae_relative,
            "depth_rmse_relative": depth.rmse_relative,
            "depth_max_value": depth.max_value,
            "depth_z_of_max": depth.z_of_max,
            "depth_scale_source": source,
        }
    )


def _measure_depth(
    mesh: TriangleMesh, camera: PinholeCamera, view: View, given_scale: float | None
) -> tuple[DepthError, str] | None:
    stored = view.depth
    if stored is None:
        return None
    rendered = render_depth(mesh, camera.resized((stored.values.shape[0], stored.values.shape[1])))
    if given_scale is not None:
        scale, source = given_scale, "calibration"
    elif stored.encoding is DepthEncoding.METRIC_Z and stored.unit is not None:
        scale, source = stored.unit * stored.max_value, "file"
    else:
        fitted = fit_depth_scale(stored.values, rendered, stored.max_value)
        if fitted is None:
            return None
        scale, source = fitted, "median ratio"
    error = depth_error(stored.values, rendered, stored.max_value, scale)
    return None if error is None else (error, source)


def _cameras_by_name(cameras: Sequence[PinholeCamera], dataset: Dataset) -> dict[str, PinholeCamera]:
    by_name = {camera.name: camera for camera in cameras}
    missing = [view.name for view in dataset.views if view.name not in by_name]
    if missing:
        raise ValidationFailedError(
            f"There is no camera for {', '.join(missing)}.",
            suggestion="Supply one camera per view, under the view's name.",
            missing=missing,
        )
    return by_name


def _resolution_text(dataset: Dataset, size: int) -> str:
    shapes = sorted({view.image_hw for view in dataset.views})
    shown = ", ".join(f"{width} x {height}" for height, width in shapes)
    return f"the views' own ({shown}), shrunk to {size} px in width by area averaging where wider"


def _masking_text(dataset: Dataset) -> str:
    sources = sorted({view.mask_source.value for view in dataset.views})
    how = {
        MaskSource.ALPHA.value: "alpha composited",
        MaskSource.FILE.value: "white outside of the mask file",
        MaskSource.DEPTH.value: "white where the depth render is empty",
        MaskSource.BACKGROUND.value: "white where the background was recognised",
    }
    return "; ".join(how[source] for source in sources)
