"""A run whose dataset and results lie in an object store: killed here and gone on with elsewhere, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconflow.errors import InputError
from reconflow.outputs.package import RunStatus, verify_package
from reconflow.pipeline import run_pipeline
from reconflow.request import RunRequest
from reconflow.storage import open_store
from tests.flows.flow_objects import write_dataset
from tests.stages.test_killed_runs import RUN_ID, finish, kill_after
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
