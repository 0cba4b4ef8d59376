"""What is particular to a store in S3: listings, links, damage in the bucket, and what its refusals say."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import FILES, publish_run, write_run, written

from reconflow.errors import (
    IncompleteResultsError,
    ReconflowError,
    StorageRefusedError,
    StorageUnreachableError,
    ValidationFailedError,
)
from reconflow.outputs.runs import new_run_id
from reconflow.storage import StorageAccess, open_store, using_access
from reconflow.storage.transfer import PART_BYTES
from tests.support.s3_server import KEY, SECRET, S3Server

RUN = "abcd1234"


def test_the_layout_in_the_bucket_is_the_documented_one(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/a/b/")
    publish_run(store, RUN)
    store.pin(RUN)
    store.save_stage("infer", "key", {}, written(tmp_path, state=b"x"))
    publish_run(store, "zzzz9999")
    store.delete_run("zzzz9999", "test")
    keys = s3_server.keys(bucket)
    assert [key for key in keys if "/files/" not in key] == sorted(
        [
            "a/b/expired/zzzz9999.json",
            f"a/b/pins/{RUN}",
            "a/b/stages/infer/key/result.json",
            *(f"a/b/runs/{RUN}/{name}" for name in (*FILES, f"{RUN}.zip", "manifest.json")),
        ]
    )
    assert [key.rsplit("/", 1)[-1] for key in keys if "/files/" in key] == ["state"]


def test_nothing_stays_on_this_machine_after_a_run(bucket: str, tmp_path: Path) -> None:
    publish_run(open_store(f"s3://{bucket}"), RUN)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    content = b"".join(bytes([number % 251]) * 1000 for number in range(2 * PART_BYTES // 1000 + 7))
    store = open_store(f"s3://{bucket}")
    publish_run(store, RUN, {"nvdiffrec/mesh.glb": content})
    assert (store.fetch_run(RUN, tmp_path) / "nvdiffrec" / "mesh.glb").read_bytes() == content
    facts = s3_server.client().head_object(Bucket=bucket, Key=f"runs/{RUN}/nvdiffrec/mesh.glb")
    assert facts["ETag"].endswith('-3"')
    assert facts["ContentType"] == "model/gltf-binary"


def test_publishing_again_sends_no_large_file_twice(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"s3://{bucket}")
    workspace = write_run(store, RUN, {"nvdiffrec/mesh.glb": bytes(PART_BYTES + 1)})
    store.publish(workspace)
    s3_server.client().delete_object(Bucket=bucket, Key=f"runs/{RUN}/manifest.json")

    def refuse(*_: object) -> None:
        raise AssertionError("a large file was sent again")

    monkeypatch.setattr("reconflow.storage.transfer._PartedUpload.send_parts", refuse)
    store.publish(workspace)
    assert store.run_ids() == [RUN]


def test_a_file_that_changed_since_its_manifest_is_not_published(s3_server: S3Server, bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    for size in (100, PART_BYTES + 100):
        workspace = write_run(store, RUN, {"nvdiffrec/mesh.glb": bytes(size)})
        path = workspace.root / "nvdiffrec" / "mesh.glb"
        path.write_bytes(b"x" + path.read_bytes()[1:])
        with pytest.raises(IncompleteResultsError, match=r"mesh\.glb"):
            store.publish(workspace)
        assert store.run_ids() == []
        assert s3_server.unfinished_uploads(bucket) == 0
        store.discard_work(workspace)


def test_a_changed_object_is_not_handed_out(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}")
    publish_run(store, RUN)
    store.save_stage("infer", "key", {}, written(tmp_path / "in", state=b"state"))
    for key in (f"runs/{RUN}/run.json", next(k for k in s3_server.keys(bucket) if k.endswith("/state"))):
        s3_server.client().put_object(Bucket=bucket, Key=key, Body=b"STATE")
    with pytest.raises(IncompleteResultsError):
        store.read_file(RUN, "run.json")
    with pytest.raises(IncompleteResultsError):
        store.fetch_run(RUN, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())
    warnings: list[str] = []
    assert store.find_stage("infer", "key", {"state": tmp_path / "state"}, warnings) is None
    assert len(warnings) == 1
    assert not s3_server.keys(bucket, "stages/")


def test_ten_thousand_runs_are_listed_with_few_requests(s3_server: S3Server, bucket: str) -> None:
    ids = sorted({new_run_id() for _ in range(10_000)})
    for number, run_id in enumerate(ids):
        name = "run.json" if number % 10 == 0 else "manifest.json"
        s3_server.put(bucket, f"team/runs/{run_id}/{name}", b"{}")
    listed = open_store(f"s3://{bucket}/team").run_ids()
    assert listed == [run_id for number, run_id in enumerate(ids) if number % 10]


def test_a_link_reads_the_file_until_it_ends_and_nothing_else(bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    publish_run(store, RUN)
    url = store.link(RUN, "run.json", 600)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == FILES["run.json"]
    assert "X-Amz-Expires=600" in url
    assert SECRET not in url
    for seconds in (0, 8 * 24 * 3600):
        with pytest.raises(ValidationFailedError, match="seven days"):
            store.link(RUN, "run.json", seconds)


def test_a_store_that_can_be_written_is_left_as_it_was(s3_server: S3Server, bucket: str) -> None:
    open_store(f"s3://{bucket}/x").prepare()
    assert s3_server.keys(bucket) == []


def expect_clean_text(error: ReconflowError) -> None:
    for secret in ("127.0.0.1", "localhost", KEY, SECRET, "/tmp", "http"):
        assert secret not in f"{error.message} {error.suggestion} {error.details}"


def test_a_missing_bucket_says_its_name(bucket: str) -> None:
    with pytest.raises(StorageRefusedError, match="no bucket nowhere-at-all") as caught:
        open_store("s3://nowhere-at-all/x").prepare()
    assert not caught.value.retryable
    expect_clean_text(caught.value)


def test_missing_credentials_are_said_to_be_missing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "nowhere")
    with pytest.raises(StorageRefusedError, match="no usable credentials") as caught:
        open_store(f"s3://{bucket}/x").prepare()
    expect_clean_text(caught.value)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_server_that_is_not_there_is_unreachable(bucket: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageUnreachableError) as caught:
        open_store(f"s3://{bucket}/x").prepare()
    assert caught.value.retryable
    expect_clean_text(caught.value)


def test_an_endpoint_that_is_no_url_is_said_to_be_none(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage server")
    with pytest.raises(StorageRefusedError, match="not a URL"):
        open_store(f"s3://{bucket}/x").prepare()


def test_a_cache_that_is_no_folder_is_said_to_be_none(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageUnreachableError, match="cache is a file") as caught:
        open_store(f"s3://{bucket}").open_workspace(RUN)
    assert "RECONFLOW_CACHE" in caught.value.suggestion
    expect_clean_text(caught.value)


@pytest.fixture
def guarded(s3_server: S3Server, bucket: str) -> Iterator[str]:
    """A bucket on a server that checks who asks."""
    with s3_server.checking_who_asks():
        yield bucket


def test_wrong_credentials_are_said_to_be_wrong(guarded: str, s3_server: S3Server) -> None:
    access = StorageAccess(s3_server.endpoint_url, "us-east-1", "wrong", "wronger")
    with (
        using_access(access, f"s3://{guarded}"),
        pytest.raises(StorageRefusedError, match="refuses the cred") as caught,
    ):
        open_store(f"s3://{guarded}/x").prepare()
    assert not caught.value.retryable
    expect_clean_text(caught.value)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.lists(
            st.text("abcÄ 0-_.é&+%", min_size=1, max_size=8).filter(lambda p: p.strip(". ")), min_size=1, max_size=3
        ).map(lambda parts: "model/" + "/".join(f"x{part}" for part in parts)),
        st.binary(max_size=300),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.integers(), st.text(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=3,
    ),
)
def test_whatever_is_kept_comes_back(
    s3_server: S3Server,
    bucket: str,
    tmp_path_factory: pytest.TempPathFactory,
    contents: dict[str, bytes],
    result: dict[str, object],
) -> None:
    names = [name for name in contents if not any(other.startswith(f"{name}/") for other in contents)]
    folder = tmp_path_factory.mktemp("kept")
    paths = {name: folder / str(number) for number, name in enumerate(names)}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    store = open_store(f"s3://{bucket}/props")
    store.save_stage("fit", "key", result, paths)
    found = store.find_stage("fit", "key", lambda name: folder / "back" / name)
    assert found is not None
    assert found.result == result
    assert {name: path.read_bytes() for name, path in found.files.items()} == {name: contents[name] for name in names}


def test_the_same_place_can_be_read_through_fsspec(bucket: str) -> None:
    from reconflow.storage.filesystem import open_filesystem

    store = open_store(f"s3://{bucket}/team")
    publish_run(store, RUN)
    files, path = open_filesystem(store.uri)
    assert sorted(files.find(path)) == sorted(
        f"{path}/runs/{RUN}/{name}" for name in (*FILES, f"{RUN}.zip", "manifest.json")
    )
    assert files.cat_file(f"{path}/runs/{RUN}/run.json") == FILES["run.json"]
