"""Writing `report.html`: one page about one result, complete in itself, that works offline and from `file://`.

The 3D view is ours (`viewer.js`, plain WebGL 2): the page has to show one textured mesh, for which a library would be
a hundred times the code and one more licence. Everything a user or a file supplied is escaped by the template; a
content security policy in the page forbids every outside request.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reconflow import __version__
from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.dataset import Dataset
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.charts import Curve, Mark, curve_svg
from reconflow.outputs.corners import split_at_seams
from reconflow.outputs.files import write_text
from reconflow.outputs.glb import encode_glb
from reconflow.outputs.images import MIME_TYPES, data_url, resize_to_width
from reconflow.outputs.report_cameras import (
    camera_table,
    overall_residuals,
    residual_meanings,
    residual_table,
    shift_table,
)
from reconflow.outputs.report_parts import (
    DIFFERENCE_RANGE,
    duration,
    key_figures,
    mesh_facts_list,
    metrics_table,
    ramp_css,
    short,
    texture_facts_list,
    view_pictures,
)
from reconflow.quality.report import QualityReport

MAX_REPORT_BYTES: Final = 15_000_000
_TEXTURE_WIDTHS: Final = (2048, 1024, 512)
_RESERVE_BYTES: Final = 400_000
_LOSS_TEXTS: Final = {
    "rgb": ("Surface: colours", "squared difference to the photos, in linear light"),
    "silhouette": ("Surface: silhouettes", "squared difference of the coverage"),
    "depth": ("Surface: depth", "robust difference to the depth renders"),
    "texture_rgb_mse": ("Texture: colours", "squared difference to the photos, in linear light"),
}
"""By curve: its title, and what is drawn."""


@dataclass(frozen=True)
class CalibrationSummary:
    """Where the cameras came from, for people.

    Attributes:
        source: One sentence, e.g. that they were calibrated from depth and silhouettes, or supplied.
        confidence: How sure, in a few words; empty when it does not apply.
        residuals: What is left over after the fit, by name (the name carries the unit); `view.name` for one view's.
        photo_shifts_px: By view, how far the photo is shifted against its depth render: right, down, pixels.
        notes: Further sentences.
    """

    source: str
    confidence: str = ""
    residuals: Mapping[str, float] = field(default_factory=dict)
    photo_shifts_px: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything the page tells.

    Attributes:
        title: The object's or dataset's name.
        subtitle: One line: model, preset, run id, version, as the caller sees fit.
        textured: The packaged mesh, re-loaded.
        cameras: One per view, in the mesh's frame, at the photos' resolution.
        dataset: The input.
        quality: What was measured.
        calibration: Where the cameras came from.
        unit: What one unit is, e.g. `1 unit = distance of the farthest vertex`.
        turntable: Content of `turntable.webp`; the stand-in where there is no WebGL.
        losses: Curves of the fit, name to [[step, value], ...].
        loss_levels: By curve, from which step on its values are of other pictures or terms: `from_step`,
            `longest_side` (pixels), `with_colour`.
        timings_s: Seconds by phase, in the order to show; their sum is called computing time.
        under_way_s: Seconds so far of the phase that writes this page, asked for once the pictures are drawn.
        machine: Facts of the machine and the run, e.g. peak memory, already in words.
        options: The options used.
        warnings: Sentences about what is unusual.
        alignment: How well a generated mesh lies where the cameras see it, in words.
        licences: What touched the asset and under which licence.
    """

    title: str
    subtitle: str
    textured: TexturedMesh
    cameras: tuple[PinholeCamera, ...]
    dataset: Dataset
    quality: QualityReport
    calibration: CalibrationSummary
    unit: str
    turntable: bytes = b""
    losses: Mapping[str, Any] = field(default_factory=dict)
    loss_levels: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    under_way_s: Callable[[], float] | None = None
    machine: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    alignment: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, data: ReportData, *, max_bytes: int = MAX_REPORT_BYTES) -> int:
    """Write the page.

    The embedded 3D view gets a smaller texture when the page would become larger than allowed, and gives way to the
    turntable, with a note, when the mesh alone is too large.

    Args:
        path: The file.
        data: What to tell.
        max_bytes: Largest size of the page.

    Returns:
        The page's size in bytes.
    """
    page = render_report(data, max_bytes=max_bytes)
    write_text(path, page)
    return len(page.encode("utf-8"))


