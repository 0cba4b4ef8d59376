"""Whole runs on a real GPU: `make gpu` runs these tests, and those of the networks, on a machine that has one.

The networks are tiny and their weights random, so that no run's quality is enough and every one ends with that error,
after everything was stored.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._prefect_processes import ROOT, PrefectProcesses, submit, wait_for_end, wait_until
from flows.doctor import Needs, examine_gpus
from reconflow import pipeline
from reconflow.errors import Cancelled, ModelGpuOutOfMemoryError, QualityThresholdError
from reconflow.gpus import visible_gpus
from reconflow.outputs.package import verify_package
from reconflow.progress import OnProgress, ignore_progress
from reconflow.request import RunRequest
from reconflow.stage_results import GPU_FLUCTUATION_BYTES
from tests.flows.flow_objects import write_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here"),
]

SMALL: dict[str, Any] = {
    "preset": "draft", "steps": 12, "resolution": 96, "texture_size": 128, "target_faces": 1500,
    "random_weights": "tiny", "structure_steps": 4, "latent_steps": 4,
}  # fmt: skip
PATIENCE_S = 300


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-view folder of two boxes."""
    return write_dataset(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(autouse=True)
def memory_comes_back() -> Iterator[None]:
    """Nothing of a GPU's memory is missing after a test, but for what CUDA takes once for this process."""
    torch.zeros(1, device="cuda")
    before = free_bytes()
    yield
    wait_until(lambda: all(a + GPU_FLUCTUATION_BYTES >= b for a, b in zip(free_bytes(), before, strict=True)), 30)


def free_bytes() -> list[int]:
    return [gpu.memory_free_bytes for gpu in visible_gpus()]


def run(dataset: Path, out: Path, on_progress: OnProgress = ignore_progress, **options: Any) -> dict[str, Any]:
    """Do a run and return its `run.json`."""
    request = RunRequest(dataset=str(dataset), out=str(out), **{**SMALL, **options})
    with pytest.raises(QualityThresholdError):
        pipeline.run_pipeline(request, on_progress, run_id="abcd1234")
    facts: dict[str, Any] = json.loads((out / "runs" / "abcd1234" / "run.json").read_text("utf-8"))
    return facts


def infer_of(facts: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the record of a model's heavy stage."""
    (found,) = [record for record in facts["stages"] if (record["stage"], record["model"]) == ("infer", model)]
    return dict(found)


def test_the_doctor_finds_the_gpu_its_driver_and_its_memory() -> None:
    findings = examine_gpus(Needs(device="cuda", gpu_memory_gb=0.1))
    assert [finding.what for finding in findings if not finding.ok] == []
    assert any(visible_gpus()[0].name in finding.value for finding in findings)
    greedy = examine_gpus(Needs(device="cuda", gpu_memory_gb=1e6))
    assert {finding.code for finding in greedy if not finding.ok} == {"GPU_UNAVAILABLE"}


def test_a_model_computes_on_the_gpu_in_a_process_of_its_own_whose_memory_comes_back(
    boxes: Path, tmp_path: Path
) -> None:
    facts = run(boxes, tmp_path, model="reconviagen", device="cuda")
    record = infer_of(facts, "reconviagen")
    assert record["isolation"] == "process"
    assert record["peak_gpu_bytes"] > 0
    assert len(record["memory"]["gpu_free_before_bytes"]) == 1
    assert not [note for note in record["notes"] if "GPU memory" in note]
    manifest = verify_package(tmp_path / "runs" / "abcd1234")
    assert manifest.engines["device"] == "cuda"


def test_both_models_compute_side_by_side_one_on_the_gpu_and_one_on_the_cpu(boxes: Path, tmp_path: Path) -> None:
    facts = run(boxes, tmp_path, model="both", device="auto")
    fitted, generated = infer_of(facts, "nvdiffrec"), infer_of(facts, "reconviagen")
    assert (fitted["beside"], generated["beside"]) == (["reconviagen"], ["nvdiffrec"])
    assert fitted["peak_gpu_bytes"] == 0 < generated["peak_gpu_bytes"]


def test_the_gpu_makes_the_object_that_the_cpu_makes(boxes: Path, tmp_path: Path) -> None:
    found = []
    for device in ("cuda", "cpu"):
        run(boxes, tmp_path / device, model="reconviagen", device=device)
        stored = tmp_path / device / "runs" / "abcd1234" / "reconviagen" / "quality.json"
        found.append(json.loads(stored.read_text("utf-8")))
    there, here = found
    assert there["mesh"]["components"] == here["mesh"]["components"]
    assert there["mean"]["mask_iou"] == pytest.approx(here["mean"]["mask_iou"], abs=0.02)
    assert there["mean"]["psnr_db"] == pytest.approx(here["mean"]["psnr_db"], abs=0.5)


def test_a_cancelled_run_gives_the_gpu_back(boxes: Path, tmp_path: Path) -> None:
    started_s = 0.0

    def stop(_step: int, _total: int, message: str) -> None:
        nonlocal started_s
        if "sampling the structure" in message:
            started_s = time.monotonic()
            raise Cancelled("Enough.", suggestion="-")

    request = RunRequest(
        dataset=str(boxes), out=str(tmp_path), model="reconviagen", device="cuda", **{**SMALL, "structure_steps": 1000}
    )
    with pytest.raises(Cancelled):
        pipeline.run_pipeline(request, stop, run_id="abcd1234")
    assert started_s > 0
    assert time.monotonic() - started_s < PATIENCE_S / 10
    assert not list(tmp_path.rglob("*.part"))


def test_a_full_gpu_is_an_error_with_its_code_and_a_way_out(boxes: Path, tmp_path: Path) -> None:
    held = torch.empty(max(torch.cuda.mem_get_info()[0] - (64 << 20), 0), dtype=torch.uint8, device="cuda")
    request = RunRequest(dataset=str(boxes), out=str(tmp_path), model="reconviagen", device="cuda", **SMALL)
    try:
        with pytest.raises(ModelGpuOutOfMemoryError) as caught:
            pipeline.run_pipeline(request, run_id="abcd1234")
    finally:
        del held
        torch.cuda.empty_cache()
    assert "device cpu" in caught.value.suggestion


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectProcesses]:
    """A server with everything deployed, and a worker on every GPU."""
    folder = tmp_path_factory.mktemp("prefect")
    out = str(folder / "out")
    with PrefectProcesses(folder / "home") as processes:
        deploy = [sys.executable, "-m", "flows.cli", "deploy", "--device", "cuda", "--out", out]
        subprocess.run(deploy, cwd=ROOT, env=processes.environment, check=True, capture_output=True, timeout=PATIENCE_S)
        options = ("--device", "cuda", "--out", out, "--min-free-gpu-memory-gb", "1", "--min-free-disk-gb", "0.5")
        worker = processes.start("worker", "-m", "flows.cli", "worker", *options)
        log = processes.home / "worker.log"
        wait_until(
            lambda: worker.poll() is not None or log.read_text("utf-8").count("' started!") == len(visible_gpus()),
            PATIENCE_S,
        )
        assert worker.poll() is None, log.read_text("utf-8")
        yield processes


def test_there_is_one_worker_for_each_gpu_which_sees_that_one_alone(prefect: PrefectProcesses) -> None:
    seen = []
    for pid, command in prefect.alive().items():
        if "worker start" in command:
            variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            seen += [text.partition("=")[2] for text in variables if text.startswith("CUDA_VISIBLE_DEVICES=")]
    assert sorted(seen) == sorted(str(gpu.index) for gpu in visible_gpus())


def test_a_worker_s_run_computes_on_its_gpu(prefect: PrefectProcesses, boxes: Path, tmp_path: Path) -> None:
    with prefect.client() as client:
        deployment = client.read_deployment_by_name("reconstruct/reconviagen").id
        params = {"dataset": str(boxes), "out": str(tmp_path), "model": "reconviagen", "device": "cuda", **SMALL}
        ended = wait_for_end(client, submit(client, deployment, params).id, PATIENCE_S)
    assert ended.state is not None
    assert str(ended.state.message).startswith("QUALITY_THRESHOLD_FAILED"), ended.state.message
    (stored,) = tmp_path.glob("runs/*/run.json")
    assert infer_of(json.loads(stored.read_text("utf-8")), "reconviagen")["peak_gpu_bytes"] > 0


def test_a_confirmed_cancellation_ends_the_process_on_the_gpu(
    prefect: PrefectProcesses, boxes: Path, tmp_path: Path
) -> None:
    long = {**SMALL, "structure_steps": 1000, "latent_steps": 1000}
    with prefect.client() as client:
        deployment = client.read_deployment_by_name("reconstruct/reconviagen").id
        params = {"dataset": str(boxes), "out": str(tmp_path), "model": "reconviagen", "device": "cuda", **long}
        started = submit(client, deployment, params)
        wait_until(lambda: "sampling the structure" in prefect.progress_of(client, started.id), PATIENCE_S)
        for step in ((), ("--confirm",)):
            command = [sys.executable, "-m", "flows.cli", "cancel", str(started.id), *step]
            done = subprocess.run(
                command, cwd=ROOT, env=prefect.environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        ended = wait_for_end(client, started.id, PATIENCE_S)
        assert ended.state is not None
        assert ended.state.is_cancelled(), ended.state.message
        wait_until(lambda: not prefect.alive_of(started.id), 30)


def test_a_killed_run_leaves_the_gpu_free(prefect: PrefectProcesses, boxes: Path, tmp_path: Path) -> None:
    long = {**SMALL, "structure_steps": 1000, "latent_steps": 1000}
    with prefect.client() as client:
        deployment = client.read_deployment_by_name("reconstruct/reconviagen").id
        params = {"dataset": str(boxes), "out": str(tmp_path), "model": "reconviagen", "device": "cuda", **long}
        started = submit(client, deployment, params)
        wait_until(lambda: "sampling the structure" in prefect.progress_of(client, started.id), PATIENCE_S)
        for pid, command in prefect.alive_of(started.id).items():
            if "stage_child" not in command:
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not prefect.alive_of(started.id), 30)
