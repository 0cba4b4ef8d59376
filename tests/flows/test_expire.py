"""Removing old results: on a Prefect server as a flow, and from a terminal, where a dry run is the default."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import walk_objects
from server_objects import begin_after_cancellation, latest_artifact
from typer.testing import CliRunner, Result

from flows.cli import app
from reconflow.errors import Cancelled, JobExpiredError
from reconflow.outputs.package import FileEntry, RunStatus
from reconflow.request import RunRequest
from reconflow.retention import RetentionRules
from reconflow.storage import open_store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DAY_S = 86_400.0


def publish(out: Path, run_id: str, age_days: float, dataset: str = "boot") -> None:
    """Store a run of one file that was published some time ago."""
    record = json.dumps({"orchestration": {"tags": [f"dataset-{dataset}"]}}).encode()
    data = walk_objects.write_datasets(out.parent / "data", dataset)
    manifest = walk_objects.manifest_of(RunRequest(dataset=str(data / dataset)), RunStatus.COMPLETED)
    entry = FileEntry(path="run.json", size=len(record), sha256=hashlib.sha256(record).hexdigest())
    walk_objects.publish(out, run_id, manifest.model_copy(update={"files": (entry,)}))
    (out / "runs" / run_id / "run.json").write_bytes(record)
    published_s = time.time() - age_days * DAY_S
    os.utime(out / "runs" / run_id / "manifest.json", (published_s, published_s))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A store with two old runs and two young ones of two datasets."""
    for run_id, age_days, dataset in (
        ("old00001", 40, "boot"),
        ("old00002", 39, "cup"),
        ("young001", 2, "boot"),
        ("young002", 1, "boot"),
    ):
        publish(tmp_path / "out", run_id, age_days, dataset)
    return tmp_path / "out"


def stored(out: Path) -> list[str]:
    """Return the runs that can be read."""
    return open_store(out).run_ids()


