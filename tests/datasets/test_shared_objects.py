"""Real and rendered datasets load, when they are at hand."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.datasets.dataset import MaskSource
from reconflow.datasets.loading import load_dataset

SHARED = Path(__file__).parents[2] / "../shared/datasets"


def load(name: str):  # type: ignore[no-untyped-def]
    if not (SHARED / name).is_dir():
        pytest.skip(f"the evaluation dataset {name} is not here")
    return load_dataset(SHARED / name)


@pytest.mark.parametrize("name", ["spot", "avocado"])
def test_rendered_objects_load_without_warnings(name: str) -> None:
    dataset = load(name)
    assert dataset.warnings == ()
    assert {view.mask_source for view in dataset.views} == {MaskSource.DEPTH}
    if name == "spot":
        for camera, true in zip(dataset.cameras, six_axis_rig(0.85, 3.0, (512, 512)), strict=True):
            np.testing.assert_allclose(camera.cam_from_world, true.cam_from_world, atol=1e-9)
            assert camera.focal_px == pytest.approx(true.focal_px)
    else:
        assert dataset.cameras is None


def test_the_shoe_loads_in_seconds_and_its_specks_are_left_out() -> None:
    start = time.process_time()
    dataset = load("shoe")
    assert time.process_time() - start < 6
    assert [view.name for view in dataset.views] == list(VIEW_NAMES)
    assert [view.image_hw for view in dataset.views] == [(2048, 2048)] * 6
    stray = [warning.split(": ")[0].split(", ") for warning in dataset.warnings if "stray" in warning]
    assert len({view for views in stray for view in views}) == 3
    assert all(((view.alpha > 0) & (view.alpha < 1)).any() for view in dataset.views)
