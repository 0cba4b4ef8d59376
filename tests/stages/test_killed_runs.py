"""Runs of the real model that are killed at any moment, and the attempts that follow: the same files in the end."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconflow.outputs.package import RunStatus, verify_package
from reconflow.resources import MIB
from tests.flows.flow_objects import write_dataset

ROOT = Path(__file__).resolve().parents[2]
RUN_ID = "abcd1234"
ATTEMPT = """
import sys
from functools import partial
from reconflow import pipeline, stages
from reconflow.request import RunRequest
stages.write_turntable = partial(stages.write_turntable, frames=2, size=64)
request = RunRequest(
    dataset=sys.argv[1], out=sys.argv[2], preset="draft", steps=12, resolution=96, texture_size=128, target_faces=1500
)
run_id = sys.argv[3]
said = set()

def say(*report):
    if report not in said:  # a stage in a process of its own says it again while it is silent
        print(report[0], report[2], flush=True)
    said.add(report)

summary = pipeline.run_pipeline(request, say, run_id=run_id)
print("cached:", *summary.cached_stages)
"""


def start_attempt(dataset: Path | str, out: Path | str, isolation: str) -> subprocess.Popen[str]:
    """Start a process that does the whole run and prints every message of its progress."""
    return subprocess.Popen(
        [sys.executable, "-c", ATTEMPT, str(dataset), str(out), RUN_ID],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "RECONFLOW_ISOLATION": isolation},
    )


def finish(dataset: Path | str, out: Path | str, isolation: str = "none") -> list[str]:
    """Do the run to its end; return its messages."""
    with start_attempt(dataset, out, isolation) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    return lines


def kill_after(dataset: Path | str, out: Path | str, lines: int, delay_s: float, isolation: str) -> bool:
    """Kill an attempt some time after its n-th message; False when it had come to its end."""
    with start_attempt(dataset, out, isolation) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
    return process.returncode != 0


def hashes(out: Path) -> dict[str, str]:
    """Return what has to be equal in equal runs, of a run that is whole."""
    manifest = verify_package(out / "runs" / RUN_ID)
    assert manifest.status is RunStatus.COMPLETED
    assert not list(out.rglob("*.part"))
    assert not (out / ".work").exists()
    assert not list((out / ".stages").rglob("result.json"))
    return {entry.path: entry.sha256 for entry in manifest.files if not entry.varies and not entry.path.endswith("zip")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-view folder of the boxes, 128 px."""
    return write_dataset(tmp_path_factory.mktemp("data") / "boxes", 128)


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """The messages and the files of a run that nobody kills."""
    out = tmp_path_factory.mktemp("whole")
    return finish(dataset, out), hashes(out)


@pytest.mark.slow
def test_a_fit_killed_in_the_middle_goes_on_and_ends_with_the_same_files(
    dataset: Path, whole: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    messages, files = whole
    fitting = [number for number, message in enumerate(messages) if "fitting the surface" in message]
    assert kill_after(dataset, tmp_path, fitting[8], 0.0, "none")
    again = finish(dataset, tmp_path)
    assert again[-1] == "cached: validate transforms"
    assert 0 < sum("fitting the surface" in message for message in again) < len(fitting)
    assert hashes(tmp_path) == files


def test_a_run_in_a_process_of_its_own_makes_the_same_files_and_gives_its_memory_back(
    dataset: Path, whole: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    finish(dataset, tmp_path, "process")
    assert hashes(tmp_path) == whole[1]
    run = json.loads((tmp_path / "runs" / RUN_ID / "run.json").read_text("utf-8"))
    record = run["results"]["infer"]["record"]
    kept = record["memory"]["rss_after_bytes"] - record["memory"]["rss_before_bytes"]
    assert kept < 32 * MIB < record["peak_rss_bytes"]
    assert record["notes"] == []


def test_a_run_in_a_process_of_its_own_goes_on_from_the_others_checkpoint(
    dataset: Path, whole: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    messages, files = whole
    fitting = [number for number, message in enumerate(messages) if "fitting the surface" in message]
    assert kill_after(dataset, tmp_path, fitting[8], 0.0, "process")
    again = finish(dataset, tmp_path, "process")
    assert 0 < sum("fitting the surface" in message for message in again) < len(fitting)
    assert hashes(tmp_path) == files


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_run_killed_again_and_again_at_random_moments_ends_with_the_same_files(
    isolation: str, dataset: Path, whole: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    messages, files = whole
    chance = random.Random(7)
    kills = sum(
        kill_after(dataset, tmp_path, chance.randrange(len(messages)), chance.uniform(0, 0.3), isolation)
        for _ in range(8)
    )
    finish(dataset, tmp_path, isolation)
    assert hashes(tmp_path) == files
    assert kills >= 2
