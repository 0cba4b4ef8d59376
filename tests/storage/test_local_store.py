"""What is particular to a store in a local folder."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import publish_run, written

from reconflow.errors import (
    DiskFullError,
    IncompleteResultsError,
    ReconflowError,
    StorageRefusedError,
    StorageUnreachableError,
)
from reconflow.failures import folder_errors
from reconflow.run_lock import sole_attempt
from reconflow.storage import LocalStore, open_store

RUN = "abcd1234"


@pytest.fixture
def folder_store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_a_folder_with_spaces_and_accents_is_a_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "Möbel & Söhne")
    publish_run(store, RUN)
    assert store.run_ids() == [RUN]
    assert Path.from_uri(store.link(RUN, "run.json", 60)).read_bytes() if hasattr(Path, "from_uri") else True


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "record"])
def test_a_damaged_stage_result_is_removed_and_reported(folder_store: LocalStore, tmp_path: Path, damage: str) -> None:
    folder_store.save_stage("infer", "key", {"x": 1}, written(tmp_path / "in", state=b"state" * 100))
    entry = folder_store.folder / ".stages" / "infer" / "key"
    stored = next(entry.rglob("state"))
    if damage == "cut":
        stored.write_bytes(b"state")
    elif damage == "changed":
        stored.write_bytes(b"STATE" * 100)
    elif damage == "removed":
        stored.unlink()
    else:
        (entry / "result.json").write_bytes(b"{")
    warnings: list[str] = []
    assert folder_store.find_stage("infer", "key", {"state": tmp_path / "out"}, warnings) is None
    assert len(warnings) == 1
    assert str(tmp_path) not in warnings[0]
    assert not entry.exists()
    assert not (tmp_path / "out").exists()


def test_a_damaged_stage_result_is_removed_and_who_needs_it_is_remembered(
    folder_store: LocalStore, tmp_path: Path
) -> None:
    folder_store.hold_stage("infer", "key", "other")
    folder_store.save_stage("infer", "key", {}, written(tmp_path / "in", state=b"x"))
    (stored,) = folder_store.folder.rglob("state")
    stored.write_bytes(b"y")
    assert folder_store.find_stage("infer", "key", {"state": tmp_path / "state"}, []) is None
    folder_store.save_stage("infer", "key", {}, {})
    folder_store.discard_stages(["key"], "mine")
    assert folder_store.find_stage("infer", "key", {}) is not None


def test_a_changed_file_of_a_run_is_not_handed_out(folder_store: LocalStore, tmp_path: Path) -> None:
    publish_run(folder_store, RUN)
    (folder_store.folder / "runs" / RUN / "run.json").write_bytes(b"{1}")
    with pytest.raises(IncompleteResultsError):
        folder_store.read_file(RUN, "run.json")
    with pytest.raises(IncompleteResultsError):
        folder_store.fetch_run(RUN, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_what_a_dead_process_left_is_swept_once_it_is_old(folder_store: LocalStore) -> None:
    workspace = folder_store.open_workspace(RUN)
    left = [workspace.root / ".mesh.glb.x1.part", workspace.work / "cameras.npz"]
    for path in left:
        path.write_bytes(b"half")
    assert folder_store.sweep(3600).files == 0
    assert all(path.exists() for path in left)
    for path in (*left, workspace.work):
        os.utime(path, (time.time() - 7200,) * 2)
    assert folder_store.sweep(3600).files == 2
    assert not any(path.exists() for path in left)
    assert workspace.root.exists()


@pytest.mark.parametrize(
    ("in_the_way", "work"),
    [
        (f"runs/{RUN}", lambda store: store.open_workspace(RUN)),
        (".work", lambda store: store.open_workspace(RUN)),
        (".stages", lambda store: store.save_stage("infer", "key", {}, {})),
        (".stages", lambda store: store.hold_stage("infer", "key", "mine")),
        ("pins", lambda store: store.pin(RUN)),
    ],
)
def test_what_stands_in_the_way_below_the_folder_is_said_with_a_code_and_without_a_path(
    folder_store: LocalStore, in_the_way: str, work: Callable[[LocalStore], object]
) -> None:
    path = folder_store.folder / in_the_way
    path.parent.mkdir(parents=True)
    path.write_text("a file")
    folder_store.prepare()
    with pytest.raises(StorageUnreachableError, match=f"{path.name} is a file") as caught:
        work(folder_store)
    assert str(folder_store.folder) not in f"{caught.value} {caught.value.suggestion} {caught.value.details}"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, StorageRefusedError),
        (errno.EROFS, StorageRefusedError),
        (errno.ENOSPC, DiskFullError),
        (errno.ESTALE, StorageUnreachableError),
    ],
)
def test_what_the_system_says_of_a_folder_has_a_code(number: int, kind: type[ReconflowError]) -> None:
    with pytest.raises(kind) as caught, folder_errors("output folder", "Choose another one."):
        raise OSError(number, os.strerror(number), "/srv/results/runs/abcd1234")
    assert "/srv" not in str(caught.value)


def test_a_lock_that_cannot_be_opened_is_said_with_a_code(folder_store: LocalStore) -> None:
    (folder_store.open_workspace(RUN).work / ".lock").mkdir()
    with pytest.raises(StorageUnreachableError), sole_attempt(lambda: folder_store.open_workspace(RUN)):
        pytest.fail("there is no lock")
