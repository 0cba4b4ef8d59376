"""Weights in an object store: fetched to a folder, and to the machine's cache when a run uses them from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from reconflow.errors import StorageRefusedError, StorageUnreachableError, WeightsMissingError
from reconflow.outputs.files import sha256_of
from reconflow.reconviagen.weight_sources import fetch_weights, resolve_weights
from reconflow.reconviagen.weights import LOCK_NAME, PIPELINE_ROLES, Bundle, WeightFile, WeightsFolder, digest_of
from reconflow.reconviagen.weights_record import check_files, folder_state
from reconflow.storage import open_bucket
from reconflow.storage.transfer import Upload, upload_files


@pytest.fixture
def place(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix with files under the published names; what is in them does not matter here."""
    small = WeightFile(Bundle("dinov2", "DINOv2", "https://example.com", "Apache-2.0"), "x.pth", 1)
    monkeypatch.setattr("reconflow.reconviagen.weights.DINOV2_FILE", small)
    local = tmp_path / "local"
    models = {role: f"ckpts/{role}" for role in PIPELINE_ROLES}
    for file in WeightsFolder(local).files():
        (local / file.name).parent.mkdir(parents=True, exist_ok=True)
        (local / file.name).write_text(file.name, "utf-8")
    ckpts = local / "trellis-vggt-v0-2" / "ckpts"
    for role in PIPELINE_ROLES:
        for suffix in ("json", "safetensors"):
            (ckpts / f"{role}.{suffix}").write_text(f"{role} {suffix}", "utf-8")
    (ckpts.parent / "pipeline.json").write_text(json.dumps({"args": {"models": models}}), "utf-8")
    uri = f"s3://{bucket}/models/reconviagen"
    location, store = open_bucket(uri)
    paths = [path for path in sorted(local.rglob("*")) if path.is_file()]
    keys = [location.key(path.relative_to(local).as_posix()) for path in paths]
    upload_files(store, [Upload(path, key, sha256_of(path)) for path, key in zip(paths, keys, strict=True)])
    return uri


def test_weights_come_from_an_object_store_to_a_folder(place: str, tmp_path: Path) -> None:
    report = fetch_weights([place], tmp_path / "into", accept_licence=True)
    folder = WeightsFolder(tmp_path / "into")
    assert set(report.fetched) == {file.name for file in folder.files()}
    assert (tmp_path / "into" / LOCK_NAME).is_file()
    assert fetch_weights([place], tmp_path / "into").fetched == ()


def test_a_run_uses_weights_of_an_object_store_from_the_cache(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def on_progress(step: int, total: int, message: str) -> None:
        fetched.append(message)

    first = resolve_weights(place, on_progress)
    assert first.missing() == []
    assert len(fetched) == 18
    second = resolve_weights(f"{place}/", on_progress)
    assert len(fetched) == 18  # nothing is fetched a second time
    assert second.root == first.root
    assert len(digest_of(check_files(second))) == 64
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageUnreachableError):  # what is there now is not known
        resolve_weights(place)


def test_a_file_that_was_replaced_in_the_object_store_is_fetched_again(place: str) -> None:
    folder = resolve_weights(place)
    before = check_files(folder)
    location, store = open_bucket(place)
    store.put(location.key("vggt-object-v0-1", "config.json"), b"vggt-object-v0-1/CONFIG.json")  # of the same size
    after = check_files(resolve_weights(place))
    assert {name for name in before if before[name] != after[name]} == {"vggt-object-v0-1/config.json"}
    store.delete([location.key("dinov2", "x.pth")])
    with pytest.raises(WeightsMissingError):
        resolve_weights(place)


def test_a_use_from_an_object_store_accepts_no_licence_and_says_where_the_files_are_from(place: str) -> None:
    folder = resolve_weights(place)
    rows = folder_state(folder)
    assert [row["accepted"] for row in rows] == [False, False, False]
    assert [row["from"] for row in rows] == [[place]] * 3
    shown = CliRunner().invoke(app, ["weights", "status", "--into", str(folder.root)], env={"COLUMNS": "400"})
    assert "(not accepted here)" in shown.stdout
    assert f"from {place}" in shown.stdout


def test_a_prefix_without_weights_is_missing_and_a_bucket_that_is_not_there_is_refused(
    place: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsMissingError):
        fetch_weights([f"{place}/elsewhere"], tmp_path / "into")
    with pytest.raises((StorageRefusedError, WeightsMissingError)):
        fetch_weights(["s3://no-such-bucket-here/x"], tmp_path / "into")
