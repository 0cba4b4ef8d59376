"""A small finished run on disk: everything a package needs, made with the real writers."""

from pathlib import Path

from reconflow.cameras.six_axis import six_axis_rig
from reconflow.datasets.dataset import Dataset
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.files import write_json, write_text
from reconflow.outputs.glb import write_glb
from reconflow.outputs.obj import write_obj, write_texture
from reconflow.outputs.package import ManifestFacts, ScaleSource
from reconflow.outputs.ply import write_ply
from reconflow.outputs.previews import write_previews, write_turntable
from reconflow.outputs.report import CalibrationSummary, ReportData
from reconflow.outputs.runs import RunLayout
from reconflow.quality.glb_reader import read_glb
from reconflow.quality.measure import measure_quality
from tests.quality.test_measure import dataset_of

RIG = six_axis_rig(0.9, 2.4, (64, 64))
FACTS = ManifestFacts(
    model="nvdiffrec",
    scale=ScaleSource.UNIT_RADIUS,
    options={"preset": "draft", "steps": 10},
    seed=0,
    engines={"rendering": "cpu"},
    dataset_name="box",
    dataset_digest="0" * 64,
    input_hashes={"multi_views/front.png": "1" * 64},
)


def report_data(textured: TexturedMesh, dataset: Dataset, glb: Path, **changes: object) -> ReportData:
    values: dict[str, object] = {
        "title": dataset.name,
        "subtitle": "nvdiffrec, draft",
        "textured": textured,
        "cameras": RIG,
        "dataset": dataset,
        "quality": measure_quality(glb, RIG, dataset),
        "calibration": CalibrationSummary("Calibrated from depth.", "high", {"silhouettes, px": 0.4}),
        "unit": "1 unit = 1 metre",
        "losses": {"colour": [[0, 0.5], [10, 0.01]]},
        "timings_s": {"fit": 12.5},
        "options": {"steps": 10},
    }
    return ReportData(**{**values, **changes})  # type: ignore[arg-type]


def write_run(root: Path, run_id: str, textured: TexturedMesh, seconds: float) -> RunLayout:
    """Write every file of a run but the zip and the manifest; `seconds` is what differs between equal runs."""
    layout = RunLayout(root / run_id, run_id)
    write_glb(textured, layout.glb, extras={"unit": "1 unit = 1 metre"})
    write_texture(textured, layout.texture_kd)
    write_obj(textured, layout.obj, layout.mtl, layout.texture_kd, unit="1 unit = 1 metre")
    write_ply(textured, layout.ply, unit="1 unit = 1 metre")
    again = read_glb(layout.glb)
    write_previews(again, RIG[:2], layout, width=32)
    write_turntable(again, layout.turntable, frames=3, size=32)
    quality = measure_quality(layout.glb, RIG, dataset_of(textured, RIG))
    write_text(layout.quality, quality.model_dump_json(indent=2) + "\n")
    write_json(layout.transforms, {"frames": []})
    write_json(layout.run, {"seconds": seconds, "run_id": run_id})
    write_text(layout.report, f"<p>{seconds} s</p>")
    return layout
