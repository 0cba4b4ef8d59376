"""Fetching weights: from folders, caches and the web, with their licences accepted and their checksums recorded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows import cli
from reconflow.errors import (
    IncompleteResultsError,
    ReconflowError,
    StorageUnreachableError,
    ValidationFailedError,
    WeightsInvalidError,
    WeightsMissingError,
)
from reconflow.reconviagen.model import identify_weights, recorded_weights
from reconflow.reconviagen.networks import PublishedNetworks
from reconflow.reconviagen.options import ReconviagenOptions
from reconflow.reconviagen.weight_sources import fetch_weights, open_source, resolve_weights
from reconflow.reconviagen.weights import (
    DINOV2,
    DINOV2_FILE,
    GENERATOR,
    LOCK_NAME,
    WeightFile,
    WeightsFolder,
    digest_of,
)
from reconflow.reconviagen.weights_record import check_files, folder_state, recorded_digest


def faults_of(error: ReconflowError) -> list[dict[str, str]]:
    return cast("list[dict[str, str]]", error.details["faults"])


def test_a_licence_that_restricts_use_has_to_be_accepted_and_is_recorded(published: Path, tmp_path: Path) -> None:
    into = tmp_path / "weights"
    with pytest.raises(ValidationFailedError, match="restricts what they may be used for") as caught:
        fetch_weights([str(published)], into)
    assert "vggt-object-v0-1" in caught.value.message
    assert "--accept-licence" in caught.value.suggestion
    assert not (into / "vggt-object-v0-1").exists()
    report = fetch_weights([str(published)], into, accept_licence=True)
    assert report.accepted == ("Stable-X/vggt-object-v0-1",)
    assert fetch_weights([str(published)], into).fetched == ()


def test_checksums_are_recorded_at_the_first_fetch_and_a_changed_file_is_found(copy: Path) -> None:
    recorded = json.loads((copy / LOCK_NAME).read_text("utf-8"))["files"]
    folder = WeightsFolder(copy)
    assert set(recorded) == {file.name for file in folder.files()}
    assert digest_of(check_files(folder)) == digest_of({name: facts["sha256"] for name, facts in recorded.items()})
    path = copy / "dinov2" / DINOV2_FILE.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsInvalidError, match="not what was recorded") as caught:
        check_files(folder, thoroughly=False)
    assert faults_of(caught.value)[0]["file"] == f"dinov2/{DINOV2_FILE.path}"


def test_what_is_recorded_names_the_weights_without_reading_them(
    copy: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = identify_weights(ReconviagenOptions(weights=str(copy)))
    monkeypatch.setattr("reconflow.reconviagen.weights_record.sha256_of", refuse_to_read)
    assert recorded_weights(ReconviagenOptions(weights=str(copy))) == used
    assert recorded_weights(ReconviagenOptions(weights=str(published / "dinov2"))) == ""  # not all of them
    path = copy / "dinov2" / DINOV2_FILE.path
    path.write_bytes(path.read_bytes() + b"1")
    assert recorded_weights(ReconviagenOptions(weights=str(copy))) == ""  # nobody knows
    (copy / LOCK_NAME).write_text("{", "utf-8")
    assert recorded_weights(ReconviagenOptions(weights=str(copy))) == ""


@pytest.mark.parametrize("can_be_written", [True, False])
@pytest.mark.parametrize("thoroughly", [True, False])
def test_files_with_other_times_are_read_once_and_recorded_anew(
    copy: Path, monkeypatch: pytest.MonkeyPatch, *, can_be_written: bool, thoroughly: bool
) -> None:
    folder, options = WeightsFolder(copy), ReconviagenOptions(weights=str(copy))
    used = identify_weights(options)
    for file in folder.files():
        os.utime(folder.need(file), (1_600_000_000, 1_600_000_000))
    if not can_be_written:
        refuse_records(copy)
    checked = check_files(folder, thoroughly=thoroughly)
    assert digest_of(checked) == used
    monkeypatch.setattr("reconflow.reconviagen.weights_record.sha256_of", refuse_to_read)
    assert recorded_weights(options) == used
    assert identify_weights(options) == used


def refuse_records(root: Path) -> None:
    """Make it impossible to write the record into a folder, also for the superuser."""
    (root / LOCK_NAME).unlink(missing_ok=True)
    (root / LOCK_NAME / "occupied").mkdir(parents=True)


def test_what_a_machine_recorded_of_a_folder_gives_way_to_what_is_recorded_in_it(copy: Path) -> None:
    folder = WeightsFolder(copy)
    own = (copy / LOCK_NAME).read_text("utf-8")
    refuse_records(copy)
    path = copy / "vggt-object-v0-1" / "config.json"
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    check_files(folder)  # the first of this content, on this machine
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    with pytest.raises(WeightsInvalidError, match="not what was recorded") as caught:
        check_files(folder)
    assert "weights verify --anew" in caught.value.suggestion
    accepted = CliRunner().invoke(cli.app, ["weights", "verify", "--anew", "--into", str(copy)])
    assert accepted.exit_code == 0, accepted.stderr
    assert len(check_files(folder)) == 18
    path.write_text(path.read_text("utf-8").rstrip(), "utf-8")
    (copy / LOCK_NAME / "occupied").rmdir()
    (copy / LOCK_NAME).rmdir()
    (copy / LOCK_NAME).write_text(own, "utf-8")
    assert len(check_files(folder)) == 18


@settings(deadline=None, max_examples=200)
@given(
    entry=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["files", "accepted_licences", "sha256", "size", "mtime_ns", "from"]), inner
            )
        ),
    )
)
def test_any_record_is_used_or_said_to_be_damaged(tmp_path_factory: pytest.TempPathFactory, entry: Any) -> None:
    root = tmp_path_factory.mktemp("record")
    (root / LOCK_NAME).write_text(json.dumps(entry), "utf-8")
    with suppress(WeightsInvalidError):
        recorded_digest(WeightsFolder(root))


def refuse_to_read(path: Path) -> str:
    raise AssertionError(path)


def test_a_folder_that_was_never_fetched_is_recorded_at_its_first_use(published: Path, tmp_path: Path) -> None:
    hub = as_caches(published, tmp_path)
    assert len(check_files(WeightsFolder(hub))) == 18
    assert (hub / LOCK_NAME).is_file()


def as_caches(published: Path, root: Path) -> Path:
    """Lay the files out as the caches of Hugging Face and torch hub do."""
    for bundle, repository in (
        ("trellis-vggt-v0-2", "models--Stable-X--trellis-vggt-v0-2"),
        ("vggt-object-v0-1", "models--Stable-X--vggt-object-v0-1"),
    ):
        snapshots = root / repository / "snapshots"
        snapshots.mkdir(parents=True)
        (snapshots / "0123abc").symlink_to(published / bundle)
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / DINOV2_FILE.path).symlink_to(published / "dinov2" / DINOV2_FILE.path)
    return root


def test_weights_are_taken_from_caches_and_single_snapshots(published: Path, tmp_path: Path) -> None:
    assert WeightsFolder(as_caches(published, tmp_path / "hub")).missing() == []
    snapshots = [str(published / name) for name in ("trellis-vggt-v0-2", "vggt-object-v0-1", "dinov2")]
    report = fetch_weights(snapshots, tmp_path / "into", accept_licence=True)
    assert len(report.fetched) == 18


COMMITS = {"trellis-vggt-v0-2": "a" * 40, "vggt-object-v0-1": "b" * 40}


def add_snapshot(root: Path, published: Path, bundle: str, commit: str, *without: str) -> Path:
    """Add to a cache of Hugging Face a snapshot that is a copy of what is published, but for some files."""
    snapshot = root / f"models--Stable-X--{bundle}" / "snapshots" / commit
    shutil.copytree(published / bundle, snapshot)
    for name in without:
        (snapshot / name).unlink()
    return snapshot


@pytest.fixture
def hub(published: Path, tmp_path: Path) -> Path:
    """A cache of Hugging Face with an older snapshot of each repository, and torch hub's file."""
    root = tmp_path / "hub"
    for bundle, commit in COMMITS.items():
        add_snapshot(root, published, bundle, commit)
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / DINOV2_FILE.path).symlink_to(published / "dinov2" / DINOV2_FILE.path)
    return root


