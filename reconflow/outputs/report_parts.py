"""The report's contents as plain values: figures, tables, facts, pictures. The page's look is the template's part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.dataset import Dataset, View
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.images import MIME_TYPES, data_url, encode_image
from reconflow.outputs.previews import to_bytes
from reconflow.quality.measure import reference_view
from reconflow.quality.report import MeshQuality, QualityReport, ViewQuality
from reconflow.rendering.shade import render_textured

DIFFERENCE_RANGE: Final = 0.25
"""The difference of display values that gets the strongest colour."""
MAX_SHOWN_VIEWS: Final = 24
_FEW_VIEWS: Final = 8
_FLATTEST_CUT: Final = 0.6
"""Pictures are cut to the object: as wide as its longer side, and at least this part of that high."""
_RAMP: Final = ((255, 255, 255), (253, 212, 158), (239, 101, 72), (127, 0, 0), (40, 0, 20))


@dataclass(frozen=True)
class Figure:
    """One number in large print."""

    value: str
    label: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `mean_last` sets off the last row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    mean_last: bool = False


@dataclass(frozen=True)
class ViewPictures:
    """One view side by side: its name, a line of numbers, and three data URLs."""

    name: str
    numbers: str
    input: str
    render: str
    difference: str


def short(value: object) -> str:
    """Write a value for people: four significant digits, thousands apart, yes and no."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {short(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(short(item) for item in value)
    return str(value)


def duration(seconds: float) -> str:
    """Write a duration for people, e.g. `0.8 s`, `42 s`, `3 min 07 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


def share_text(share: float, digits: int, whole: int = 1) -> str:
    """Write a share of at most 1 so that only a whole one reads as whole: 99.97 % at one digit is 99.9, not 100.0.

    Args:
        share: What to write.
        digits: Behind the point.
        whole: What 1 is written as, e.g. 100 for percent.
    """
    text = f"{whole * share:.{digits}f}"
    just_below = f"{whole - 10.0**-digits:.{digits}f}"
    return just_below if share < 1 <= float(text) / whole else text


def key_figures(quality: QualityReport, total_s: float | None) -> tuple[Figure, ...]:
    """Return the numbers that a reader wants first."""
    mean, mesh = quality.mean, quality.mesh
    figures = [
        Figure(f"{mean.psnr_db:.1f}", "PSNR, mean of the views", "dB"),
        Figure(share_text(mean.ssim, 3), "SSIM, mean of the views"),
        Figure(share_text(mean.mask_iou, 1, 100), "silhouettes in common", "%"),
    ]
    if mean.depth_mae_relative is not None:
        figures.append(Figure(f"{100 * mean.depth_mae_relative:.2f}", "depth error, mean", "%"))
    elif mean.psnr_object_db is not None:
        figures.append(Figure(f"{mean.psnr_object_db:.1f}", "PSNR on the object", "dB"))
    figures.append(Figure(short(mesh.faces), "triangles"))
    pieces = "one piece" if mesh.components == 1 else f"{mesh.components} pieces"
    figures.append(Figure("closed" if mesh.watertight else "open", f"surface, {pieces}"))
    height, width = mesh.texture_hw
    figures.append(Figure(f"{width}²" if width == height else f"{width} × {height}", "texture", "px"))
    figures.append(Figure("–" if total_s is None else duration(total_s), "computing time"))
    return tuple(figures)


def metrics_table(quality: QualityReport) -> Table:
    """Return every measure by view, with the means in the last row."""
    levels = quality.mean.depth_max_value
    unit = f"of {levels}" if levels is not None else "levels"
    head = ("view", "PSNR dB", "on object dB", "SSIM", "mask IoU", f"depth MAE, {unit}", f"RMSE, {unit}", "depth MAE %")
    rows = tuple(_metrics_row(view) for view in (*quality.views, quality.mean))
    return Table(head, rows, mean_last=True)


def _metrics_row(view: ViewQuality) -> tuple[str, ...]:
    def form(value: float | None, digits: int, factor: float = 1.0) -> str:
        return "–" if value is None else f"{factor * value:.{digits}f}"

    return (
        view.view,
        form(view.psnr_db, 2),
        form(view.psnr_object_db, 2),
        share_text(view.ssim, 4),
        share_text(view.mask_iou, 4),
        form(view.depth_mae_levels, 2),
        form(view.depth_rmse_levels, 2),
        form(view.depth_mae_relative, 3, 100),
    )


def mesh_facts_list(mesh: MeshQuality, unit: str) -> list[tuple[str, str]]:
    """Return the surface's facts in words."""
    size = [high - low for low, high in zip(mesh.bbox_min, mesh.bbox_max, strict=True)]
    facts: list[tuple[str, Any]] = [
        ("triangles", mesh.faces),
        ("vertices", mesh.vertices),
        ("pieces", mesh.components),
        ("watertight", mesh.watertight),
        ("handles (genus)", mesh.genus),
        ("boundary edges", mesh.boundary_edges),
        ("non-manifold edges", mesh.non_manifold_edges),
        ("triangles without area", mesh.degenerate_faces),
        ("consistent winding", mesh.consistent_winding),
        ("size x, y, z", " × ".join(f"{side:.3f}" for side in size)),
        ("surface", mesh.area),
        ("volume", mesh.volume),
        ("unit", unit),
    ]
    return [(name, short(value)) for name, value in facts]