def run(*arguments: str | Path) -> Result:
    """Run the command in this process, without a server."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"PREFECT_API_URL": ""})


def expire_flow(out: Path, **params: Any) -> dict[str, Any]:
    """Run the flow in this process."""
    from flows.expire import expire
    from flows.expire_request import ExpireRequest

    report = expire(ExpireRequest(out=str(out), **params))
    assert isinstance(report, dict)
    return report


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_is_a_dry_run_unless_told_otherwise_and_shows_what_it_found(
    out: Path, client: SyncPrefectClient
) -> None:
    report = expire_flow(out, rules={"max_age_days": 30})
    assert report["counts"] == {"expires": 2, "stays": 2}
    assert len(stored(out)) == 4
    table = latest_artifact(client, "expire")
    assert [row["run_id"] for row in json.loads(table["data"])] == ["old00001", "old00002"]
    assert table["description"] == "4 runs: 2 expires, 2 stays (dry run)."


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_spares_pinned_runs_and_runs_at_work_and_clears_requests_nobody_waits_for(out: Path) -> None:
    from datetime import UTC, datetime
    from uuid import uuid4

    from prefect.client.orchestration import get_client

    from flows.cancellation_records import create_record, new_record, request_name
    from flows.reconstruct import reconstruct

    publish(out, "old00003", 50)
    open_store(out).pin("old00001")
    (out / ".stages" / "infer" / "key1").mkdir(parents=True)
    os.utime(out / ".stages" / "infer" / "key1", (0, 0))
    with get_client(sync_client=True) as client:
        client.create_flow_run(reconstruct, tags=["run-old00002"])
        create_record(
            client, request_name(uuid4()), new_record("me", "because", datetime.now(UTC), discard_results=False)
        )
    report = expire_flow(out, dry_run=False, rules={"max_age_days": 30, "stages_days": 1})
    told = {row["run_id"]: (row["decision"], row["reason"]) for row in report["rows"]}
    assert told["old00001"] == ("stays", "pinned")
    assert told["old00002"] == ("stays", "at work")
    assert told["old00003"] == ("expired", "older than 30 days")
    assert stored(out) == ["old00001", "old00002", "young001", "young002"]
    assert report["swept"]["cancellations"] == 1
    assert report["swept"]["stages"] == 1
    with pytest.raises(JobExpiredError):
        open_store(out).read_manifest("old00003")


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_an_expiry_that_begins_after_its_cancellation_removes_nothing(out: Path, client: SyncPrefectClient) -> None:
    from flows.expire import expire
    from flows.expire_request import ExpireRequest

    request = ExpireRequest(out=str(out), dry_run=False, rules=RetentionRules(max_age_days=30))
    assert begin_after_cancellation(client, expire, request).is_cancelled()
    assert len(stored(out)) == 4


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_a_cancelled_expiry_stops_before_the_next_run(
    out: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.states import Cancelling

    from reconflow.storage.local import LocalStore
    from tasks import run_state

    monkeypatch.setattr(run_state.StatePoller.__init__, "__defaults__", (0.05,))
    delete = LocalStore.delete_run

    def delete_slowly(store: LocalStore, run_id: str, reason: str) -> None:
        delete(store, run_id, reason)
        with get_client(sync_client=True) as own:
            own.set_flow_run_state(flow_run.id, Cancelling(message="Enough."))
        time.sleep(1.0)

    monkeypatch.setattr(LocalStore, "delete_run", delete_slowly)
    with pytest.raises(Cancelled, match="Enough"):
        expire_flow(out, dry_run=False, rules={"max_age_days": 30})
    assert stored(out) == ["old00002", "young001", "young002"]


def test_the_command_removes_nothing_until_it_is_told_to(out: Path) -> None:
    shown = run("expire", "--out", out, "--older-than", "30d")
    assert shown.exit_code == 0
    assert "old00001" in shown.stdout
    assert "young001" not in shown.stdout
    assert "--apply removes them" in shown.stdout
    assert len(stored(out)) == 4
    applied = run("expire", "--out", out, "--older-than", "30d", "--apply", "--json")
    assert json.loads(applied.stdout)["counts"] == {"expired": 2, "stays": 2}
    assert stored(out) == ["young001", "young002"]


def test_the_newest_runs_of_each_dataset_or_tag_are_kept(out: Path) -> None:
    def kept(*keep: str) -> list[str]:
        options = [part for text in keep for part in ("--keep", text)]
        rows = json.loads(run("expire", "--out", out, *options, "--json").stdout)["rows"]
        return sorted(row["run_id"] for row in rows if row["decision"] == "stays")

    assert kept("1") == ["old00002", "young002"]
    assert kept("2") == ["old00002", "young001", "young002"]
    assert kept("dataset-cup=0") == ["old00001", "young001", "young002"]
    assert kept("1", "dataset-boot=2") == ["old00002", "young001", "young002"]


def test_a_pinned_run_stays_until_it_is_unpinned(out: Path) -> None:
    assert "pinned" in run("pin", "old00001", "--out", out).stderr
    run("expire", "--out", out, "--older-than", "30d", "--apply")
    assert stored(out) == ["old00001", "young001", "young002"]
    assert "no longer pinned" in run("unpin", "old00001", "--out", out).stderr
    run("expire", "--out", out, "--older-than", "30d", "--apply")
    assert stored(out) == ["young001", "young002"]
    expired = run("pin", "old00001", "--out", out)
    assert expired.exit_code == 1
    assert "JOB_EXPIRED" in expired.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("expire", "--older-than", "soon"), "--older-than is 'soon'"),
        (("expire", "--older-than", "0d"), "--older-than is '0d'"),
        (("expire", "--keep", "all"), "--keep is 'all'"),
        (("expire", "--out", ""), "--out is empty"),
        (("pin", "nosuchid", "--out", "."), "There is no run nosuchid"),
        (("pin", "../../etc"), "is not a run id"),
    ],
)
def test_what_cannot_be_understood_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_an_expired_dataset_is_not_processed_again_by_itself(out: Path) -> None:
    data = out.parent / "data"
    run("expire", "--out", out, "--older-than", "30d", "--apply")
    report = json.loads(run("reprocess", data, "--out", out, "--dry-run", "--json").stdout)
    assert {Path(row["dataset"]).name: row["decision"] for row in report["rows"]} == {
        "boot": "up to date",
        "cup": "expired",
    }
    asked = json.loads(run("reprocess", data, "--out", out, "--dry-run", "--json", "--redo", "expired").stdout)
    assert asked["chosen"] == 1
