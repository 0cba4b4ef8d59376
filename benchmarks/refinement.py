"""What nvdiffrec's fit makes of a generated mesh that is nearly right, beside what it makes of a carved one.

    python -m benchmarks.refinement
    python -m benchmarks.refinement --dataset samples/lantern --bend 0.03 --preset standard

No weights are needed: the true surface of the dataset, smoothed, bent and stretched by a part of its radius, turned,
scaled and moved anywhere, stands for what the networks give. It is cleaned and aligned like that. Three rows follow:
the aligned start, painted; what the fit makes of it; and the same fit from the carved surface. Seconds are CPU seconds
of the fit and the painting; aligning is the same for the first two and stands in the line above.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks._extras import lacks
from benchmarks._geometry_metrics import read_true_mesh
from benchmarks.quality import DEFAULT_DATASET, compare_with_truth, read_novel, true_cameras_of
from reconflow.cameras.calibration import calibrate
from reconflow.datasets.dataset import Dataset
from reconflow.datasets.loading import load_dataset
from reconflow.geometry.closest import SurfaceLocator
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_from_vector
from reconflow.nvdiffrec.fitting import useful_settings
from reconflow.nvdiffrec.initial import smooth_surface
from reconflow.nvdiffrec.model import NvdiffrecModel
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset
from reconflow.outputs.glb import write_glb
from reconflow.outputs.ply import bake_vertex_colours
from reconflow.progress import ignore_progress
from reconflow.quality.measure import measure_quality
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.export import FinishSettings, Generated, gaussian_painter, place
from reconflow.reconviagen.refinement import refine
from reconflow.result_frame import choose_result_frame, move_reconstruction

Result = TypeVar("Result")
_FINISH = FinishSettings(simplify=0.0, visibility_views=0, gaussian_views=12, gaussian_size=512)
_MOVE = Similarity(0.4, rotation_from_vector(np.array([1.0, -0.4, 2.0])), np.array([0.05, -0.02, 0.03]))


def disturbed(truth: TriangleMesh, bend: float) -> TriangleMesh:
    """Smooth, bend and stretch a surface; distances by about `bend` radii."""
    smooth = smooth_surface(truth, 30.0).vertices.astype(np.float64)
    radius = float(np.linalg.norm(smooth - smooth.mean(axis=0), axis=1).max())
    waves = bend * radius * np.sin(5.0 * smooth[:, [1, 2, 0]] / radius + 1.0)
    stretch = np.array([1 + bend, 1.0, 1 - bend])
    return TriangleMesh((stretch * smooth + waves).astype(np.float32), truth.faces)


def as_generated(mesh: TriangleMesh, painted_as: Reconstruction) -> Generated:
    """Return a mesh as the decoders would give it, with the colours of the nearest place on a painted one."""
    colours = bake_vertex_colours(painted_as.textured).astype(np.float32) / 255
    like = painted_as.textured.mesh
    _, face, bary = SurfaceLocator(like, 0.05).project(mesh.vertices.astype(np.float64))
    own = np.einsum("ni,nic->nc", bary, colours[like.faces[face]]).astype(np.float32)
    moved, count = _MOVE.apply_to_mesh(mesh), len(mesh.vertices)
    ones = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    small, solid = np.full((count, 3), 0.01, np.float32), np.full(count, 0.95, np.float32)
    return Generated(moved, own, Gaussians(moved.vertices, small, ones, solid, own))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows of one dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=DEFAULT_DATASET, help="with ground_truth/")
    parser.add_argument("--preset", type=Preset, choices=list(Preset), default=Preset.DRAFT)
    parser.add_argument("--bend", type=float, default=0.02, help="how far the start is off, radii")
    args = parser.parse_args(argv)
    if lacks("trimesh"):
        return 0
    dataset = load_dataset(args.dataset)
    calibration, options = calibrate(dataset), NvdiffrecOptions(preset=args.preset)
    settings = useful_settings(options.settings(), dataset, None)
    carved_s, carved = _timed(lambda: NvdiffrecModel().reconstruct(dataset, calibration, options))
    truth = _in_world_of(carved, dataset, read_true_mesh(args.dataset / "ground_truth" / "mesh.ply"))
    generated = as_generated(disturbed(truth, args.bend), carved)
    placing_s, placed = _timed(lambda: place(generated, dataset, calibration, _FINISH, ignore_progress, {}))
    print(f"{args.dataset.name}, {args.preset}: a start {args.bend:.1%} off, aligned in {placing_s:.1f} CPU s")
    print(f"{'':<10}{'CPU s':>7}{'PSNR':>7}{'novel':>7}{'chamfer':>9}{'F 1%':>7}{'F 2%':>7}", flush=True)
    paint = gaussian_painter(generated.gaussians, placed.world_from_generator, _FINISH)
    for name, steps in (("start", 0), ("refined", settings.steps)):
        with_steps = settings.model_copy(update={"steps": steps})
        spent_s, result = _timed(partial(refine, placed, dataset, calibration, with_steps, paint))
        print(_row(name, spent_s, result, args.dataset, dataset), flush=True)
    print(_row("carved", carved_s, carved, args.dataset, dataset), flush=True)
    return 0


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _in_world_of(carved: Reconstruction, dataset: Dataset, truth: TriangleMesh) -> TriangleMesh:
    """Move the true mesh, which is in the frame of results, to the world of the calibrated cameras."""
    frame = choose_result_frame(
        carved.textured.mesh, cameras_given=dataset.cameras is not None, world_up=dataset.world_up
    )
    return frame.similarity.inverse().apply_to_mesh(truth)


def _row(name: str, spent_s: float, result: Reconstruction, root: Path, dataset: Dataset) -> str:
    frame = choose_result_frame(
        result.textured.mesh, cameras_given=dataset.cameras is not None, world_up=dataset.world_up
    )
    moved, novel = move_reconstruction(result, frame), read_novel(root)
    with tempfile.TemporaryDirectory() as folder:
        glb = Path(folder) / "mesh.glb"
        write_glb(moved.textured, glb)
        cameras = (*true_cameras_of(root, dataset), *(novel.cameras or () if novel else ()))
        shape = compare_with_truth(root, glb, cameras)
        inputs = measure_quality(glb, moved.cameras, dataset, {}).mean.psnr_db
        unseen = measure_quality(glb, novel.cameras or (), novel).mean.psnr_db if novel else math.nan
    assert shape is not None
    return (
        f"{name:<10}{spent_s:>7.1f}{inputs:>7.2f}{unseen:>7.2f}{shape.chamfer:>9.5f}{shape.fscore_1pct:>7.4f}"
        f"{shape.fscore_2pct:>7.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
