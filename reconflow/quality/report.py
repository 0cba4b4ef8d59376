"""What a quality measurement says: per view, on average, of the mesh, and how it is classed. Data only."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, Field


class QualityStatus(StrEnum):
    """How a result is classed against the thresholds."""

    NORMAL = "normal"
    WARNING = "warning"
    FAILURE = "failure"


class QualityThresholds(BaseModel, frozen=True, extra="forbid"):
    """Where `normal` and `warning` begin; both measures have to reach their threshold."""

    normal_psnr_db: float = Field(default=25.0, description="Mean PSNR from which a result is normal, dB.")
    normal_ssim: float = Field(default=0.85, description="Mean SSIM from which a result is normal.")
    warning_psnr_db: float = Field(default=20.0, description="Mean PSNR below which a result is a failure, dB.")
    warning_ssim: float = Field(default=0.75, description="Mean SSIM below which a result is a failure.")

    def classify(self, psnr_db: float, ssim: float) -> tuple[QualityStatus, tuple[str, ...]]:
        """Return the class of a result and, unless it is normal, the sentences that say why.

        Args:
            psnr_db: Mean over the views, decibels.
            ssim: Mean over the views.
        """
        if psnr_db >= self.normal_psnr_db and ssim >= self.normal_ssim:
            return QualityStatus.NORMAL, ()
        if psnr_db >= self.warning_psnr_db and ssim >= self.warning_ssim:
            status, wanted_psnr, wanted_ssim = QualityStatus.WARNING, self.normal_psnr_db, self.normal_ssim
        else:
            status, wanted_psnr, wanted_ssim = QualityStatus.FAILURE, self.warning_psnr_db, self.warning_ssim
        reasons = []
        if psnr_db < wanted_psnr:
            reasons.append(f"Mean PSNR is {psnr_db:.2f} dB; {wanted_psnr:g} dB are needed.")
        if ssim < wanted_ssim:
            reasons.append(f"Mean SSIM is {ssim:.4f}; {wanted_ssim:g} is needed.")
        return status, tuple(reasons)


class ViewQuality(BaseModel, frozen=True, extra="forbid"):
    """One view's measures, or their means over the views; None where there is nothing to compare."""

    view: str
    psnr_db: float = Field(description="Whole picture over white.")
    psnr_object_db: float | None = Field(description="Pixels in the union of the two masks only.")
    ssim: float = Field(description="Gaussian window of sigma 1.5, whole picture, mean over channels.")
    mask_iou: float = Field(description="Intersection over union of the silhouettes at half coverage.")
    depth_mae_levels: float | None = Field(default=None, description="In counts of the stored depth's encoding.")
    depth_rmse_levels: float | None = Field(default=None, description="In counts of the stored depth's encoding.")
    depth_mae_relative: float | None = Field(default=None, description="Fraction of the stored z.")
    depth_rmse_relative: float | None = Field(default=None, description="Fraction of the stored z.")
    depth_max_value: int | None = Field(default=None, description="Full range of the stored depth: 255 or 65535.")
    depth_z_of_max: float | None = Field(default=None, description="World z of the full range: the per-view scale.")
    depth_scale_source: str | None = Field(default=None, description="`calibration`, `file`, or `median ratio`.")


class MeshQuality(BaseModel, frozen=True, extra="forbid"):
    """Facts of the packaged mesh, vertices in one place counted as one."""

    vertices: int
    faces: int
    components: int
    boundary_edges: int
    non_manifold_edges: int
    non_manifold_vertices: int
    degenerate_faces: int
    watertight: bool
    consistent_winding: bool
    euler: int
    genus: int | None
    area: float = Field(description="Squared world units.")
    volume: float | None = Field(description="Cubed world units; None unless watertight.")
    bbox_min: tuple[float, float, float]
    bbox_max: tuple[float, float, float]
    texture_hw: tuple[int, int] = Field(description="Height and width of the base colour, texels.")
    charts: int = Field(description="Pieces of the UV map.")
    atlas_use: float = Field(description="Area of all triangles in the UV map; 1 would fill the texture.")
    texels_per_unit: float = Field(description="Texels along one world unit, area mean.")
    texel_stretch: float = Field(description="95th percentile of the texel density along an edge over the 5th.")


class Protocol(BaseModel, frozen=True, extra="forbid"):
    """How the numbers were obtained, so that they can be compared with others'."""

    subject: str = "the packaged GLB, re-loaded from the file"
    renderer: str = "unlit base colour, bilinear texture lookup, double-sided"
    samples_per_pixel: int
    resolution: str
    colour_space: str = "sRGB display values, data range 1, renders rounded to 8 bits"
    background: str = "white, composited in linear light"
    masking: str
    cameras: str = "the run's cameras, in the mesh's frame; no view was held out"
    ssim_window: str = "Gaussian, sigma 1.5 px, 11 x 11 taps, population covariance, float64"
    depth: str = "pixel centres, at the depth render's own resolution, where both see the object"


class QualityReport(BaseModel, frozen=True, extra="forbid"):
    """All that was measured of one packaged mesh; the content of `quality.json`."""

    status: QualityStatus
    reasons: tuple[str, ...]
    thresholds: QualityThresholds
    mean: ViewQuality
    views: tuple[ViewQuality, ...]
    mesh: MeshQuality
    protocol: Protocol


MEAN_VIEW: Final = "mean"


def mean_over_views(views: tuple[ViewQuality, ...]) -> ViewQuality:
    """Average each measure over the views that have it; scales and encodings are left out."""

    def mean(name: str) -> float | None:
        values = [value for view in views if (value := getattr(view, name)) is not None]
        return sum(values) / len(values) if values else None

    encodings = {view.depth_max_value for view in views if view.depth_max_value is not None}
    levels = len(encodings) == 1
    return ViewQuality(
        view=MEAN_VIEW,
        psnr_db=sum(view.psnr_db for view in views) / len(views),
        psnr_object_db=mean("psnr_object_db"),
        ssim=sum(view.ssim for view in views) / len(views),
        mask_iou=sum(view.mask_iou for view in views) / len(views),
        depth_mae_levels=mean("depth_mae_levels") if levels else None,
        depth_rmse_levels=mean("depth_rmse_levels") if levels else None,
        depth_mae_relative=mean("depth_mae_relative"),
        depth_rmse_relative=mean("depth_rmse_relative"),
        depth_max_value=encodings.pop() if levels else None,
    )
