"""Errors are data as well as exceptions: they cross process borders and JSON unharmed."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from reconflow.errors import ErrorCode, InvalidFileCountError, ReconflowError
from reconflow.failures import as_known_error


def test_an_error_survives_pickling_with_all_it_says() -> None:
    error = InvalidFileCountError("5 views, 6 are needed.", suggestion="Add one.", found=5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InvalidFileCountError
    assert copy.to_dict() == error.to_dict()
    assert str(copy) == "5 views, 6 are needed."


def test_an_error_becomes_json_with_its_code() -> None:
    error = ReconflowError("Something.", suggestion="Try again.", number=1)
    assert json.loads(json.dumps(error.to_dict()))["code"] == ErrorCode.UNKNOWN_ERROR


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    ],
)
def test_a_full_gpu_has_its_code_wherever_cuda_says_so(error: RuntimeError) -> None:
    known = as_known_error(error)
    assert known.code == ErrorCode.MODEL_VRAM_OOM
    assert "device cpu" in known.suggestion
    assert as_known_error(RuntimeError("CUDA error: an illegal memory access")).code == ErrorCode.UNKNOWN_ERROR
