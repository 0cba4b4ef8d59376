"""What can be known of a GPU without one: tensors are where they are needed, and half precision goes through.

The pretence of a device lasts as long as its process, so each part is a run of pytest of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_inference import FEW
from torch import Tensor

from reconflow.reconviagen.inference import encode_views, generate
from reconflow.reconviagen.random_networks import IMAGE_SIZE, tiny_networks
from reconflow.reconviagen.vggt_aggregator import Aggregator

HERE = Path(__file__).resolve().parent


def run_on_pretended_gpu(*arguments: str) -> str:
    """Run tests in a process that has a pretended GPU; return what pytest said."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pretend-gpu", *arguments]
    finished = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # so tiny tensors are no work for two
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    return finished.stdout


def test_a_generation_keeps_its_tensors_on_its_device() -> None:
    assert "4 passed" in run_on_pretended_gpu(str(HERE / "on_pretended_gpu.py"))


@pytest.mark.slow
def test_every_golden_for_gpus_is_met_with_its_tensors_on_another_device(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("goldens")
    folder = request.config.getoption("--goldens")
    said = run_on_pretended_gpu(str(HERE), "-m", "gpu", *([] if folder is None else ["--goldens", str(folder)]))
    assert " passed" in said
    assert "failed" not in said


def test_the_views_are_read_in_bfloat16_as_on_a_gpu_and_come_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = tiny_networks(0)
    images: Tensor = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    full = encode_views(images, networks)
    monkeypatch.setattr(
        Aggregator, "_mixed_precision", lambda _self, _device: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    mixed = encode_views(images, networks)
    assert mixed.structure.dtype == torch.float32
    assert not torch.equal(mixed.structure, full.structure)
    torch.testing.assert_close(mixed.structure, full.structure, atol=0.05, rtol=0.02)
    assert generate(images, networks, FEW).voxels > 0
