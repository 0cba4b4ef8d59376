"""What every artifact store promises: runs appear whole, expire with a reason, and stage results are checked."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_runs import FILES, publish_run, write_run, written

from reconflow.errors import IncompleteResultsError, JobExpiredError, JobNotFoundError, JobNotReadyError
from reconflow.outputs.package import verify_package
from reconflow.storage import ArtifactStore, LocalStore

RUN, OTHER = "abcd1234", "zzzz9999"


def test_a_published_run_comes_back_whole(store: ArtifactStore, tmp_path: Path) -> None:
    publish_run(store, RUN)
    folder = store.fetch_run(RUN, tmp_path / "fetched")
    assert folder == tmp_path / "fetched" / RUN
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert verify_package(folder) == store.read_manifest(RUN)
    assert [path.name for path in folder.parent.iterdir()] == [RUN]


def test_fetching_again_keeps_what_is_whole_and_refuses_to_overwrite_what_is_not(
    store: ArtifactStore, tmp_path: Path
) -> None:
    publish_run(store, RUN)
    folder = store.fetch_run(RUN, tmp_path)
    before = (folder / "run.json").stat().st_mtime_ns
    assert store.fetch_run(RUN, tmp_path) == folder
    assert (folder / "run.json").stat().st_mtime_ns == before
    (folder / "run.json").write_bytes(b"other")
    with pytest.raises(Exception, match="another abcd1234"):
        store.fetch_run(RUN, tmp_path)


def test_a_run_without_a_manifest_does_not_exist_for_readers(store: ArtifactStore, tmp_path: Path) -> None:
    workspace = store.open_workspace(RUN)
    (workspace.root / "run.json").write_bytes(b"{}")
    assert store.run_ids() == []
    assert store.published_runs() == []
    for read in (store.read_manifest, lambda run: store.fetch_run(run, tmp_path / "to")):
        with pytest.raises((JobNotReadyError, JobNotFoundError)):
            read(RUN)


def test_a_run_that_nobody_started_is_not_found(store: ArtifactStore) -> None:
    with pytest.raises(JobNotFoundError):
        store.read_manifest(OTHER)
    with pytest.raises(JobNotFoundError):
        store.read_manifest("../../etc")


def test_published_runs_are_listed_with_their_time(store: ArtifactStore) -> None:
    for run_id in (OTHER, RUN):
        publish_run(store, run_id)
    assert store.run_ids() == [RUN, OTHER]
    runs = store.published_runs()
    assert [run.run_id for run in runs] == [RUN, OTHER]
    assert all(abs((datetime.now(UTC) - run.published_at).total_seconds()) < 60 for run in runs)


def test_a_run_can_be_published_again_with_other_files(store: ArtifactStore, tmp_path: Path) -> None:
    publish_run(store, RUN, {"run.json": b"first", "error.json": b"{}"})
    workspace = store.open_workspace(RUN)
    for stale in ("error.json", f"{RUN}.zip"):
        (workspace.root / stale).unlink(missing_ok=True)
    store.publish(write_run(store, RUN, {"run.json": b"second"}))
    folder = store.fetch_run(RUN, tmp_path)
    assert (folder / "run.json").read_bytes() == b"second"
    assert sorted(path.name for path in folder.iterdir()) == [f"{RUN}.zip", "manifest.json", "run.json"]


def test_a_file_of_a_run_can_be_read_and_others_cannot(store: ArtifactStore) -> None:
    publish_run(store, RUN)
    assert store.read_file(RUN, "run.json") == FILES["run.json"]
    assert json.loads(store.read_file(RUN, "manifest.json"))["status"] == "failed"
    for name in ("no.json", "../zzzz9999/run.json", ""):
        with pytest.raises(JobNotFoundError):
            store.read_file(RUN, name)
        with pytest.raises(JobNotFoundError):
            store.link(RUN, name, 60)


def test_an_expired_run_says_when_and_why(store: ArtifactStore) -> None:
    publish_run(store, RUN)
    publish_run(store, OTHER)
    store.delete_run(RUN, "older than 30 days")
    assert store.run_ids() == [OTHER]
    for read in (store.read_manifest, lambda run: store.delete_run(run, "again")):
        with pytest.raises(JobExpiredError, match="older than 30 days") as caught:
            read(RUN)
        assert f"{datetime.now(UTC):%Y-%m-%d}" in caught.value.message
    assert store.read_file(OTHER, "run.json") == FILES["run.json"]


def test_pins_come_and_go(store: ArtifactStore) -> None:
    store.pin(RUN)
    store.pin(OTHER)
    store.pin(RUN)
    assert store.pinned_runs() == {RUN, OTHER}
    store.pin(RUN, pinned=False)
    store.pin(RUN, pinned=False)
    assert store.pinned_runs() == {OTHER}


def test_what_an_unpublished_run_left_is_removed_and_a_published_one_stays(store: ArtifactStore) -> None:
    publish_run(store, RUN)
    write_run(store, OTHER).root.joinpath("manifest.json").unlink()
    for run_id in (RUN, OTHER, "nothere0"):
        store.discard_unfinished(run_id)
    assert store.read_file(RUN, "run.json") == FILES["run.json"]
    with pytest.raises(JobNotFoundError):
        store.read_manifest(OTHER)


def test_a_stage_result_comes_back_with_its_files(store: ArtifactStore, tmp_path: Path) -> None:
    files = {"cameras.npz": tmp_path / "a", "nvdiffrec/mesh.glb": tmp_path / "b"}
    for path in files.values():
        path.write_bytes(path.name.encode() * 1000)
    store.save_stage("infer", "key-1", {"faces": 12, "nested": {"x": [1.5, None]}}, files)
    found = store.find_stage("infer", "key-1", lambda name: tmp_path / "back" / name)
    assert found is not None
    assert found.result == {"faces": 12, "nested": {"x": [1.5, None]}}
    assert {name: path.read_bytes() for name, path in found.files.items()} == {
        name: path.read_bytes() for name, path in files.items()
    }
    only = store.find_stage("infer", "key-1", {"cameras.npz": tmp_path / "only"})
    assert only is not None
    assert list(only.files) == ["cameras.npz"]


def test_a_stage_that_was_not_kept_is_not_found(store: ArtifactStore, tmp_path: Path) -> None:
    store.save_stage("infer", "key-1", {}, {})
    assert store.find_stage("infer", "key-2", {}) is None
    assert store.find_stage("quality", "key-1", {}) is None
    assert store.find_stage("infer", "key-1", {}) is not None


def test_saving_a_stage_again_replaces_it(store: ArtifactStore, tmp_path: Path) -> None:
    for step in (1, 2):
        store.save_stage("fit", "key", {"step": step}, written(tmp_path / "in", state=b"%d" % step))
    found = store.find_stage("fit", "key", {"state": tmp_path / "state"})
    assert found is not None
    assert found.result == {"step": 2}
    assert (tmp_path / "state").read_bytes() == b"2"


def test_a_stage_whose_file_is_missing_is_not_kept(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(IncompleteResultsError):
        store.save_stage("fit", "key", {}, {"state": tmp_path / "nowhere"})
    assert store.find_stage("fit", "key", {}) is None


@pytest.mark.parametrize("name", ["../result.json", "/etc/passwd", "a/../../b", ""])
def test_a_stage_file_cannot_leave_its_entry(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "in", state=b"x")["state"]
    with pytest.raises(Exception, match=r"cannot|leads out|not a path"):
        store.save_stage("fit", "key", {}, {name: path})
    with pytest.raises(Exception, match="cannot name"):
        store.save_stage("fit", name, {}, {})


def test_discarded_stages_are_gone_and_others_stay(store: ArtifactStore, tmp_path: Path) -> None:
    for stage, key in (("infer", "one"), ("quality", "one"), ("infer", "two")):
        store.save_stage(stage, key, {"key": key}, written(tmp_path / "in", state=b"x"))
    store.discard_stages(["one", "never"])
    assert store.find_stage("infer", "one", {}) is None
    assert store.find_stage("quality", "one", {}) is None
    assert store.find_stage("infer", "two", {}) is not None


def test_a_stage_that_another_holder_needs_outlasts_the_first(store: ArtifactStore) -> None:
    for holder in ("first", "second", "first"):
        store.hold_stage("infer", "one", holder)
    store.save_stage("infer", "one", {"faces": 12}, {})
    store.discard_stages(["one"], "first")
    assert store.find_stage("infer", "one", {}) is not None
    store.discard_stages(["one"], "second")
    assert store.find_stage("infer", "one", {}) is None
    assert store.sweep_stages(-1).stages == 0


def test_saving_and_discarding_at_once_disturb_neither_side(store: ArtifactStore, tmp_path: Path) -> None:
    files, rounds = written(tmp_path / "in", a=b"a" * 1000, b=b"b" * 1000), 40 if isinstance(store, LocalStore) else 5

    def save(number: int) -> None:
        for _ in range(rounds):
            store.save_stage("fit", "key", {"number": number}, files)

    def discard() -> None:
        for _ in range(rounds):
            store.discard_stages(["key"])

    with ThreadPoolExecutor(3) as pool:
        for work in [pool.submit(save, 1), pool.submit(save, 2), pool.submit(discard)]:
            work.result()
    found = store.find_stage("fit", "key", lambda name: tmp_path / "back" / name)  # whole, or none
    assert found is None or {path.read_bytes() for path in found.files.values()} == {b"a" * 1000, b"b" * 1000}


def test_old_stage_results_are_swept_and_fresh_ones_stay(store: ArtifactStore) -> None:
    store.save_stage("infer", "one", {}, {})
    assert store.sweep_stages(3600).stages == 0
    time.sleep(1.1)
    assert store.sweep_stages(0).stages == 1
    assert store.find_stage("infer", "one", {}) is None


def test_links_are_made_for_published_files_only(store: ArtifactStore) -> None:
    publish_run(store, RUN)
    assert "://" in store.link(RUN, "nvdiffrec/mesh.glb", 60)
    with pytest.raises(JobNotFoundError):
        store.link(OTHER, "run.json", 60)
