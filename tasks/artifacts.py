"""What a run shows in Prefect's UI: tables, text and small pictures. Says what stages found, decides nothing.

Keys carry the model's name. Pictures are thumbnails inside data URLs, because links to files and signed URLs do not
outlive the machine or the hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from reconflow.errors import Cancelled, ReconflowError
from reconflow.outputs.images import thumbnail_url
from reconflow.outputs.package import FileEntry
from reconflow.quality.report import MeshQuality, QualityReport, ViewQuality
from reconflow.stage_results import CamerasResult, DatasetResult, PreviewResult, QualityResult, RunSummary
from tasks.ending_pages import cancelled_page, failure_page, summary_page

PICTURE_PX: Final = 360
THUMBNAIL_PX: Final = 200
"""Three beside each other are as wide as a page."""
PICTURES_PER_ROW: Final = 3
MIN_SHIFT_PX: Final = 0.5
_METHODS: Final = {
    "given": "the dataset or the request, and checked against the pictures",
    "depth": "the depth renders and silhouettes",
    "silhouettes": "the silhouettes",
}


def show_dataset(model: str, dataset: DatasetResult) -> None:
    """Show the views of a validated dataset, and what is unusual about them."""
    height, width = dataset.image_hw
    facts = f"**{dataset.name}**: {len(dataset.views)} views, photos up to {width} × {height} pixels."
    create_table_artifact(
        table=[{"view": view, "mask from": dataset.mask_sources[view]} for view in dataset.views],
        key=f"{model}-dataset",
        description="\n\n".join([facts, *_notes(dataset.warnings)]),
    )


def show_cameras(model: str, cameras: CamerasResult) -> None:
    """Show the field of view, how sure it is, and which photos evidently lie off their depth renders."""
    rows = [f"| field of view | {cameras.fov_x_deg:.2f}° |", f"| found from | {_METHODS[cameras.method]} |"]
    if cameras.method != "given":
        rows.insert(1, f"| known to | ±{cameras.fov_uncertainty_deg:.2f}° |")
        rows.append(f"| confidence, 0 to 1 | {cameras.confidence:.2f} |")
    rows += [
        f"| photo of {view} | {right:+.1f} px right, {down:+.1f} px down of its depth render |"
        for view, (right, down) in cameras.photo_shifts_px.items()
        if max(abs(right), abs(down)) >= MIN_SHIFT_PX
    ]
    table = "\n".join(["| cameras | |", "|---|---|", *rows])
    page = "\n\n".join([table, *_notes(cameras.warnings)])
    create_markdown_artifact(page, key=f"{model}-cameras", description="Cameras")


def show_quality(model: str, quality: QualityResult, root: Path) -> None:
    """Show the measures per view with the class of the result, and the facts of the mesh.

    Args:
        model: The model.
        quality: Of its result.
        root: The run's folder, with the measures' file.
    """
    report = QualityReport.model_validate_json((root / quality.file.path).read_bytes())
    wanted = report.thresholds
    needed = f"normal from {wanted.normal_psnr_db:g} dB and SSIM {wanted.normal_ssim:g}"
    least = f"failure below {wanted.warning_psnr_db:g} dB or SSIM {wanted.warning_ssim:g}"
    create_table_artifact(
        table=[_quality_row(view) for view in (*report.views, report.mean)],
        key=f"{model}-quality",
        description="\n\n".join([f"Quality **{report.status}** ({needed}, {least}).", *report.reasons]),
    )
    create_table_artifact(
        table=[{"fact": name, "value": value} for name, value in _mesh_facts(report.mesh).items()],
        key=f"{model}-mesh",
        description="The mesh, as it was read back from the file; vertices in one place count as one.",
    )


def _quality_row(view: ViewQuality) -> dict[str, str]:
    depth = view.depth_mae_relative
    return {
        "view": view.view,
        "PSNR, dB": f"{view.psnr_db:.2f}",
        "SSIM": f"{view.ssim:.4f}",
        "mask IoU": f"{view.mask_iou:.4f}",
        "mean depth error": "–" if depth is None else f"{100 * depth:.2f} %",
    }


def _mesh_facts(mesh: MeshQuality) -> dict[str, str]:
    height, width = mesh.texture_hw
    size = " × ".join(f"{high - low:.3f}" for low, high in zip(mesh.bbox_min, mesh.bbox_max, strict=True))
    return {
        "triangles": str(mesh.faces),
        "vertices": str(mesh.vertices),
        "pieces": str(mesh.components),
        "closed surface (watertight)": "yes" if mesh.watertight else f"no, {mesh.boundary_edges} open edges",
        "non-manifold edges": str(mesh.non_manifold_edges),
        "size, units": size,
        "texture": f"{width} × {height} texels, {100 * mesh.atlas_use:.0f} % used, {mesh.charts} charts",
    }


def show_previews(model: str, previews: PreviewResult, root: Path) -> None:
    """Show the textured previews: the first as a picture, all of them as one page."""
    paths = {
        Path(ref.path).stem.removeprefix("textured_"): root / ref.path
        for ref in previews.files
        if Path(ref.path).name.startswith("textured_")
    }
    if not paths:
        return
    view, path = next(iter(paths.items()))
    create_image_artifact(
        _thumbnail(path, PICTURE_PX), key=f"{model}-preview", description=f"The textured mesh, seen from: {view}."
    )
    page = _picture_table({view: _thumbnail(path, THUMBNAIL_PX) for view, path in paths.items()})
    create_markdown_artifact(page, key=f"{model}-previews", description="The textured mesh from every camera")


def _picture_table(urls: dict[str, str]) -> str:
    """Return pictures in rows of three, their names above them."""
    names = list(urls)
    rows = [names[first : first + PICTURES_PER_ROW] for first in range(0, len(names), PICTURES_PER_ROW)]
    width = len(rows[0])
    lines: list[list[str]] = []
    for row in rows:
        gap = [""] * (width - len(row))
        lines += [[*row, *gap], *([["---"] * width] if not lines else [])]
        lines.append([*(f"![{view}]({urls[view]})" for view in row), *gap])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def show_summary(model: str, summary: RunSummary, store: str, files: Sequence[FileEntry]) -> None:
    """Show what came out, where it lies and how to get it; see `tasks.ending_pages.summary_page`."""
    create_markdown_artifact(summary_page(summary, store, files), key=f"{model}-summary", description="Result")


def show_failure(model: str, error: ReconflowError, run_id: str | None = None) -> None:
    """Show why the run failed and what to do; see `tasks.ending_pages.failure_page`."""
    create_markdown_artifact(failure_page(error, run_id), key=f"{model}-failure", description="Why the run failed")


def show_cancelled(model: str, error: Cancelled, run_id: str) -> None:
    """Show who cancelled the run and why."""
    create_markdown_artifact(cancelled_page(error, run_id), key=f"{model}-failure", description="Why the run stopped")


def _notes(warnings: Sequence[str]) -> list[str]:
    return [f"**Note:** {warning}" for warning in warnings]


def _thumbnail(path: Path, width: int) -> str:
    with Image.open(path) as image:
        return thumbnail_url(np.asarray(image.convert("RGB")), width)
