"""The report in a real browser, from `file://`: the 3D view starts, stands upright and is not mirrored."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reconflow.outputs.glb import write_glb
from reconflow.outputs.report import write_report
from reconflow.quality.glb_reader import read_glb
from tests.outputs.finished_run import RIG, report_data
from tests.outputs.objects import SIDE_COLOURS, labelled_box
from tests.quality.test_measure import dataset_of

WINDOW = (1000, 620)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"),
    *("--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000"),
]


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(
        (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    box = labelled_box(2)
    write_glb(box, folder / "mesh.glb")
    data = report_data(read_glb(folder / "mesh.glb"), dataset_of(box, RIG), folder / "mesh.glb")
    write_report(folder / "report.html", replace(data, turntable=b""))
    return folder / "report.html"


def screenshot(browser: str, url: str, folder: Path) -> np.ndarray:
    size = f"--window-size={WINDOW[0]},{WINDOW[1]}"
    profile, picture = f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'shot.png'}"
    subprocess.run([browser, *FLAGS, size, profile, picture, url], capture_output=True, check=True, timeout=120)
    with Image.open(folder / "shot.png") as shot:
        return np.asarray(shot.convert("RGB")).astype(int)[:540, :640]


def pixels_of(shot: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(N, 2) x, y of the pixels within a few levels of a colour."""
    return np.argwhere(np.abs(shot - colour).max(axis=-1) <= 6)[:, ::-1]


@pytest.mark.slow
@pytest.mark.parametrize("view", ["front", "right", "top"])
def test_the_viewer_shows_a_side_as_its_camera_sees_it(browser: str, report: Path, view: str, tmp_path: Path) -> None:
    shot = screenshot(browser, f"{report.as_uri()}#view={view}", tmp_path)
    side, mark = pixels_of(shot, SIDE_COLOURS[view]), pixels_of(shot, (20, 20, 24))
    assert len(side) > 5000
    others = [len(pixels_of(shot, colour)) for name, colour in SIDE_COLOURS.items() if name != view]
    assert len(side) > 5 * max(others)
    middle = (side.min(axis=0) + side.max(axis=0)) / 2
    assert mark.mean(axis=0)[0] < middle[0] - 5, "the dark corner belongs to the left"
    assert mark.mean(axis=0)[1] > middle[1] + 5, "the dark corner belongs to the bottom"
