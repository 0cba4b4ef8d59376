"""The model in a run: random weights through all stages, what is said of them, and both models one after the other."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reconflow import models, stages
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.datasets.writing import write_six_view
from reconflow.errors import GpuUnavailableError, QualityThresholdError, ReconflowError, WeightsMissingError
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.outputs.package import read_manifest, verify_package
from reconflow.outputs.previews import write_turntable
from reconflow.outputs.runs import RunLayout
from reconflow.pipeline import run_pipeline
from reconflow.quality.glb_reader import read_glb
from reconflow.reconviagen.model import RANDOM_NOTE, ReconvGenModel, chosen_views
from reconflow.rendering.shade import render_textured
from reconflow.request import ModelName, RunRequest, make_request

FACES = np.array(
    [
        [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
        [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
    ],
    np.int32,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A brick as a six-view folder of 96 px."""
    return write_brick(tmp_path_factory.mktemp("data") / "brick", 96)


def write_brick(root: Path, size: int) -> Path:
    """Write a six-view folder of a brick, every side of which has its own colour; pictures of so many pixels a side."""
    corners = np.array([[x, y, z] for x in (-0.2, 0.2) for y in (-0.12, 0.12) for z in (-0.15, 0.15)], np.float32)
    texture = np.random.default_rng(7).integers(40, 220, (4, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    side = np.arange(12) // 2
    centres = np.stack([(side % 4 + 0.5) / 4, 1 - (side // 4 + 0.5) / 4], axis=1)
    uvs = (centres[:, None] + np.array([[-0.05, -0.05], [0.05, -0.05], [0.0, 0.05]])).reshape(-1, 2)
    uv_faces = np.arange(36, dtype=np.int32).reshape(-1, 3)
    brick = TexturedMesh(TriangleMesh(corners, FACES), uvs.astype(np.float32), uv_faces, texture)
    cameras = six_axis_rig(math.radians(45), 1.0, (size, size))
    photos, depths = {}, {}
    for camera in cameras:
        render = render_textured(brick, camera)
        alpha = np.round(255 * render.coverage).astype(np.uint8)
        photos[camera.name] = np.dstack([np.round(255 * render.rgb_srgb).astype(np.uint8), alpha])
        depths[camera.name] = np.round(65535 * render.depth / render.depth.max()).astype(np.uint16)
    write_six_view(root, photos, depths, cameras)
    return root


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turntable of two pictures; nothing here is about it."""
    monkeypatch.setattr(stages, "write_turntable", partial(write_turntable, frames=2, size=64))


def request_for(dataset: Path, out: Path, **options: object) -> RunRequest:
    return make_request(
        dataset=str(dataset),
        out=str(out),
        **{
            "model": "reconviagen", "random_weights": "tiny", "preset": "draft", "structure_steps": 2,
            "latent_steps": 2, "texture_size": 128, "target_faces": 2000, "fov_deg": 45.0, **options,
        },
    )  # fmt: skip


@pytest.mark.usefixtures("few_pictures")
def test_a_run_with_random_weights_stores_everything_and_says_that_they_were_random(
    dataset: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with pytest.raises(QualityThresholdError) as caught:
        run_pipeline(
            request_for(dataset, tmp_path, target_faces=600), lambda step, total, message: told.append(message)
        )
    assert "were random" in caught.value.suggestion
    run_id = str(caught.value.details["run_id"])
    layout = RunLayout(tmp_path / "runs" / run_id, run_id, "reconviagen")
    assert 500 < len(read_glb(layout.glb).mesh.faces) <= 600
    facts = json.loads(layout.manifest.read_text("utf-8"))["facts"]
    assert facts["weights"] == {"reconviagen": "random tiny"}
    assert facts["options"]["random_weights"] == "tiny"
    assert facts["options"]["settings"]["structure_steps"] == 2
    assert facts["options"]["gaussian_engine"] == "auto"
    assert facts["engines"]["gaussians"] == "numba"
    assert facts["notes"][-1] == RANDOM_NOTE
    assert facts["licences"] == {"reconflow": "Apache-2.0"}
    page = layout.report.read_text("utf-8")
    assert "random_weights=tiny" in page
    assert "How the generated mesh lies" in page
    assert re.search(r"silhouette, root mean square</dt><dd>\d+\.\d\d px", page)
    for part in ("infer: sampling the structure", "infer: sampling the latent"):
        assert told.count(part) >= 3


@pytest.mark.usefixtures("few_pictures")
def test_a_refined_run_stores_everything_and_says_what_it_was_refined_from(dataset: Path, tmp_path: Path) -> None:
    told: list[str] = []
    request = request_for(dataset, tmp_path, refine="nvdiffrec", steps=12, resolution=96)
    with pytest.raises(QualityThresholdError):
        run_pipeline(request, lambda step, total, message: told.append(message), run_id="refined1")
    layout = RunLayout(tmp_path / "runs" / "refined1", "refined1", "reconviagen")
    manifest = verify_package(layout.root)
    names = {entry.path for entry in manifest.files}
    assert {f"reconviagen/{name}" for name in ("mesh.glb", "mesh.obj", "mesh.ply", "gaussians.ply")} <= names
    with zipfile.ZipFile(layout.archive) as archive:
        assert "reconviagen/gaussians.ply" in archive.namelist()
    assert manifest.colour_spaces["gaussians.ply"] == "sRGB"
    assert manifest.facts is not None
    assert manifest.facts.options["refine"] == "nvdiffrec"
    assert manifest.facts.options["settings"]["refinement"]["steps"] == 12
    assert "started from the generated mesh" in manifest.facts.notes[0]
    assert manifest.facts.notes[-1] == RANDOM_NOTE
    page = layout.report.read_text("utf-8")
    assert "started from the generated mesh" in page
    assert "How the fit went" in page
    assert told.count("infer: fitting the surface") >= 12


RUN = """
import json, sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from reconflow import stages
from reconflow.errors import QualityThresholdError
from reconflow.outputs.previews import write_turntable
from reconflow.nvdiffrec.options import Preset
from reconflow.pipeline import run_pipeline
from reconflow.reconviagen.options import _PRESETS
from tests.reconviagen.test_reconviagen_model import request_for
import torch
torch.set_num_threads(int(sys.argv[3]))
stages.write_turntable = partial(write_turntable, frames=2, size=64)
_PRESETS[Preset.DRAFT] |= {"gaussian_views": 4, "gaussian_size": 128, "visibility_views": 20}
with suppress(QualityThresholdError):  # what is below the thresholds is stored all the same
    run_pipeline(request_for(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[4])), run_id="threads1")
"""


def stored_with_threads(dataset: Path, folder: Path, **options: object) -> list[dict[str, str]]:
    """Run with one and with two threads at once, in processes of their own; returns checksums by file of each."""
    started = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        command = [sys.executable, "-c", RUN, str(dataset), str(folder / threads), threads, json.dumps(options)]
        environment = os.environ | dict.fromkeys(names, threads)
        root = Path(__file__).parents[2]
        started.append(subprocess.Popen(command, env=environment, cwd=root))
    assert [process.wait() for process in started] == [0, 0]
    manifests = [read_manifest(folder / threads / "runs" / "threads1") for threads in ("1", "2")]
    return [{entry.path: entry.sha256 for entry in found.files if not entry.varies} for found in manifests]


def test_runs_with_one_and_two_threads_store_the_same_files(tmp_path: Path) -> None:
    one, two = stored_with_threads(write_brick(tmp_path / "brick", 64), tmp_path, target_faces=300)
    assert {"reconviagen/mesh.glb", "reconviagen/gaussians.ply", "reconviagen/texture_kd.png"} <= set(one)
    assert one == two


@pytest.mark.slow
def test_refined_runs_with_one_and_two_threads_store_the_same_files(dataset: Path, tmp_path: Path) -> None:
    one, two = stored_with_threads(dataset, tmp_path, refine="nvdiffrec", steps=12, resolution=96)
    assert len(one) > 15
    assert one == two


def test_without_weights_a_run_ends_before_anything_is_computed_and_says_what_to_fetch(
    dataset: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    request = request_for(dataset, tmp_path, random_weights=None, weights=str(tmp_path / "nothing"))
    with pytest.raises(WeightsMissingError) as caught:
        run_pipeline(request, lambda step, total, message: told.append(message))
    assert "VGGT, tuned on objects (2 files, about 5.0 GB" in caught.value.message
    assert "Meta's VGGT licence" in caught.value.message
    assert "--accept-licence" in caught.value.suggestion
    assert not any(message.startswith("infer") for message in told)


def test_an_engine_that_cannot_be_used_is_said_before_anything_is_generated(dataset: Path, tmp_path: Path) -> None:
    told: list[str] = []
    request = request_for(dataset, tmp_path, gaussian_engine="gsplat", device="cpu")
    with pytest.raises(GpuUnavailableError, match="gsplat"):
        run_pipeline(request, lambda step, total, message: told.append(message))
    assert not any("sampling" in message for message in told)


def test_both_models_are_two_models_with_options_of_their_own() -> None:
    request = make_request(dataset="mug", model="both", steps=5, structure_steps=7, seed=3)
    assert request.models() == ("nvdiffrec", "reconviagen")
    assert request.fit_options().steps == 5
    assert request.generation_options().settings().structure_steps == 7
    assert {request.options(name).settings().seed for name in request.models()} == {3}
    assert set(models.MODELS) == {name.value for name in ModelName} - {"both"}


def test_presets_spend_more_and_more_and_are_overridden() -> None:
    draft, standard, high = (
        make_request(dataset="mug", preset=preset).generation_options().settings()
        for preset in ("draft", "standard", "high")
    )
    for name in ("structure_steps", "latent_steps", "gaussian_views", "visibility_views"):
        assert getattr(draft, name) < getattr(standard, name) < getattr(high, name)
    assert (standard.structure_steps, standard.latent_steps, standard.guidance) == (30, 12, 7.5)


def test_of_many_views_so_many_as_allowed_are_chosen_evenly() -> None:
    views: list[Any] = list(range(40))
    assert chosen_views(views, 40) == views
    assert chosen_views(views, 4) == [0, 10, 20, 30]
    assert len(set(chosen_views(views, 16))) == 16


def test_a_gpu_that_is_missing_is_an_error() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(GpuUnavailableError):
        ReconvGenModel().load("cuda")


def test_asking_the_model_for_its_version_loads_nothing_heavy() -> None:
    script = (
        "import sys; from reconflow.models import model_version\n"
        "print(model_version('reconviagen'), 'torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["4", "False"]


def test_an_unknown_kind_of_random_weights_is_refused() -> None:
    with pytest.raises(ReconflowError, match="random_weights"):
        make_request(dataset="mug", random_weights="huge")
