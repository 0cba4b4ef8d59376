"""What a run shows in Prefect's UI: tables, text and small pictures. Says what stages found, decides nothing.

Keys carry the model's name. Pictures are thumbnails inside data URLs, because links to files and signed URLs do not
outlive the machine or the hour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from reconflow.errors import ReconflowError, fault_sentence
from reconflow.outputs.images import thumbnail_url
from reconflow.stage_results import (
    CamerasResult,
    DatasetResult,
    PreviewResult,
    QualityResult,
    RunSummary,
)

THUMBNAIL_PX: Final = 240


def show_dataset(model: str, dataset: DatasetResult) -> None:
    """Show the views of a validated dataset, and what is unusual about them."""
    create_table_artifact(
        table=[{"view": view, "mask from": dataset.mask_sources[view]} for view in dataset.views],
        key=f"{model}-dataset",
        description="\n\n".join([f"**{dataset.name}**: {len(dataset.views)} views", *dataset.warnings]),
    )


def show_cameras(model: str, cameras: CamerasResult) -> None:
    """Show the field of view and how sure it is."""
    text = (
        f"Field of view **{cameras.fov_x_deg:.2f}°** ± {cameras.fov_uncertainty_deg:.2f}° ({cameras.method}), "
        f"confidence {cameras.confidence:.2f}."
    )
    create_markdown_artifact("\n\n".join([text, *cameras.warnings]), key=f"{model}-cameras", description="Cameras")


def show_quality(model: str, quality: QualityResult) -> None:
    """Show the measures per view and the class of the result."""
    mean: dict[str, Any] = {
        "view": "mean",
        "psnr_db": quality.psnr_db,
        "ssim": quality.ssim,
        "mask_iou": quality.mask_iou,
    }
    create_table_artifact(
        table=[{name: _shown(value) for name, value in row.items()} for row in (*quality.rows, mean)],
        key=f"{model}-quality",
        description="\n\n".join([f"Status: **{quality.status}**", *quality.reasons]),
    )


def show_previews(model: str, previews: PreviewResult, root: Path) -> None:
    """Show the textured previews: the first as a picture, all of them as one page."""
    urls = {
        Path(ref.path).stem.removeprefix("textured_"): _thumbnail(root / ref.path)
        for ref in previews.files
        if Path(ref.path).name.startswith("textured_")
    }
    if not urls:
        return
    create_image_artifact(next(iter(urls.values())), key=f"{model}-preview", description="Textured preview")
    page = "\n".join(f"**{view}**\n\n![{view}]({url})\n" for view, url in urls.items())
    create_markdown_artifact(page, key=f"{model}-previews", description="Textured previews of all views")


def show_summary(model: str, summary: RunSummary) -> None:
    """Show what came out and where it lies."""
    measures = f"PSNR {summary.psnr_db:.2f} dB, SSIM {summary.ssim:.4f}, mask IoU {summary.mask_iou:.4f}"
    lines = [
        f"Status **{summary.status}**: {measures}.",
        "",
        f"{summary.faces} triangles, {summary.vertices} vertices.",
        "",
        f"Results: `{summary.location}`",
    ]
    create_markdown_artifact("\n".join(lines), key=f"{model}-summary", description="Result")


def show_failure(model: str, error: ReconflowError) -> None:
    """Show why the run failed and what to do."""
    lines = [f"**{error.code}**", "", error.message, "", f"**What to do:** {error.suggestion}"]
    faults = error.details.get("faults")
    if isinstance(faults, list):
        lines += ["", *(f"* {fault_sentence(fault)}" for fault in faults)]
    create_markdown_artifact("\n".join(lines), key=f"{model}-failure", description="Why the run failed")


def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        return thumbnail_url(np.asarray(image.convert("RGB")), THUMBNAIL_PX)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
