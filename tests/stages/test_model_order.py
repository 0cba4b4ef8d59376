"""When a run's models compute side by side, that they really do, and that what ends one ends the other."""

from __future__ import annotations

import json
import threading
import time
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reconflow import isolated_stage, model_order, models, pipeline, stages
from reconflow.child_process import run_in_child
from reconflow.errors import Cancelled, ErrorCode, GpuUnavailableError, QualityThresholdError
from reconflow.execution import DEVICE_VARIABLE, ISOLATION_VARIABLE, choose_gpu
from reconflow.gpus import Gpu
from reconflow.model_order import heeding, place_side_by_side, run_side_by_side
from reconflow.outputs.package import read_manifest, verify_package
from reconflow.progress import OnProgress, ignore_progress
from reconflow.request import Device, RunRequest
from reconflow.resources import GIB, Needs
from reconflow.run_context import RunRef
from reconflow.stage_results import DatasetResult
from tests.flows.flow_objects import write_dataset

ROOMY = Gpu(0, "GPU-0", "H", "600", 80 * GIB, 70 * GIB)
SMALL = Gpu(1, "GPU-1", "H", "600", 24 * GIB, 20 * GIB)


class OnGpus:
    """A model that computes on both kinds of device."""

    devices = ("cpu", "cuda")


class OnCpu:
    """A model that computes on the CPU alone."""

    devices = ("cpu",)


def asking(model: str = "both", device: str = "auto") -> RunRef:
    """Return a run on a worker."""
    return RunRef(run_id="abcd1234", request=RunRequest(dataset="d", model=model, device=device))


@pytest.fixture
def gpu_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was set up for GPUs."""
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    monkeypatch.delenv(ISOLATION_VARIABLE, raising=False)


def placed(run: RunRef, *gpus: Gpu, memory_bytes: int = GIB, available_bytes: int = 16 * GIB) -> RunRef:
    """Place a run's models where there are these GPUs; reconviagen needs the most of a GPU."""

    def needs(name: str, device: Device) -> Needs:
        return Needs(memory_bytes, 0, gpu_bytes=(12 if name == "reconviagen" else 4) * GIB * (device == "cuda"))

    return place_side_by_side(run, needs, gpus, available_bytes)


def test_one_model_on_the_gpu_and_one_on_the_cpu_compute_side_by_side(gpu_worker: None) -> None:
    run = placed(asking(), SMALL, ROOMY)
    assert (run.side_by_side, run.isolation, run.gpus) == (True, "process", {"reconviagen": ROOMY.uuid})


def test_two_models_on_gpus_get_one_each_and_the_hungrier_the_roomier(
    gpu_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "make_model", lambda _name: OnGpus())
    run = placed(asking(), SMALL, ROOMY)
    assert run.side_by_side
    assert run.gpus == {"reconviagen": ROOMY.uuid, "nvdiffrec": SMALL.uuid}
    assert choose_gpu((ROOMY, SMALL), "process", run.gpus["nvdiffrec"]) == SMALL


