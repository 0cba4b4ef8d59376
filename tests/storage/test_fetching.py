"""Datasets straight from an object store: fetched once, checked, limited before anything is fetched, kept in bounds."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reconflow.datasets import fetching
from reconflow.datasets.fetching import datasets_cache, resolve_dataset
from reconflow.datasets.loading import load_dataset
from reconflow.errors import FileTooLargeError, InvalidFileCountError, StorageRefusedError, ValidationFailedError
from reconflow.storage.bucket import Bucket
from tests.support.s3_server import S3Server

VIEWS = ("front", "back", "left", "right", "top", "bottom")


def write_dataset(folder: Path) -> Path:
    """Write six views of a disc and their depth, 64 px."""
    disc = np.hypot(*np.mgrid[-31.5:32, -31.5:32]) < 24
    for number, view in enumerate(VIEWS):
        rgba = np.zeros((64, 64, 4), np.uint8)
        rgba[disc] = (40 * number, 100, 200, 255)
        for name, picture in (("multi_views", rgba), ("depth_renders", (disc * 200).astype(np.uint8))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / name / f"{view}.png")
    return folder


def upload(server: S3Server, bucket: str, folder: Path, prefix: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.put(bucket, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"s3://{bucket}/{prefix}"


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "disc")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two files with the names of a dataset's."""
    for number, name in enumerate(("multi_views", "depth_renders")):
        (tmp_path / "small" / name).mkdir(parents=True)
        (tmp_path / "small" / name / "front.png").write_bytes(bytes([number]) * 1000)
    return tmp_path / "small"


@pytest.fixture
def small_uri(s3_server: S3Server, bucket: str, small: Path) -> str:
    return upload(s3_server, bucket, small, "sets/small")


@pytest.fixture
def disc_uri(s3_server: S3Server, bucket: str, disc: Path) -> str:
    return upload(s3_server, bucket, disc, "sets/disc")


def cached_entries() -> list[Path]:
    return [path for path in datasets_cache().iterdir() if not path.name.startswith(".")]


def count_reads(monkeypatch: pytest.MonkeyPatch, delay_s: float = 0.0) -> list[str]:
    """Return a list that grows with every object that is fetched; each takes at least `delay_s`."""
    reads: list[str] = []
    from reconflow.storage import transfer

    fetch = transfer._fetch_once

    def counted(bucket: Bucket, download: transfer.Download) -> None:
        reads.append(download.key)
        time.sleep(delay_s)
        fetch(bucket, download)

    monkeypatch.setattr(transfer, "_fetch_once", counted)
    return reads


def test_a_dataset_from_a_bucket_is_the_same_as_from_a_folder(disc: Path, disc_uri: str) -> None:
    fetched = load_dataset(resolve_dataset(disc_uri))
    local = load_dataset(disc)
    assert (fetched.name, fetched.digest, fetched.file_hashes) == (local.name, local.digest, local.file_hashes)


def test_a_local_folder_is_used_where_it_is(small: Path) -> None:
    assert resolve_dataset(str(small)) == small


