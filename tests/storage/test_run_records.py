"""What reprocessing reads of a store: the same from a folder and from S3, with the index and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconflow.datasets.sources import describe_source, find_datasets
from reconflow.errors import ValidationFailedError
from reconflow.outputs.package import Manifest, ManifestFacts, RunSource, RunStatus, ScaleSource
from reconflow.run_records import INDEX_NAME, read_records
from reconflow.storage import ArtifactStore, open_bucket, open_store
from reconflow.storage.bucket import common_beginnings


def manifest(listing: str, status: RunStatus = RunStatus.COMPLETED, **changes: Any) -> Manifest:
    """A manifest as far as reprocessing reads it."""
    source = RunSource(
        location="s3://data/boot", listing=listing, options={"seed": 0}, model_versions={"nvdiffrec": "1"}
    )
    known: dict[str, Any] = {"status": status, "source": source, "facts": None, "unit": "unknown"}
    return Manifest(**(known | {"colour_spaces": {}, "versions": {"reconflow": "1"}, "files": ()} | changes))


def put(store: ArtifactStore, name: str, content: bytes) -> None:
    """Write a file of a store as it is."""
    if store.uri.startswith("s3://"):
        location, bucket = open_bucket(store.uri)
        bucket.put(location.key(*name.split("/")), content)
    else:
        path = Path(store.uri) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def put_manifest(store: ArtifactStore, run_id: str, content: Manifest) -> None:
    """Publish a run that consists of its manifest."""
    put(store, f"runs/{run_id}/manifest.json", content.model_dump_json().encode())


def test_a_store_without_runs_has_no_records(store: ArtifactStore) -> None:
    assert read_records(store.uri) == []


def test_completed_failed_and_expired_runs_have_records_and_others_do_not(store: ArtifactStore) -> None:
    facts = ManifestFacts(
        model="reconviagen", scale=ScaleSource.UNIT_RADIUS, options={}, seed=0, engines={}, dataset_name="boot",
        dataset_digest="content", input_hashes={}, weights={"reconviagen": "digest"},
    )  # fmt: skip
    put_manifest(store, "complete", manifest("a", facts=facts))
    put_manifest(store, "failed00", manifest("b", RunStatus.FAILED))
    put_manifest(store, "expired0", manifest("c"))
    put_manifest(store, "old00000", manifest("d", source=None))
    put(store, "runs/damaged0/manifest.json", b'{"status": ')
    put(store, "runs/underway/run.json", b"{}")
    store.delete_run("expired0", "too old")
    for _ in range(2):  # the second time by the index
        records = read_records(store.uri)
        assert records == read_records(store.uri, use_index=False)
        assert [(run.run_id, run.listing, run.completed, run.expired) for run in records] == [
            ("complete", "a", True, False),
            ("expired0", "c", True, True),
            ("failed00", "b", False, False),
        ]
        assert records[0].versions == {"reconflow": "1", "nvdiffrec": "1"}
        assert (records[0].content, records[0].weights) == ("content", {"reconviagen": "digest"})


def test_the_index_follows_what_happens_to_runs(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/out")
    put_manifest(store, "run00001", manifest("a", RunStatus.FAILED))
    put_manifest(store, "run00002", manifest("a"))
    assert [run.completed for run in read_records(store.uri)] == [False, True]
    put_manifest(store, "run00001", manifest("a"))  # taken up again, and completed
    put_manifest(store, "run00003", manifest("b"))
    assert [run.completed for run in read_records(store.uri)] == [True, True, True]
    store.delete_run("run00002", "too old")
    assert [run.expired for run in read_records(store.uri)] == [False, True, False]


def test_manifests_of_completed_runs_are_read_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from reconflow.storage.bucket import Bucket

    store = open_store(f"s3://{bucket}/out")
    for number in range(5):
        put_manifest(store, f"run{number:05}", manifest(str(number)))
    first = read_records(store.uri)
    read: list[str] = []
    get = Bucket.get
    monkeypatch.setattr(Bucket, "get", lambda self, key: (read.append(key), get(self, key))[1])
    assert read_records(store.uri) == first
    assert read == [f"out/{INDEX_NAME}"]


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"])
def test_a_damaged_index_is_made_anew(bucket: str, content: bytes) -> None:
    store = open_store(f"s3://{bucket}/out")
    put_manifest(store, "run00001", manifest("a"))
    put(store, INDEX_NAME, content)
    assert [run.run_id for run in read_records(store.uri)] == ["run00001"]
    _, door = open_bucket(store.uri)
    assert door.get(f"out/{INDEX_NAME}") != content


def test_datasets_in_a_bucket_are_found_and_change_with_their_content(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/data")
    for name in ("boot", "deep/er/cup"):
        put(store, f"{name}/multi_views/front.png", b"front")
    put(store, "lamp/transforms.json", b"{}")
    put(store, "notes/readme.txt", b"hello")
    put(store, "data-of-others/x.png", b"x")
    found = find_datasets(store.uri)
    assert [source.location for source in found] == [
        f"s3://{bucket}/data/{name}" for name in ("boot", "deep/er/cup", "lamp")
    ]
    assert [describe_source(source.location) for source in found] == found
    assert found[0].listing == found[1].listing != found[2].listing
    put(store, "boot/multi_views/front.png", b"other")
    assert describe_source(found[0].location).listing != found[0].listing


def test_a_prefix_that_holds_nothing_is_refused_like_a_folder_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    put(open_store(f"s3://{bucket}/data"), "boot/multi_views/front.png", b"front")
    for mistyped in (f"s3://{bucket}/dato", str(tmp_path / "dato")):
        with pytest.raises(ValidationFailedError, match="dato"):
            find_datasets(mistyped)


def test_a_long_listing_side_by_side_is_the_plain_one(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from reconflow.storage import bucket as buckets

    store = open_store(f"s3://{bucket}/data")
    for number in range(23):
        put(store, f"object-{number}/multi_views/front.png", str(number).encode())
    for name in ("a/b", "ab/c", "object-1", "object-1.png", "transforms.json"):
        put(store, name, b"x")
    _, door = open_bucket(store.uri)
    monkeypatch.setattr(buckets, "_PAGE", 10)
    monkeypatch.setattr(buckets, "_FOLDERS_AT_ONCE", 4)
    assert door.objects_side_by_side("data/") == list(door.objects("data/"))


@given(st.sets(st.text("ab", max_size=5), max_size=30), st.integers(1, 5))
def test_beginnings_divide_folders_into_small_groups(found: set[str], at_most: int) -> None:
    names = sorted(f"{name}/" for name in found)
    beginnings = common_beginnings(names, at_most)
    for name in names:
        assert sum(name.startswith(beginning) for beginning in beginnings) == 1
    for beginning in beginnings:
        assert 1 <= sum(name.startswith(beginning) for name in names) <= at_most