def test_models_that_would_share_a_device_take_turns(gpu_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = asking(device="cpu")
    assert placed(cpu, ROOMY, SMALL) is cpu
    without = asking()
    assert placed(without) is without
    monkeypatch.setattr(models, "make_model", lambda _name: OnGpus())
    one_gpu = asking()
    assert placed(one_gpu, ROOMY) is one_gpu
    monkeypatch.setattr(models, "make_model", lambda _name: OnCpu())
    no_gpu_versions = asking()
    assert placed(no_gpu_versions, ROOMY, SMALL) is no_gpu_versions


def test_models_take_turns_where_memory_holds_one_of_them(gpu_worker: None) -> None:
    run = asking()
    assert placed(run, ROOMY, memory_bytes=9 * GIB) is run
    assert placed(run, ROOMY, memory_bytes=8 * GIB).side_by_side


def test_models_take_turns_on_the_roomier_gpu_where_the_other_one_is_too_small(
    gpu_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "make_model", lambda _name: OnGpus())
    run = asking()
    assert placed(run, ROOMY, replace(SMALL, memory_free_bytes=3 * GIB)) is run
    assert placed(run, ROOMY, replace(SMALL, memory_free_bytes=4 * GIB)).side_by_side


def test_a_driver_that_does_not_answer_stops_no_model_that_needs_no_gpu(
    gpu_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> tuple[Gpu, ...]:
        raise GpuUnavailableError("The driver does not answer.", suggestion="-")

    monkeypatch.setattr(model_order, "visible_gpus", fail)
    run = asking()
    assert place_side_by_side(run, lambda _name, _device: Needs(0, 0)) is run


def test_models_that_must_not_have_processes_take_turns(gpu_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISOLATION_VARIABLE, "none")
    run = asking()
    assert placed(run, ROOMY) is run


def test_a_single_model_is_never_placed(gpu_worker: None) -> None:
    run = asking("reconviagen")
    assert placed(run, ROOMY, SMALL) is run


def test_a_gpu_that_has_gone_since_is_not_waited_for() -> None:
    assert choose_gpu((SMALL, replace(ROOMY, uuid="GPU-9")), "process", "GPU-0") == replace(ROOMY, uuid="GPU-9")


def test_all_models_are_under_way_at_once_with_the_callers_context() -> None:
    said: ContextVar[str] = ContextVar("said")
    said.set("hello")
    meeting, heard = threading.Barrier(2, timeout=20), []

    def run_one(name: str) -> None:
        meeting.wait()
        heard.append((name, said.get()))

    run_side_by_side(("one", "two"), run_one)
    assert sorted(heard) == [("one", "hello"), ("two", "hello")]
    assert heeding(ignore_progress) is ignore_progress  # nothing is left behind in the caller's context


def test_what_ends_one_model_ends_the_others_at_their_next_step() -> None:
    at_work, ended = threading.Event(), []

    def run_one(name: str) -> None:
        if name == "one":
            at_work.wait(20)
            raise Cancelled("Enough.", suggestion="-")
        report = heeding(ignore_progress)
        try:
            for step in range(2000):
                report(step, 2000, "working")
                at_work.set()
                time.sleep(0.01)
        except Cancelled:
            ended.append(name)
            raise

    with pytest.raises(Cancelled, match=r"Enough\."):
        run_side_by_side(("one", "two"), run_one)
    assert ended == ["two"]


def test_an_interruption_before_all_models_have_begun_ends_those_that_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(model_order.ThreadPoolExecutor):
        """Is told to stop after one of its jobs."""

        def submit(self, *arguments: Any) -> Any:
            if arguments[-1] == "two":
                raise KeyboardInterrupt
            return super().submit(*arguments)

    ended = []

    def run_one(name: str) -> None:
        report = heeding(ignore_progress)
        try:
            for step in range(2000):
                report(step, 2000, "working")
                time.sleep(0.01)
        except Cancelled:
            ended.append(name)
            raise

    monkeypatch.setattr(model_order, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(("one", "two"), run_one)
    assert ended == ["one"]


def test_models_are_placed_by_what_is_free_when_they_begin(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def place(run: RunRef, _dataset: DatasetResult) -> RunRef:
        heard.append("placed")
        raise Cancelled("Enough.", suggestion="-")

    monkeypatch.setattr(pipeline, "place_models", place)
    with pytest.raises(Cancelled):
        pipeline.run_pipeline(tiny(boxes, tmp_path), lambda _step, _total, message: heard.append(message.split(":")[0]))
    assert list(dict.fromkeys(heard)) == ["validate", "transforms", "placed"]


@pytest.fixture
def small_turntable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures instead of thirty-six."""
    monkeypatch.setattr(stages, "write_turntable", partial(stages.write_turntable, frames=2, size=64))


@pytest.fixture
def side_by_side(small_turntable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which both models may compute at once; two on the CPU may not otherwise."""

    def place(run: RunRef, _dataset: DatasetResult) -> RunRef:
        return run.model_copy(update={"side_by_side": True, "isolation": "process"})

    monkeypatch.setattr(pipeline, "place_models", place)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-view folder of two boxes."""
    return write_dataset(tmp_path_factory.mktemp("data") / "boxes")


def tiny(dataset: Path, out: Path) -> RunRequest:
    """Both models, as small as they can be."""
    return RunRequest(
        dataset=str(dataset), out=str(out), model="both", preset="draft", steps=12, resolution=96, texture_size=128,
        target_faces=1500, random_weights="tiny",
    )  # fmt: skip


def run_both(dataset: Path, out: Path, on_progress: OnProgress = ignore_progress) -> Path:
    """Do the run, of whose models the one with random weights cannot be good; return its folder."""
    with pytest.raises(QualityThresholdError):
        pipeline.run_pipeline(tiny(dataset, out), on_progress, run_id="abcd1234")
    return out / "runs" / "abcd1234"


def test_both_models_compute_at_once_in_processes_of_their_own(
    side_by_side: None, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, heard = threading.Barrier(2, timeout=120.0), []

    def start(*arguments: Any) -> dict[str, Any]:
        meeting.wait()  # neither gets any further alone
        return run_in_child(*arguments)

    monkeypatch.setattr(isolated_stage, "run_in_child", start)
    run = run_both(boxes, tmp_path, lambda step, total, message: heard.append((step / total, message.split(":")[0])))
    assert [fraction for fraction, _ in heard] == sorted(fraction for fraction, _ in heard)
    names = ("nvdiffrec", "reconviagen")
    assert {f"{name} infer" for name in names} <= {work for _, work in heard}
    stored = json.loads((run / "run.json").read_text("utf-8"))
    inferred = {found["model"]: found for found in stored["stages"] if found["stage"] == "infer"}
    assert {name: found["beside"] for name, found in inferred.items()} == {names[0]: [names[1]], names[1]: [names[0]]}
    assert stored["isolation"] == "process"
    assert {f"{name}/mesh.glb" for name in names} <= {entry.path for entry in verify_package(run).files}
    assert not (tmp_path / ".work").exists()


@pytest.mark.slow
def test_side_by_side_and_in_turn_give_the_same_files(
    small_turntable: None, boxes: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    in_turn = run_both(boxes, tmp_path / "turn")
    request.getfixturevalue("side_by_side")
    at_once = run_both(boxes, tmp_path / "once")
    kept = [
        {entry.path: entry.sha256 for entry in read_manifest(run).files if not entry.varies}
        for run in (in_turn, at_once)
    ]
    assert len(kept[0]) > 20
    assert kept[0] == kept[1]


def test_a_cancelled_run_ends_both_models_processes(side_by_side: None, boxes: Path, tmp_path: Path) -> None:
    begun: set[str] = set()

    def stop(step: int, total: int, message: str) -> None:
        begun.add(message.split(":")[0])
        if {"nvdiffrec infer", "reconviagen infer"} <= begun:
            raise Cancelled("Enough.", suggestion="-")

    with pytest.raises(Cancelled) as caught:
        pipeline.run_pipeline(tiny(boxes, tmp_path), stop, run_id="abcd1234")
    assert caught.value.code is ErrorCode.CANCELLED
    assert not children_of_this_process()
    assert not list(tmp_path.rglob("*.part"))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("model")] == []


def children_of_this_process() -> list[str]:
    """Return the command lines of this process's children that compute stages."""
    own = str(threading.main_thread().native_id)
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rpartition(")")[2].split()[1]
            command = status.with_name("cmdline").read_text()
        except OSError:
            continue
        if parent == own and "stage_child" in command:
            found.append(command)
    return found
