"""A store that loses a third of all requests: every publish completes or says why, and nothing is half-published."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_runs import publish_run, write_run, written

from reconflow.errors import JobNotFoundError, JobNotReadyError, StorageUnreachableError
from reconflow.outputs.package import verify_package
from reconflow.storage import open_store
from reconflow.storage.transfer import PART_BYTES
from tests.support.faulty_proxy import Fault, FaultyProxy, running_faulty_proxy
from tests.support.s3_server import S3Server

RUN = "abcd1234"
LARGE = {
    "nvdiffrec/mesh.glb": hashlib.shake_128(b"mesh").digest(2 * PART_BYTES + 12345),
    **{f"nvdiffrec/previews/textured_{number}.png": bytes([number]) * 3000 for number in range(12)},
}


@pytest.fixture
def proxy(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with running_faulty_proxy(FaultyProxy(s3_server.endpoint_url)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("RECONFLOW_STORAGE_TIMEOUT_S", "2")
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff._MAX_BACKOFF", 0.2)
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff._BASE", 1)
        yield proxy


@pytest.mark.parametrize("seed", range(2))
def test_a_publish_through_faults_completes_or_fails_with_its_code(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, tmp_path: Path, seed: int
) -> None:
    proxy._random.seed(seed)
    store = open_store(f"s3://{bucket}/results")
    texts = ""
    try:
        publish_run(store, RUN, LARGE)
    except StorageUnreachableError as error:
        texts = error.message + error.suggestion
    published = not texts
    assert "127.0.0.1" not in texts
    assert proxy.spoiled > 3
    proxy.rate = 0.0
    if published:
        verify_package(store.fetch_run(RUN, tmp_path / "back"))
    else:
        with pytest.raises((JobNotReadyError, JobNotFoundError)):
            store.read_manifest(RUN)
    store.discard_unfinished(RUN)
    assert s3_server.unfinished_uploads(bucket) == 0


def test_reading_through_faults_gives_the_right_bytes(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    store = open_store(f"s3://{bucket}/results")
    proxy.rate = 0.0
    publish_run(store, RUN, LARGE)
    proxy.rate = 0.3
    verify_package(store.fetch_run(RUN, tmp_path / "back"))
    assert store.run_ids() == [RUN]
    store.save_stage("infer", "key", {"x": 1}, written(tmp_path / "in", state=b"state" * 1000))
    found = store.find_stage("infer", "key", {"state": tmp_path / "state"})
    assert found is not None
    assert (tmp_path / "state").read_bytes() == b"state" * 1000
    assert proxy.spoiled > 3


@pytest.mark.parametrize("fault", list(Fault))
def test_a_store_that_never_answers_rightly_is_unreachable_and_shows_nothing(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("RECONFLOW_STORAGE_TIMEOUT_S", "0.3")
    proxy.faults, proxy.rate, proxy.stall_s = (fault,), 1.0, 0.6
    store = open_store(f"s3://{bucket}/results")
    workspace = write_run(store, RUN)
    with pytest.raises(StorageUnreachableError) as caught:
        store.publish(workspace)
    assert caught.value.retryable
    assert not [key for key in s3_server.keys(bucket) if key.endswith("manifest.json")]


def test_a_lost_answer_to_the_last_step_of_a_large_upload_is_made_up_for(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has completed the upload, and says that it does not know it when asked again."""
    from reconflow.storage.transfer import _PartedUpload

    proxy.rate = 0.0
    complete = _PartedUpload.complete

    def spoiled(upload: _PartedUpload) -> None:
        answers = iter([Fault.LOST_ANSWER])
        monkeypatch.setattr(proxy, "choose", lambda: next(answers, None))
        complete(upload)

    monkeypatch.setattr(_PartedUpload, "complete", spoiled)
    store = open_store(f"s3://{bucket}/results")
    publish_run(store, RUN, {"nvdiffrec/mesh.glb": LARGE["nvdiffrec/mesh.glb"]})
    verify_package(store.fetch_run(RUN, tmp_path))


PUBLISH = """
import sys
sys.path[:0] = sys.argv[3:]
from small_runs import write_run
from reconflow.storage import open_store
store = open_store(sys.argv[1])
workspace = write_run(store, "abcd1234", {"nvdiffrec/mesh.glb": b"0" * int(sys.argv[2])})
print("start", flush=True)
store.publish(workspace)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_upload_leaves_nothing_that_a_reader_sees_and_ends_when_the_next_attempt_begins(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, how: signal.Signals
) -> None:
    proxy.rate = 0.0
    uri = f"s3://{bucket}/results"
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, uri, str(6 * PART_BYTES), here], env=os.environ.copy(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"start\n"
        deadline = time.monotonic() + 30
        while not s3_server.unfinished_uploads(bucket) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        assert process.wait(30) == -how
    store = open_store(uri)
    assert store.run_ids() == []
    with pytest.raises((JobNotFoundError, JobNotReadyError)):
        store.read_manifest(RUN)
    assert s3_server.unfinished_uploads(bucket) >= 1
    store.begin_attempt("zzzz9999")
    assert s3_server.unfinished_uploads(bucket) >= 1
    store.begin_attempt(RUN)
    assert s3_server.unfinished_uploads(bucket) == 0
    assert s3_server.keys(bucket) == []


def test_uploads_that_nobody_goes_on_with_are_swept(s3_server: S3Server, bucket: str) -> None:
    store = open_store(f"s3://{bucket}/results")
    for key in (f"results/runs/{RUN}/nvdiffrec/mesh.glb", "results-of-others/mesh.glb"):
        s3_server.client().create_multipart_upload(Bucket=bucket, Key=key)
    started = s3_server.client().list_multipart_uploads(Bucket=bucket)["Uploads"][0]["Initiated"]
    age_s = (datetime.now(UTC) - started).total_seconds()  # moto dates every upload to the year 2010
    assert store.sweep(age_s + 3600).uploads == 0
    assert store.sweep(age_s - 3600).uploads == 1
    assert s3_server.unfinished_uploads(bucket) == 1


def test_an_upload_into_a_kept_result_ends_when_nobody_needs_the_result(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    store = open_store(f"s3://{bucket}/results")
    store.save_stage("infer", "shared", {}, {})
    for key in ("mine-checkpoint", "shared", "others"):
        s3_server.client().create_multipart_upload(Bucket=bucket, Key=f"results/stages/infer/{key}/files/0/state")
    store.hold_stage("infer", "shared", "other")
    store.discard_stages(["mine-checkpoint", "shared"], "mine")
    assert s3_server.unfinished_uploads(bucket) == 2
    store.discard_stages(["shared"], "other")
    assert s3_server.unfinished_uploads(bucket) == 1


def test_an_interrupted_upload_ends_its_parts(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect stops a run by raising in its thread; whatever is raised, the upload is aborted."""
    from reconflow.storage.transfer import _PartedUpload

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    store = open_store(f"s3://{bucket}/results")
    workspace = write_run(store, RUN, LARGE)
    monkeypatch.setattr(_PartedUpload, "complete", stop)
    with pytest.raises(Stop):
        store.publish(workspace)
    assert s3_server.unfinished_uploads(bucket) == 0
    assert store.run_ids() == []