def render_report(data: ReportData, *, max_bytes: int = MAX_REPORT_BYTES) -> str:
    """Return the page as text; see `write_report`."""
    context = _context(data)
    assets = files("reconflow.outputs")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((assets / "report.html").read_text(encoding="utf-8"))
    context["css"] = Markup((assets / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    context["viewer_js"] = Markup((assets / "viewer.js").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    without_model = len(template.render(**context, model="").encode("utf-8"))
    budget = (max_bytes - without_model - _RESERVE_BYTES) * 3 // 4
    return template.render(**context, model=_model_base64(data.textured, budget))


def _context(data: ReportData) -> dict[str, Any]:
    pictures = view_pictures(data.textured, data.cameras, data.dataset, data.quality)
    timings_s = dict(data.timings_s)
    if data.under_way_s is not None:
        timings_s["package, up to this page"] = data.under_way_s()
    total_s = sum(timings_s.values()) if timings_s else None
    calibration = data.calibration
    return {
        "version": __version__,
        "title": data.title,
        "subtitle": data.subtitle,
        "quality": data.quality,
        "figures": key_figures(data.quality, total_s),
        "turntable": data_url(data.turntable, MIME_TYPES["webp"]) if data.turntable else "",
        "warnings": [text for text in dict.fromkeys(data.warnings) if text not in data.quality.reasons],
        "shown_views": pictures,
        "hidden_views": len(data.dataset.views) - len(pictures),
        "scale_gradient": ramp_css(),
        "scale_percent": round(100 * DIFFERENCE_RANGE),
        "metrics": metrics_table(data.quality),
        "protocol": [(k.replace("_", " "), v) for k, v in data.quality.protocol.model_dump().items() if k != "subject"],
        "mesh_facts": mesh_facts_list(data.quality.mesh, data.unit),
        "texture_facts": texture_facts_list(data.quality.mesh),
        "calibration": calibration,
        "notes": [text for text in calibration.notes if text not in data.warnings],
        "cameras": camera_table(data.cameras),
        "residual_table": residual_table(calibration.residuals, data.cameras),
        "residuals": overall_residuals(calibration.residuals, data.cameras),
        "residual_meanings": residual_meanings(calibration.residuals, data.cameras),
        "shifts": shift_table(calibration.photo_shifts_px, data.cameras),
        "alignment": data.alignment,
        "curves": _curves(data.losses, data.loss_levels),
        "times": _times(timings_s),
        "machine": data.machine,
        "options": [(name, short(value)) for name, value in data.options.items()],
        "inputs": [*sorted(data.dataset.file_hashes.items()), ("whole dataset", data.dataset.digest)],
        "licences": list(data.licences.items()),
    }


def _curves(losses: Mapping[str, Any], levels: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    curves = []
    for name, points in losses.items():
        label, meaning = _LOSS_TEXTS.get(name, (name.replace("_", " "), ""))
        marks = tuple(_level_mark(level) for level in levels.get(name, ()))
        curve = Curve(label, tuple((float(x), float(y)) for x, y in points), marks)
        svg = Markup(curve_svg(curve))  # noqa: S704 - escaped there
        curves.append({"name": label, "meaning": meaning, "svg": svg})
    return curves


def _level_mark(level: Mapping[str, Any]) -> Mark:
    return Mark(float(level["from_step"]), f"{level['longest_side']} px" + (", colour" if level["with_colour"] else ""))


def _times(timings_s: Mapping[str, float]) -> list[dict[str, Any]]:
    longest = max(timings_s.values(), default=0.0) or 1.0
    return [
        {"name": name, "percent": round(100 * seconds / longest, 1), "shown": duration(seconds)}
        for name, seconds in timings_s.items()
    ]


def _model_base64(textured: TexturedMesh, budget_bytes: int) -> str:
    """Return a GLB with a JPEG texture as base64, the largest that fits the budget, or nothing."""
    split = split_at_seams(textured)
    for width in _TEXTURE_WIDTHS:
        texture = resize_to_width(textured.base_colour_srgb, width)
        glb = encode_glb(split, texture, texture_format="jpeg")
        if len(glb) <= budget_bytes:
            return b64encode(glb).decode("ascii")
    return ""
