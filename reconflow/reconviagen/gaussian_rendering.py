"""Pictures of Gaussians: splatted from near to far with Mip-Splatting's screen-space filter. Nothing differentiable.

A Gaussian is projected by the perspective's linearisation at its mean (Zwicker et al., "EWA splatting", 2002). The
filter adds a variance in pixels to its 2D covariance and takes as much from its opacity as the covariance gains in
area (Yu et al., "Mip-Splatting", 2024), so that it neither vanishes between pixels nor grows. The filter in space is
part of the Gaussians' scales already.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.errors import GpuUnavailableError, ModelGpuOutOfMemoryError, ValidationFailedError
from reconflow.geometry.gaussians import Gaussians
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.reconviagen.gaussian_engines import require_gsplat

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FILTER_VARIANCE_PX: Final = 0.1
"""What the screen-space filter adds to the variance of every splat, pixels squared."""
LEAST_ALPHA: Final = 1.0 / 255.0
"""A splat does not reach where it would cover less of a pixel."""
MOST_ALPHA: Final = 0.99
"""A splat never covers more of a pixel, as in the renderer that the Gaussians were trained with."""
LEAST_TRANSMITTANCE: Final = 1e-4
"""A pixel through which less light passes is finished."""
_FRUSTUM_MARGIN: Final = 1.3
"""The perspective is linearised no farther out than this multiple of the picture's half-width: beyond, splats would
become endlessly long."""


@dataclass(frozen=True, eq=False)
class GaussianRender:
    """One picture, row 0 on top.

    Attributes:
        rgb: (H, W, 3) float32 display values over the background.
        alpha: (H, W) float32, how much of each pixel the Gaussians cover.
    """

    rgb: Float32
    alpha: Float32


@dataclass(frozen=True, eq=False)
class Splats:
    """Projected Gaussians from near to far.

    Attributes:
        centres_px: (M, 2) float64, x then y.
        conics: (M, 3) float64, the inverse covariance's entries xx, xy, yy, 1 / pixel squared; y runs down.
        opacities: (M,) float64 after the filter.
        colours: (M, 3) float64, not negative.
    """

    centres_px: Float64
    conics: Float64
    opacities: Float64
    colours: Float64


def render_gaussians(
    gaussians: Gaussians,
    camera: PinholeCamera,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    near: float = 1e-2,
    engine: str = "numba",
) -> GaussianRender:
    """Render Gaussians into a view.

    Args:
        gaussians: In the world's frame.
        camera: The view.
        background: Display values behind them.
        near: Gaussians whose mean is nearer than this along the optical axis are left out, world units.
        engine: "numba" (CPU; the same picture for any number of threads) or "gsplat" (CUDA).

    Raises:
        ValidationFailedError: The engine is unknown.
        ModelUnavailableError: gsplat was asked for and cannot be used here.
        GpuUnavailableError: gsplat was asked for and there is no CUDA device.
        ModelGpuOutOfMemoryError: The GPU's memory is too small for gsplat.
    """
    if engine == "gsplat":
        return _render_with_gsplat(gaussians, camera, background, near)
    if engine != "numba":
        raise ValidationFailedError(
            f"There is no engine named {engine!r} for Gaussians.", suggestion="Choose numba or gsplat.", engine=engine
        )
    splats = project_gaussians(gaussians, camera, near)
    height, width = camera.image_hw
    rgb, through = np.zeros((height, width, 3), np.float32), np.ones((height, width), np.float32)

    def band(start: int, stop: int) -> None:
        _splat_rows(
            splats.centres_px, splats.conics, splats.opacities, splats.colours, start, rgb[start:stop],
            through[start:stop],
        )  # fmt: skip

    run_jobs([partial(band, start, stop) for start, stop in row_bands(height, thread_count())])
    rgb += through[..., None] * np.array(background, np.float32)
    return GaussianRender(rgb, 1 - through)


def project_gaussians(gaussians: Gaussians, camera: PinholeCamera, near: float) -> Splats:
    """Project Gaussians into a view, filter and sort them; those that cannot be seen are left out.

    Args:
        gaussians: In the world's frame.
        camera: The view.
        near: Smallest depth of a mean, world units.
    """
    rotation, translation = camera.cam_from_world[:3, :3], camera.cam_from_world[:3, 3]
    in_cam = gaussians.positions.astype(np.float64) @ rotation.T + translation
    depth = -in_cam[:, 2]
    order = np.argsort(depth, kind="stable")
    order = order[depth[order] > near]
    in_cam, depth = in_cam[order], depth[order]
    covariance = _screen_covariances(gaussians, order, in_cam, camera)
    before = covariance[:, 0] * covariance[:, 2] - covariance[:, 1] ** 2
    xx, xy, yy = covariance[:, 0] + FILTER_VARIANCE_PX, covariance[:, 1], covariance[:, 2] + FILTER_VARIANCE_PX
    after = xx * yy - xy * xy
    opacities = gaussians.opacities[order] * np.sqrt(np.maximum(before / after, 0.0))
    (fx, fy), (cx, cy) = camera.focal_px, camera.centre_px
    centres = np.stack([cx + fx * in_cam[:, 0] / depth, cy - fy * in_cam[:, 1] / depth], axis=1)
    seen = opacities > LEAST_ALPHA
    return Splats(
        centres_px=np.ascontiguousarray(centres[seen]),
        conics=np.ascontiguousarray((np.stack([yy, -xy, xx], axis=1) / after[:, None])[seen]),
        opacities=np.ascontiguousarray(opacities[seen]),
        colours=np.maximum(gaussians.colours[order][seen].astype(np.float64), 0.0),
    )


def _screen_covariances(
    gaussians: Gaussians, order: NDArray[np.int64], in_cam: Float64, camera: PinholeCamera
) -> Float64:
    """Return (M, 3) xx, xy, yy of the projected covariances before the filter, pixels squared, y down."""
    axes = rotation_matrices(gaussians.rotations[order]) * gaussians.scales[order].astype(np.float64)[:, None, :]
    axes = camera.cam_from_world[:3, :3] @ axes
    height, width = camera.image_hw
    (fx, fy), (cx, cy) = camera.focal_px, camera.centre_px
    depth = -in_cam[:, 2]
    slope_x = _FRUSTUM_MARGIN * max(cx, width - cx) / fx
    slope_y = _FRUSTUM_MARGIN * max(cy, height - cy) / fy
    x = np.clip(in_cam[:, 0] / depth, -slope_x, slope_x)
    y = np.clip(in_cam[:, 1] / depth, -slope_y, slope_y)
    # pixel x = cx + fx X / -Z and pixel y = cy - fy Y / -Z, differentiated at the mean
    along_x = fx / depth[:, None] * (axes[:, 0] + x[:, None] * axes[:, 2])
    along_y = -fy / depth[:, None] * (axes[:, 1] + y[:, None] * axes[:, 2])
    return np.stack(
        [(along_x * along_x).sum(axis=1), (along_x * along_y).sum(axis=1), (along_y * along_y).sum(axis=1)], axis=1
    )


def rotation_matrices(quaternions: NDArray[Any]) -> Float64:
    """Return the (N, 3, 3) rotations of (N, 4) quaternions (w, x, y, z), which are normalised first."""
    q = np.asarray(quaternions, np.float64)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


@njit(cache=True, nogil=True)
def _splat_rows(
    centres: Float64,
    conics: Float64,
    opacities: Float64,
    colours: Float64,
    first_row: int,
    rgb: Float32,
    through: Float32,
) -> None:
    """Blend splats from near to far into a band of rows; every pixel meets them in the same order."""
    rows, width = through.shape
    for n in range(centres.shape[0]):
        opacity = opacities[n]
        limit = 2.0 * np.log(opacity / LEAST_ALPHA)
        a, b, c = conics[n, 0], conics[n, 1], conics[n, 2]
        cx, cy = centres[n, 0] - 0.5, centres[n, 1] - 0.5 - first_row
        half_height = np.sqrt(limit * a / (a * c - b * b))
        if not (cy + half_height >= 0.0 and cy - half_height <= rows - 1.0):
            continue
        row_start, row_stop = int(np.ceil(max(cy - half_height, 0.0))), int(np.floor(min(cy + half_height, rows - 1.0)))
        for row in range(row_start, row_stop + 1):
            dy = row - cy
            # a dx^2 + 2 b dx dy + c dy^2 = limit
            middle = cx - b * dy / a
            reach = (limit - (c - b * b / a) * dy * dy) / a
            if reach < 0.0:
                continue
            reach = np.sqrt(reach)
            if not (middle + reach >= 0.0 and middle - reach <= width - 1.0):
                continue
            start, stop = int(np.ceil(max(middle - reach, 0.0))), int(np.floor(min(middle + reach, width - 1.0)))
            for column in range(start, stop + 1):
                left = through[row, column]
                if left < LEAST_TRANSMITTANCE:
                    continue
                dx = column - cx
                alpha = min(opacity * np.exp(-0.5 * (a * dx * dx + 2.0 * b * dx * dy + c * dy * dy)), MOST_ALPHA)
                share = left * alpha
                rgb[row, column, 0] += np.float32(share * colours[n, 0])
                rgb[row, column, 1] += np.float32(share * colours[n, 1])
                rgb[row, column, 2] += np.float32(share * colours[n, 2])
                through[row, column] = np.float32(left * (1.0 - alpha))


def _render_with_gsplat(
    gaussians: Gaussians, camera: PinholeCamera, background: tuple[float, float, float], near: float
) -> GaussianRender:
    import torch

    from reconflow.gpu_failures import is_full_gpu

    require_gsplat()
    if not torch.cuda.is_available():
        raise GpuUnavailableError(
            "The engine gsplat needs a CUDA device, and there is none.",
            suggestion="Choose the engine numba.",
            engine="gsplat",
        )
    try:
        rgb, coverage = _rasterize(gaussians, camera, near)
    except RuntimeError as error:
        if not is_full_gpu(error):
            raise
        raise ModelGpuOutOfMemoryError(
            "The GPU's memory ran out while picturing the Gaussians.",
            suggestion="Choose the engine numba for Gaussians, or stop other programs on the GPU.",
            stage="texture",
        ) from error
    over = rgb + (1 - coverage[..., None]) * np.array(background, np.float32)
    return GaussianRender(over.astype(np.float32), coverage)


def _rasterize(gaussians: Gaussians, camera: PinholeCamera, near: float) -> tuple[Float32, Float32]:
    """Return gsplat's (H, W, 3) premultiplied picture and its (H, W) coverage."""
    import torch

    gsplat: Any = importlib.import_module("gsplat")

    def on_gpu(values: NDArray[Any]) -> Any:
        return torch.as_tensor(np.ascontiguousarray(values, np.float32), device="cuda")

    (fx, fy), (cx, cy) = camera.focal_px, camera.centre_px
    height, width = camera.image_hw
    opencv_from_opengl = np.diag([1.0, -1.0, -1.0, 1.0])
    rgb, alpha, _ = gsplat.rasterization(
        means=on_gpu(gaussians.positions),
        quats=on_gpu(gaussians.rotations),
        scales=on_gpu(gaussians.scales),
        opacities=on_gpu(gaussians.opacities),
        colors=on_gpu(np.maximum(gaussians.colours, 0)),
        viewmats=on_gpu((opencv_from_opengl @ camera.cam_from_world)[None]),
        Ks=on_gpu(np.array([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]])),
        width=width,
        height=height,
        near_plane=near,
        eps2d=FILTER_VARIANCE_PX,
        rasterize_mode="antialiased",
    )
    return rgb[0].cpu().numpy().astype(np.float32), alpha[0, ..., 0].cpu().numpy().astype(np.float32)
