"""How good reconstructions are: one row per dataset, every measure that its folder allows.

    python -m benchmarks.quality
    python -m benchmarks.quality --dataset samples/lantern --dataset mine/cup --preset draft

Every dataset is loaded, calibrated, reconstructed and written as GLB in a process of its own; all measures are of that
file, read back. `ground_truth/mesh.ply` adds distances to the true surface, `novel/transforms_novel.json` adds views
that the reconstruction never saw, `ground_truth/transforms.json` tells the true field of view (docs/samples.md says
how these files are laid out). Seconds are CPU seconds from loading to the written file, kernels compiled before;
memory is the process's peak until then.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._extras import lacks
from benchmarks._geometry_metrics import GeometryScores, compare_surfaces, read_true_mesh
from reconflow.cameras.calibration import Calibration, calibrate
from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.formats import TransformsFile, parse_transforms
from reconflow.datasets.dataset import Dataset, DatasetLayout, MaskSource, View
from reconflow.datasets.loading import load_dataset
from reconflow.errors import ReconflowError
from reconflow.nvdiffrec.model import NvdiffrecModel
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset
from reconflow.outputs.glb import write_glb
from reconflow.quality.glb_reader import read_glb
from reconflow.quality.measure import measure_quality
from reconflow.quality.report import QualityReport
from reconflow.reconstruction import Reconstruction
from reconflow.resources import MIB, peak_rss_bytes
from reconflow.result_frame import choose_result_frame, move_reconstruction

DEFAULT_DATASET = Path(__file__).parents[1] / "samples" / "lantern"
HEADER = (
    f"{'dataset':<12}{'status':>8}{'PSNR':>7}{'SSIM':>7}{'IoU':>7}{'depth':>6}{'fov':>7}{'error':>7}{'CPU s':>7}"
    f"{'MiB':>6}{'faces':>8}{'parts':>6}{'tight':>6}{'genus':>6}"
    f"{'chamfer':>9}{'F 1%':>7}{'F 2%':>7}{'normal':>7}{'novel':>7}{'SSIM':>7}{'IoU':>7}"
)


@dataclass(frozen=True)
class Scores:
    """One dataset's row; None where its folder lacks what is needed.

    Attributes:
        inputs: Against the input views, and facts of the mesh.
        fov_deg: Field of view of the first view, given or found, degrees.
        fov_error_deg: Found minus true.
        seconds: CPU time of this process.
        peak_mib: Peak memory of this process.
        geometry: Against the true surface.
        novel: Against the held-out views.
    """

    inputs: QualityReport
    fov_deg: float
    fov_error_deg: float | None
    seconds: float
    peak_mib: float
    geometry: GeometryScores | None
    novel: QualityReport | None


def score_dataset(root: Path, preset: Preset) -> Scores:
    """Reconstruct a dataset and measure the result."""
    NvdiffrecModel().load("cpu")
    with tempfile.TemporaryDirectory() as folder:
        glb = Path(folder) / "mesh.glb"
        start = time.process_time()
        dataset = load_dataset(root)
        calibration = calibrate(dataset)
        result, scales = _reconstruct(dataset, calibration, preset)
        write_glb(result.textured, glb)
        seconds, peak_mib = time.process_time() - start, peak_rss_bytes() / MIB
        novel = read_novel(root)
        true_cameras = true_cameras_of(root, dataset)
        fov_deg = math.degrees(calibration.fov_x_rad)
        return Scores(
            inputs=measure_quality(glb, result.cameras, dataset, scales),
            fov_deg=fov_deg,
            fov_error_deg=fov_deg - math.degrees(true_cameras[0].fov_x_rad) if true_cameras else None,
            seconds=seconds,
            peak_mib=peak_mib,
            geometry=compare_with_truth(root, glb, (*true_cameras, *(novel.cameras or () if novel else ()))),
            novel=measure_quality(glb, novel.cameras or (), novel) if novel else None,
        )


def read_novel(root: Path) -> Dataset | None:
    """Read the held-out views of a dataset as a dataset of their own; None when there are none."""
    path = root / "novel" / "transforms_novel.json"
    if not path.exists():
        return None
    transforms = parse_transforms(path.read_text())
    views = tuple(_read_view(path.parent, frame.name) for frame in transforms.frames)
    cameras = transforms.cameras([view.image_hw for view in views])
    return Dataset(f"{root.name} (held out)", DatasetLayout.POSED, views, cameras, digest="")


def _read_view(folder: Path, name: str) -> View:
    with Image.open(folder / f"{Path(name).name}.png") as picture:
        rgba = np.asarray(picture.convert("RGBA"))
    alpha = rgba[..., 3].astype(np.float32) / np.float32(255)
    return View(name, np.ascontiguousarray(rgba[..., :3]), alpha, MaskSource.ALPHA)


def _reconstruct(dataset: Dataset, calibration: Calibration, preset: Preset) -> tuple[Reconstruction, dict[str, float]]:
    """Return the result in its own frame, and the views' depth scales there."""
    result = NvdiffrecModel().reconstruct(dataset, calibration, NvdiffrecOptions.model_validate({"preset": preset}))
    frame = choose_result_frame(
        result.textured.mesh, cameras_given=dataset.cameras is not None, world_up=dataset.world_up
    )
    named = zip(dataset.views, calibration.depth_scales, strict=True)
    scales = {view.name: frame.scale * scale for view, scale in named if scale is not None}
    return move_reconstruction(result, frame), scales


