"""What is told of the machine's GPUs, and which of them a process may use."""

import pynvml
import pytest

from reconflow import gpus
from reconflow.errors import GpuUnavailableError
from reconflow.gpus import Gpu, list_gpus, visible_gpus
from reconflow.isolated_stage import await_free
from reconflow.stage_results import MemoryRecord

GIB = 1 << 30
THREE = tuple(Gpu(k, f"GPU-{k}{k}{k}-abc", "H", "600", 24 * GIB, 20 * GIB) for k in range(3))


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [(None, [0, 1, 2]), ("", []), ("-1", []), ("2,0", [2, 0]), ("1,7,0", [1]), ("GPU-222", [2]), ("GPU-", [])],
)
def test_the_environment_decides_which_gpus_a_process_sees(chosen: str | None, indices: list[int]) -> None:
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert [gpu.index for gpu in visible_gpus(THREE, environment)] == indices


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(gpus.pynvml, "nvmlInit", absent)
    assert list_gpus() == ()


def test_a_driver_that_does_not_answer_is_an_error_and_not_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(gpus.pynvml, "nvmlInit", broken)
    with pytest.raises(GpuUnavailableError, match="does not answer"):
        list_gpus()


def test_after_a_stage_it_is_awaited_that_the_driver_gives_the_memory_back() -> None:
    readings = iter([(20 * GIB, 9 * GIB), (20 * GIB, 19 * GIB), (20 * GIB, 20 * GIB - 1), (0, 0)])
    assert await_free((20 * GIB, 20 * GIB), lambda: next(readings)) == (20 * GIB, 20 * GIB - 1)
    assert await_free((20 * GIB,), lambda: (8 * GIB,), patience_s=0.2) == (8 * GIB,)
    assert await_free((), lambda: ()) == ()


def test_memory_that_is_missing_on_one_gpu_is_not_made_up_for_by_another() -> None:
    memory = MemoryRecord(
        rss_before_bytes=0,
        rss_after_bytes=0,
        gpu_free_before_bytes=(20 * GIB, 4 * GIB, 5 * GIB),
        gpu_free_after_bytes=(12 * GIB, 20 * GIB, 5 * GIB - 1000),
    )
    assert memory.gpu_missing_bytes == 8 * GIB


@pytest.mark.gpu
def test_a_real_gpu_has_a_name_and_memory() -> None:
    if not list_gpus():
        pytest.skip("this machine has no GPU")
    gpu = list_gpus()[0]
    assert gpu.name
    assert 0 < gpu.memory_free_bytes <= gpu.memory_total_bytes
