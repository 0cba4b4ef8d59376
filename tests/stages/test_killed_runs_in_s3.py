"""A run whose dataset and results lie in an object store: killed here and gone on with elsewhere, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reconflow.errors import InputError
from reconflow.outputs.package import RunStatus, verify_package
from reconflow.pipeline import opened, run_pipeline
from reconflow.request import RunRequest
from reconflow.run_context import RunRef, StageOutcomes
from reconflow.storage import open_store
from tests.flows.flow_objects import write_dataset
from tests.stages.test_killed_runs import ROOT, RUN_ID, finish, kill_after
from tests.support.s3_server import S3Server, running_s3_server


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    """An S3-speaking server over HTTP."""
    with running_s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that holds a dataset, found through the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "machine"))
    name, local = s3_server.new_bucket(), write_dataset(tmp_path / "boxes", 128)
    for path in local.rglob("*.*"):
        s3_server.put(name, f"data/boxes/{path.relative_to(local).as_posix()}", path.read_bytes())
    return name


@pytest.mark.slow
def test_another_machine_goes_on_with_what_the_first_one_had_stored(
    bucket: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, out = f"s3://{bucket}/data/boxes", f"s3://{bucket}/results"
    messages = finish(tmp_path / "boxes", tmp_path / "local")
    fitting = [number for number, message in enumerate(messages) if "fitting the surface" in message]
    assert kill_after(dataset, out, fitting[8], 0.0, "process")
    assert not s3_server.keys(bucket, "results/runs/")
    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "another-machine"))
    again = finish(dataset, out, "process")
    assert again[-1] == "cached: validate transforms"
    assert not s3_server.keys(bucket, "results/stages/")
    assert s3_server.unfinished_uploads(bucket) == 0
    fetched = verify_package(open_store(out).fetch_run(RUN_ID, tmp_path / "fetched"))
    stored = json.loads((tmp_path / "fetched" / RUN_ID / "run.json").read_text("utf-8"))
    assert stored["isolation"] == "process"
    assert stored["results"]["infer"]["record"]["notes"] == ["Continued from a checkpoint of an earlier attempt."]
    local = verify_package(tmp_path / "local" / "runs" / RUN_ID)
    kept = [{entry.path: entry.sha256 for entry in manifest.files if not entry.varies} for manifest in (fetched, local)]
    assert kept[0] == kept[1]


def test_why_a_run_failed_stands_in_the_store(bucket: str, s3_server: S3Server) -> None:
    s3_server.client().delete_object(Bucket=bucket, Key="data/boxes/multi_views/top.png")
    out = f"s3://{bucket}/results"
    with pytest.raises(InputError) as caught:
        run_pipeline(RunRequest(dataset=f"s3://{bucket}/data/boxes", out=out), run_id=RUN_ID)
    store = open_store(out)
    assert store.read_manifest(RUN_ID).status is RunStatus.FAILED
    assert json.loads(store.read_file(RUN_ID, "error.json"))["code"] == caught.value.code


HOLDER = """
import sys, time
from reconflow.run_lock import sole_attempt
from reconflow.storage import open_store
with sole_attempt(lambda: open_store(sys.argv[1]).open_workspace(sys.argv[2])) as workspace:
    (workspace.root / "mesh.glb").write_bytes(bytes(1000))
    print(workspace.root.parent, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def at_work(bucket: str) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], Path]]]:
    """Starts processes that are at work on a run, and gives their scratch folders."""
    with ExitStack() as stack:

        def start(run_id: str) -> tuple[subprocess.Popen[str], Path]:
            command = [sys.executable, "-c", HOLDER, f"s3://{bucket}/results", run_id]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, Path(process.stdout.readline().strip())

        yield start


def make_older(folder: Path, seconds: float) -> None:
    """Let nobody have touched a folder for so long."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - seconds,) * 2)


def test_the_next_run_removes_what_killed_ones_left_on_this_machine_and_nothing_of_those_at_work(
    bucket: str, at_work: Callable[[str], tuple[subprocess.Popen[str], Path]]
) -> None:
    started = {run_id: at_work(run_id) for run_id in ("killed00", "killed01", "working0")}
    for run_id in ("killed00", "killed01"):
        started[run_id][0].kill()
        started[run_id][0].wait()
    for run_id in ("killed00", "working0"):
        make_older(started[run_id][1], 2 * 3600)
    run = RunRef(run_id=RUN_ID, request=RunRequest(dataset="any", out=f"s3://{bucket}/other-results"))
    with opened(run, StageOutcomes()):
        assert {run_id for run_id, (_, folder) in started.items() if folder.exists()} == {"killed01", "working0"}
    assert (started["working0"][1] / "run" / "mesh.glb").is_file()
    assert not list(started["killed00"][1].parent.glob(".*"))


def test_an_attempt_that_begins_ends_the_uploads_of_the_one_before_and_of_no_other_run(
    bucket: str, s3_server: S3Server
) -> None:
    for run_id in (RUN_ID, "zzzz9999"):
        s3_server.client().create_multipart_upload(Bucket=bucket, Key=f"results/runs/{run_id}/nvdiffrec/mesh.glb")
    run = RunRef(run_id=RUN_ID, request=RunRequest(dataset="any", out=f"s3://{bucket}/results"))
    with opened(run, StageOutcomes()):
        assert s3_server.unfinished_uploads(bucket) == 1