def texture_facts_list(mesh: MeshQuality) -> list[tuple[str, str]]:
    """Return how the texture is used, in words."""
    return [
        ("size", f"{mesh.texture_hw[1]} × {mesh.texture_hw[0]} px, sRGB"),
        ("charts", short(mesh.charts)),
        ("atlas used", f"{100 * mesh.atlas_use:.1f} %"),
        ("texels per unit of length", f"{mesh.texels_per_unit:.0f}"),
        ("densest to sparsest (95th / 5th percentile)", f"{mesh.texel_stretch:.2f}"),
        ("material", "base colour only; metallic 0 and roughness 1 are constants"),
        ("light", "as in the pictures, part of the base colour"),
    ]


def view_pictures(
    textured: TexturedMesh, cameras: Sequence[PinholeCamera], dataset: Dataset, quality: QualityReport
) -> tuple[ViewPictures, ...]:
    """Return input, render and difference of every view, or of an even choice when there are many."""
    chosen = _even_choice(len(dataset.views), MAX_SHOWN_VIEWS)
    width = 400 if len(chosen) <= _FEW_VIEWS else 256
    camera_of = {camera.name: camera for camera in cameras}
    measures_of = {view.view: view for view in quality.views}
    return tuple(
        _pictures_of(textured, camera_of[view.name], view, measures_of[view.name], width)
        for view in (dataset.views[index] for index in chosen)
    )


def difference_picture(first_srgb: NDArray[Any], second_srgb: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour the largest channel difference of two (H, W, 3) pictures in [0, 1]: white for none, dark for much."""
    difference = np.abs(first_srgb.astype(np.float64) - second_srgb.astype(np.float64)).max(axis=-1)
    position = np.clip(difference / DIFFERENCE_RANGE, 0, 1) * (len(_RAMP) - 1)
    stops = np.arange(len(_RAMP))
    channels = [np.interp(position, stops, [colour[k] for colour in _RAMP]) for k in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def ramp_css() -> str:
    """Return the difference's colours as a CSS gradient."""
    return "linear-gradient(90deg," + ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in _RAMP) + ")"


def _pictures_of(
    textured: TexturedMesh, camera: PinholeCamera, view: View, measures: ViewQuality, width: int
) -> ViewPictures:
    enlarged = _width_before_cut(view, width)
    reference = reference_view(view, enlarged)
    image_hw = (reference.mask.shape[0], reference.mask.shape[1])
    render = render_textured(textured, camera.resized(image_hw))
    cut = _cut_around(reference.mask | (render.coverage >= 0.5))
    ssim, iou = share_text(measures.ssim, 3), share_text(measures.mask_iou, 3)
    return ViewPictures(
        name=view.name,
        numbers=f"{measures.psnr_db:.1f} dB · SSIM {ssim} · IoU {iou}",
        input=_webp_url(np.round(reference.rgb_srgb * 255).astype(np.uint8)[cut]),
        render=_webp_url(to_bytes(render)[cut]),
        difference=_webp_url(difference_picture(reference.rgb_srgb, render.rgb_srgb)[cut]),
    )


def _width_before_cut(view: View, width: int) -> int:
    """Return the picture width at which the object alone is about `width` pixels, at most three times as much."""
    rows, columns = _cut_around(view.mask)
    side = max(rows.stop - rows.start, columns.stop - columns.start, 1)
    enlargement = min(3.0, view.image_hw[1] / int(side))
    return round(enlargement * width)


def _cut_around(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns about a mask with some margin, as far as the picture reaches: square to flat."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    spans = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in range(2)]
    starts, stops = ([int(span[end]) for span in spans] for end in (0, -1))
    longest = 1.06 * max(stop - start + 1 for start, stop in zip(starts, stops, strict=True))
    sides = (max(stops[0] - starts[0] + 1 + 0.06 * longest, _FLATTEST_CUT * longest), longest)
    cuts = []
    for start, stop, side, extent in zip(starts, stops, sides, mask.shape, strict=True):
        middle = 0.5 * (start + stop + 1)
        cuts.append(slice(max(0, round(middle - 0.5 * side)), min(extent, round(middle + 0.5 * side))))
    return cuts[0], cuts[1]


def _webp_url(image: NDArray[np.uint8]) -> str:
    return data_url(encode_image(image, "webp", quality=86), MIME_TYPES["webp"])


def _even_choice(count: int, limit: int) -> list[int]:
    return list(range(count)) if count <= limit else [number * count // limit for number in range(limit)]
