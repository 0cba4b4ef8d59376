"""A fit that was interrupted anywhere and goes on from its last checkpoint ends byte for byte like one that was not."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.checkpoints import FileCheckpoint
from reconflow.nvdiffrec.model import NvdiffrecModel
from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset
from reconflow.reconstruction import Reconstruction
from tests.nvdiffrec.painted_objects import photographed, rig
from tests.nvdiffrec.test_model import kettle

SIZE = 64
FEW = NvdiffrecOptions(preset=Preset.DRAFT, steps=8, resolution=SIZE, texture_size=128, target_faces=1500)
SAVES = 5
"""The surface's start, its shape alone, and three levels with colours."""


class Killed(BaseException):
    """Stands for a process that is gone."""


class DyingCheckpoint(FileCheckpoint):
    """Saves a number of times, then the process is gone."""

    def __init__(self, path: Path, saves: int) -> None:
        super().__init__(path)
        self.saves = saves

    def save(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        super().save(arrays, facts)
        self.saves -= 1
        if self.saves == 0:
            raise Killed


def fitted(checkpoint: FileCheckpoint | None) -> Reconstruction:
    return NvdiffrecModel().reconstruct(*photographed(kettle(), rig(SIZE)), FEW, checkpoint=checkpoint)


@cache
def uninterrupted() -> Reconstruction:
    return fitted(None)


def expect_equal(first: Reconstruction, second: Reconstruction) -> None:
    assert first.statistics == second.statistics
    for name in ("uvs", "uv_faces", "base_colour_srgb"):
        assert np.array_equal(getattr(first.textured, name), getattr(second.textured, name)), name
    assert np.array_equal(first.textured.mesh.vertices, second.textured.mesh.vertices)
    assert np.array_equal(first.textured.mesh.faces, second.textured.mesh.faces)


@pytest.mark.parametrize("saves", range(1, SAVES + 1))
def test_a_fit_killed_after_any_round_ends_like_an_uninterrupted_one(saves: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(Killed):
        fitted(DyingCheckpoint(path, saves))
    resumed = FileCheckpoint(path)
    told: list[Path] = []
    resumed._on_saved = told.append
    expect_equal(fitted(resumed), uninterrupted())
    assert resumed.resumed
    assert len(told) == SAVES - saves


def test_a_fit_that_dies_again_and_again_gets_there(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    for _ in range(SAVES):
        with pytest.raises(Killed):
            fitted(DyingCheckpoint(path, 1))
    expect_equal(fitted(DyingCheckpoint(path, 1)), uninterrupted())


def test_keeping_checkpoints_changes_nothing(tmp_path: Path) -> None:
    checkpoint = FileCheckpoint(tmp_path / "checkpoint.npz")
    expect_equal(fitted(checkpoint), uninterrupted())
    assert not checkpoint.resumed
