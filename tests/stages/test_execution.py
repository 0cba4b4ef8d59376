"""On which device and in which process a model runs: by rules that are stated, and never another one quietly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconflow.errors import (
    GpuUnavailableError,
    MemoryExhaustedError,
    ModelUnavailableError,
    ValidationFailedError,
)
from reconflow.execution import DEVICE_VARIABLE, check_device, choose_device, choose_gpu, choose_isolation
from reconflow.gpus import Gpu, visible_gpus
from reconflow.isolated_stage import child_environment
from reconflow.nvdiffrec.model import NvdiffrecModel
from reconflow.resources import GIB, Needs, check_gpu_memory
from reconflow.run_context import Isolation
from reconflow.stage_results import ModelResult, StageRecord

GPU = Gpu(0, "GPU-0", "H", "600", 24 * GIB, 10 * GIB)


class GpuModel(NvdiffrecModel):
    """Computes on both."""

    devices = ("cpu", "cuda")


@pytest.mark.parametrize(
    ("model", "set_up_for", "gpus", "chosen"),
    [
        (NvdiffrecModel(), "cuda", (GPU,), "cpu"),
        (GpuModel(), "cuda", (GPU,), "cuda"),
        (GpuModel(), "cuda", (), "cuda"),
        (GpuModel(), "cpu", (GPU,), "cpu"),
        (GpuModel(), None, (), "cpu"),
    ],
    ids=["no GPU version", "GPU worker", "GPU worker without its GPU", "CPU worker", "laptop"],
)
def test_auto_is_what_the_worker_was_set_up_for(
    monkeypatch: pytest.MonkeyPatch,
    model: NvdiffrecModel,
    set_up_for: str | None,
    gpus: tuple[Gpu, ...],
    chosen: str,
) -> None:
    if set_up_for is None:
        monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(DEVICE_VARIABLE, set_up_for)
    assert choose_device(model, "auto", gpus) == chosen


def test_what_was_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    assert choose_device(GpuModel(), "cpu", (GPU,)) == "cpu"
    assert choose_device(NvdiffrecModel(), "cuda", ()) == "cuda"


def test_a_worker_set_up_for_something_unknown_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "tpu")
    with pytest.raises(ValidationFailedError, match="RECONFLOW_DEVICE is 'tpu'"):
        choose_device(GpuModel(), "auto", ())


def test_the_cpu_needs_no_gpu() -> None:
    assert check_device(NvdiffrecModel(), "cpu", ()) == ()


def test_a_gpu_that_is_not_there_is_not_replaced() -> None:
    with pytest.raises(GpuUnavailableError, match="none is here"):
        check_device(GpuModel(), "cuda", ())


def test_a_worker_set_up_for_the_cpu_offers_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONFLOW_DEVICE", "cpu")
    with pytest.raises(GpuUnavailableError, match="set up for the device cpu"):
        check_device(GpuModel(), "cuda", (GPU,))


def test_a_model_without_an_engine_for_the_gpu_says_so() -> None:
    with pytest.raises(ModelUnavailableError, match="nvdiffrec computes on cpu in this version") as caught:
        check_device(NvdiffrecModel(), "cuda", (GPU,))
    assert "cpu" in caught.value.suggestion


def test_a_gpu_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONFLOW_DEVICE", "cuda")
    assert check_device(GpuModel(), "cuda", (GPU,)) == (GPU,)


def test_what_the_gpu_has_no_room_for_is_not_started() -> None:
    check_gpu_memory(Needs(0, 0, gpu_bytes=10 * GIB), GPU)
    check_gpu_memory(Needs(0, 0, gpu_bytes=99 * GIB), None)
    with pytest.raises(MemoryExhaustedError, match=r"12\.0 GiB of GPU memory and 10\.0 GiB"):
        check_gpu_memory(Needs(0, 0, gpu_bytes=12 * GIB), GPU)


def test_of_several_gpus_a_process_of_its_own_sees_the_freest_alone_and_that_one_is_checked() -> None:
    busy, free = replace(GPU, memory_free_bytes=GIB), replace(GPU, index=1, uuid="GPU-1", memory_free_bytes=9 * GIB)
    chosen = choose_gpu((busy, free), "process")
    assert chosen == free
    model = ModelResult(
        record=StageRecord(stage="load", seconds=1.0, cpu_seconds=1.0, peak_rss_bytes=1),
        name="reconviagen",
        version="1",
        device="cuda",
        needed_memory_bytes=1,
        available_memory_bytes=2,
        gpu=free.uuid,
    )
    assert visible_gpus((busy, free), child_environment(model)) == (free,)
    assert child_environment(model.model_copy(update={"device": "cpu", "gpu": None})) == {}


def test_in_a_process_that_is_there_already_the_first_gpu_is_used_and_checked() -> None:
    busy, free = replace(GPU, memory_free_bytes=GIB), replace(GPU, index=1, uuid="GPU-1", memory_free_bytes=9 * GIB)
    assert choose_gpu((busy, free), "none") == busy
    assert choose_gpu((), "none") is choose_gpu((), "process") is None


@pytest.mark.parametrize(
    ("told", "asked", "device", "chosen"),
    [
        (None, None, "cpu", "none"),
        (None, None, "cuda", "process"),
        (None, "process", "cpu", "process"),
        (None, "none", "cuda", "none"),
        ("none", "process", "cuda", "none"),
        ("process", None, "cpu", "process"),
    ],
)
def test_the_environment_decides_then_the_caller_then_the_device(
    told: str | None, asked: Isolation | None, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECONFLOW_ISOLATION", raising=False)
    if told is not None:
        monkeypatch.setenv("RECONFLOW_ISOLATION", told)
    assert choose_isolation(device, asked) == chosen


def test_another_word_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONFLOW_ISOLATION", "maybe")
    with pytest.raises(ValidationFailedError, match="maybe"):
        choose_isolation("cpu")