def test_the_snapshot_of_the_revision_meant_is_taken_whatever_else_is_there(hub: Path, published: Path) -> None:
    pinned = add_snapshot(hub, published, "trellis-vggt-v0-2", GENERATOR.revision)
    main = add_snapshot(hub, published, "vggt-object-v0-1", "c" * 40)
    (main.parents[1] / "refs").mkdir()
    (main.parents[1] / "refs" / "main").write_text("c" * 40, "utf-8")
    folder = WeightsFolder(hub)
    places = {folder.need(file).relative_to(hub).parts[2] for file in folder.files() if file.bundle != DINOV2}
    assert places == {pinned.name, main.name}
    assert [row["note"] for row in folder_state(folder)] == [None, None, None]
    assert PublishedNetworks(folder).notes == ()


def test_files_of_two_snapshots_are_never_combined(hub: Path, published: Path, tmp_path: Path) -> None:
    add_snapshot(hub, published, "trellis-vggt-v0-2", GENERATOR.revision, "ckpts/slat_vggt_cond.safetensors")
    folder = WeightsFolder(hub)
    assert [file.path for file in folder.missing()] == ["ckpts/slat_vggt_cond.safetensors"]
    report = fetch_weights([str(published)], hub, accept_licence=True)  # all of that repository, to one folder
    assert len([name for name in report.fetched if name.startswith("trellis-vggt-v0-2/")]) == 15
    assert len(report.fetched) == 15
    assert folder.missing() == []