def true_cameras_of(root: Path, dataset: Dataset) -> tuple[PinholeCamera, ...]:
    """Return the true cameras; those that the dataset was given count as true."""
    path = root / "ground_truth" / "transforms.json"
    if not path.exists():
        return dataset.cameras or ()
    transforms: TransformsFile = parse_transforms(path.read_text())
    return transforms.cameras([dataset.views[0].image_hw] * len(transforms.frames))


def compare_with_truth(root: Path, glb: Path, cameras: Sequence[PinholeCamera]) -> GeometryScores | None:
    """Compare a written mesh with the true surface, as far as a camera sees that; None when it is not known."""
    path = root / "ground_truth" / "mesh.ply"
    if not path.exists() or not cameras:
        return None
    return compare_surfaces(read_glb(glb).mesh, read_true_mesh(path), cameras)


def _shown(value: float | None, width: int, digits: int, *, signed: bool = False) -> str:
    if value is None:
        return f"{'-':>{width}}"
    return f"{value:>{'+' if signed else ''}{width}.{digits}f}"


def row(name: str, scores: Scores) -> str:
    """Format one line of the table."""
    mean, mesh = scores.inputs.mean, scores.inputs.mesh
    grey = None if mean.depth_mae_levels is None else mean.depth_mae_levels * 255 / (mean.depth_max_value or 255)
    cells = [
        f"{name[:11]:<12}{scores.inputs.status.value:>8}",
        _shown(mean.psnr_db, 7, 2), _shown(mean.ssim, 7, 4), _shown(mean.mask_iou, 7, 4), _shown(grey, 6, 2),
        _shown(scores.fov_deg, 7, 2), _shown(scores.fov_error_deg, 7, 2, signed=True),
        _shown(scores.seconds, 7, 0), _shown(scores.peak_mib, 6, 0),
        f"{mesh.faces:>8}{mesh.components:>6}{'yes' if mesh.watertight else 'no':>6}",
        f"{'-' if mesh.genus is None else mesh.genus:>6}",
    ]  # fmt: skip
    if scores.geometry is None:
        cells.append(f"{'-':>9}{'-':>7}{'-':>7}{'-':>7}")
    else:
        found = scores.geometry
        cells.append(f"{found.chamfer:>9.5f}{found.fscore_1pct:>7.4f}{found.fscore_2pct:>7.4f}")
        cells.append(f"{found.normal_consistency:>7.4f}")
    if scores.novel is None:
        cells.append(f"{'-':>7}{'-':>7}{'-':>7}")
    else:
        held_out = scores.novel.mean
        cells.append(f"{held_out.psnr_db:>7.2f}{held_out.ssim:>7.4f}{held_out.mask_iou:>7.4f}")
    return "".join(cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Score every dataset in a fresh process and print its row; returns 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, action="append", help="a dataset's folder; repeatable")
    parser.add_argument("--preset", type=Preset, choices=list(Preset), default=Preset.STANDARD)
    options = parser.parse_args(argv)
    if lacks("trimesh"):
        return 0
    print("depth: mean absolute error in levels of 8 bits; fov, error: degrees; chamfer, F: in true radii")
    print(HEADER, flush=True)
    failed = False
    for root in options.dataset or [DEFAULT_DATASET]:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            line, succeeded = pool.submit(_row_of, root, options.preset).result()
        print(line, flush=True)
        failed |= not succeeded
    return int(failed)


def _row_of(root: Path, preset: Preset) -> tuple[str, bool]:
    """Return a dataset's line, and whether there are scores in it; what runs in the process of its own."""
    try:
        return row(root.name, score_dataset(root, preset)), True
    except ReconflowError as error:
        return f"{root.name[:11]:<12}  {error.code.value}: {error.message}", False


if __name__ == "__main__":
    sys.exit(main())