def test_a_dataset_is_fetched_once_and_again_when_it_changes(
    s3_server: S3Server, bucket: str, small_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    first = resolve_dataset(small_uri)
    assert len(reads) == 2
    assert resolve_dataset(small_uri) == first
    assert len(reads) == 2
    s3_server.put(bucket, "sets/small/multi_views/front.png", b"other")
    second = resolve_dataset(small_uri)
    assert second != first
    assert (second / "multi_views" / "front.png").read_bytes() == b"other"
    assert (first / "multi_views" / "front.png").read_bytes() != b"other"


@pytest.mark.parametrize("damage", ["changed", "removed", "record"])
def test_a_damaged_cache_entry_is_fetched_again(small: Path, small_uri: str, damage: str) -> None:
    folder = resolve_dataset(small_uri)
    picture = folder / "multi_views" / "front.png"
    if damage == "changed":
        picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    elif damage == "removed":
        picture.unlink()
    else:
        (folder.parent / "record.json").write_text("{")
    assert resolve_dataset(small_uri) == folder
    assert picture.read_bytes() == (small / "multi_views" / "front.png").read_bytes()
    assert cached_entries() == [folder.parent]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_many_may_ask_for_the_same_dataset_at_once_and_one_fetches_it(
    small_uri: str, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    if is_damaged:
        (resolve_dataset(small_uri) / "multi_views" / "front.png").unlink()
    reads = count_reads(monkeypatch, delay_s=0.2)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(resolve_dataset, [small_uri] * 4))
    assert len(reads) == 2
    assert len(set(folders)) == 1
    assert len(list(folders[0].rglob("*.png"))) == 2
    assert cached_entries() == [folders[0].parent]


def test_an_entry_that_somebody_is_checking_is_not_dropped(small_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONFLOW_CACHE_GB", "0")
    entry = resolve_dataset(small_uri).parent
    os.utime(entry / "record.json", (0, 0))
    with fetching._lock_of(entry):
        fetching._evict(keep=entry.with_name("other"))
        assert entry.exists()
    fetching._evict(keep=entry.with_name("other"))
    assert not entry.exists()


@pytest.mark.parametrize(
    ("sizes", "error", "said"),
    [
        ({"multi_views/front.png": 21 << 20}, FileTooLargeError, "front.png has 21.0 MB"),
        ({f"multi_views/{view}.png": 15 << 20 for view in range(14)}, FileTooLargeError, "210 MB together"),
        ({}, ValidationFailedError, "no dataset huge"),
        ({"multi_views/x\\..\\..\\evil.png": 10}, ValidationFailedError, "leads out"),
        ({"multi_views": 10, "multi_views/front.png": 10}, ValidationFailedError, "multi_views cannot be"),
    ],
)
def test_what_exceeds_the_limits_is_refused_before_anything_is_fetched(
    s3_server: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    sizes: dict[str, int],
    error: type[Exception],
    said: str,
) -> None:
    for name, size in sizes.items():
        s3_server.put(bucket, f"huge/{name}", bytes(size))
    reads = count_reads(monkeypatch)
    with pytest.raises(error, match=said):
        resolve_dataset(f"s3://{bucket}/huge")
    assert not reads
    assert not datasets_cache().exists()


def test_a_folder_of_many_datasets_is_not_one(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_FILES", 3)
    for number in range(5):
        s3_server.put(bucket, f"many/{number}.png", b"x")
    with pytest.raises(InvalidFileCountError):
        resolve_dataset(f"s3://{bucket}/many")


def test_results_below_a_dataset_and_hidden_files_are_not_part_of_it(
    s3_server: S3Server, bucket: str, small_uri: str
) -> None:
    for name in ("out/runs/abcd1234/manifest.json", "out/runs/abcd1234/nvdiffrec/mesh.glb", ".DS_Store", "x/"):
        s3_server.put(bucket, f"sets/small/{name}", b"" if name.endswith("/") else b"x")
    folder = resolve_dataset(small_uri)
    assert sorted(path.name for path in folder.iterdir()) == ["depth_renders", "multi_views"]


def test_the_cache_drops_what_was_not_used_for_longest_but_nothing_in_use(
    s3_server: S3Server, bucket: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in small.rglob("*.png"))
    monkeypatch.setenv("RECONFLOW_CACHE_GB", str(2.5 * size / 1e9))
    folders = {}
    for name in "abcd":
        folders[name] = resolve_dataset(upload(s3_server, bucket, small, f"sets/{name}"))
        age_s = {"a": 60, "b": 8000, "c": 9000, "d": 0}[name]
        os.utime(folders[name].parent / "record.json", (time.time() - age_s,) * 2)
    resolve_dataset(f"s3://{bucket}/sets/d")
    assert {name for name, folder in folders.items() if folder.exists()} == {"a", "d"}


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(StorageRefusedError, match="no bucket nowhere-to-be-found"):
        resolve_dataset("s3://nowhere-to-be-found/set")


def test_datasets_outside_of_the_allowed_roots_are_refused(
    small: Path, small_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECONFLOW_ALLOWED_ROOTS", "s3://somewhere/else")
    for location in (small_uri, str(small)):
        with pytest.raises(ValidationFailedError, match="outside"):
            resolve_dataset(location)