def test_another_snapshot_than_the_one_meant_is_noted_and_stays_noted_in_a_copy(hub: Path, tmp_path: Path) -> None:
    folder, into = WeightsFolder(hub), tmp_path / "into"
    notes = PublishedNetworks(folder).notes
    assert f"snapshot {'a' * 40}" in notes[0]
    assert GENERATOR.revision in notes[0]
    assert f"snapshot {'b' * 40}" in notes[1]
    assert [row["note"] for row in folder_state(folder)] == [*notes, None]
    assert fetch_weights([str(hub)], into, accept_licence=True).notes == notes
    assert PublishedNetworks(WeightsFolder(into)).notes == notes
    shown = CliRunner().invoke(cli.app, ["weights", "status", "--into", str(into)], env={"COLUMNS": "400"})
    assert f"Note: {notes[0]}" in shown.stdout


def test_what_is_missing_is_said_with_size_licence_and_source(published: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError) as caught:
        PublishedNetworks(WeightsFolder(tmp_path))
    for words in ("ReconViaGen v0.2 (15 files, about 3.0 GB", "Apache-2.0", "Meta's VGGT licence", "1.2 GB"):
        assert words in caught.value.message
    with pytest.raises(WeightsMissingError, match="1 file,") as caught:
        fetch_weights([str(published / "trellis-vggt-v0-2"), str(published / "dinov2")], tmp_path, accept_licence=True)
    assert "--from" in caught.value.suggestion


def test_no_size_is_stated_that_nobody_knows_exactly(copy: Path) -> None:
    assert [file.name for file in WeightsFolder(copy).files() if file.size is not None or file.sha256 is not None] == []


@pytest.mark.parametrize("stated", [{"size": 3}, {"sha256": "0" * 64}])
def test_a_size_or_checksum_that_a_source_states_is_compared(
    published: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: dict[str, Any]
) -> None:
    known = WeightFile(DINOV2, DINOV2_FILE.path, 3, **stated)
    monkeypatch.setattr("reconflow.reconviagen.weights.DINOV2_FILE", known)
    with pytest.raises(WeightsInvalidError, match="dinov2"):
        check_files(WeightsFolder(copy))
    with pytest.raises(WeightsInvalidError, match="not the published ones"):
        fetch_weights([str(published)], tmp_path / "into", accept_licence=True)


@pytest.fixture
def web(published: Path) -> Iterator[str]:
    """A web server with the files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_fetched_from_the_web_when_that_is_asked_for(web: str, published: Path, tmp_path: Path) -> None:
    fetch_weights([web], tmp_path, accept_licence=True)
    wanted, found = (digest_of(check_files(WeightsFolder(root))) for root in (published, tmp_path))
    assert found == wanted
    (published / LOCK_NAME).unlink()
    with pytest.raises(WeightsMissingError):
        fetch_weights([f"{web}/nowhere"], tmp_path / "other")


def test_a_web_server_that_is_not_there_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageUnreachableError, match=r"from 127\.0\.0\.1: nothing answers there\."):
        fetch_weights(["http://127.0.0.1:9"], tmp_path)

    def without_network(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", without_network)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(StorageUnreachableError, match=r"from nowhere\.invalid: no address is known for that name\."):
        fetch_weights(["https://nowhere.invalid"], tmp_path)


def test_places_that_weights_cannot_come_from_are_refused() -> None:
    for place in ("http://example.com/weights", "ftp://example.com"):
        with pytest.raises(ValidationFailedError):
            open_source(place)
    with pytest.raises(ValidationFailedError):
        resolve_weights("https://example.com/weights")


def test_the_commands_fetch_verify_and_show(published: Path, tmp_path: Path) -> None:
    into, runner = str(tmp_path / "weights"), CliRunner()
    refused = runner.invoke(cli.app, ["weights", "fetch", "--from", str(published), "--into", into])
    assert refused.exit_code == 1
    assert "--accept-licence" in refused.stderr
    fetched = runner.invoke(cli.app, ["weights", "fetch", "--from", str(published), "--into", into, "--accept-licence"])
    assert fetched.exit_code == 0, fetched.stderr
    assert "Meta's VGGT licence" in fetched.stderr
    verified = runner.invoke(cli.app, ["weights", "verify", "--into", into, "--json"])
    assert len(json.loads(verified.stdout)["files"]) == 18
    status = runner.invoke(cli.app, ["weights", "status", "--into", into, "--json"])
    rows = json.loads(status.stdout)["bundles"]
    assert [row["missing"] for row in rows] == [[], [], []]
    assert [row["accepted"] for row in rows] == [False, True, False]
    assert runner.invoke(cli.app, ["weights", "status", "--into", into]).exit_code == 0
    empty = runner.invoke(cli.app, ["weights", "verify", "--into", str(tmp_path / "empty")])
    assert empty.exit_code == 1
    assert "WEIGHTS_MISSING" in empty.stderr


def test_the_state_of_an_empty_folder_names_every_file(tmp_path: Path) -> None:
    rows = folder_state(WeightsFolder(tmp_path))
    assert sum(len(row["missing"]) for row in rows) == 18
    assert [row["restricted"] for row in rows] == [False, True, False]


def test_errors_of_weights_have_codes_of_their_own() -> None:
    assert {WeightsMissingError.code, WeightsInvalidError.code} == {"WEIGHTS_MISSING", "WEIGHTS_INVALID"}
    assert not issubclass(WeightsMissingError, IncompleteResultsError)
    assert issubclass(WeightsMissingError, ReconflowError)
