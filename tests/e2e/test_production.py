"""A whole installation as its users meet it: a service, an operator, the nights. Real processes, real HTTP.

Cases run in the order of this file, on one server; each one makes the runs that it needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import pytest

from reconflow.outputs.package import RunStatus, verify_package

if TYPE_CHECKING:
    from tests.support.installation import Api, Installation
    from tests.support.network_guard import NetworkGuard
    from tests.support.webhook_receiver import WebhookReceiver

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # with the start of the installation
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

RECONSTRUCT = "reconstruct/nvdiffrec"


@pytest.fixture(scope="module")
def params(installation: Installation, dataset: str) -> dict[str, Any]:
    """What a run of some seconds is asked for."""
    from tests.support.installation import SMALL

    return {"dataset": dataset, "out": installation.results, **SMALL}


@pytest.fixture(scope="module")
def long_params(params: dict[str, Any]) -> dict[str, Any]:
    """What a run is asked for that does not end by itself."""
    from tests.support.installation import LONG

    return {**params, **LONG}


@pytest.fixture(scope="module")
def finished(api: Api, params: dict[str, Any]) -> dict[str, Any]:
    """A run as a service starts it, completed."""
    return api.wait(api.start_run(RECONSTRUCT, params, idempotency_key="boxes-v1", tags=["service"]))


def wait_until(condition: Callable[[], object], timeout_s: float) -> None:
    from benchmarks._prefect_processes import wait_until

    wait_until(condition, timeout_s)


def fetch(installation: Installation, run_id: str, into: Path, out: str | None = None) -> Path:
    """Fetch a run with the command for it, and return its folder, verified."""
    done = installation.reconflow("fetch", run_id, "--out", out or installation.results, "--to", str(into), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify_package(into / run_id).status is RunStatus.COMPLETED
    return into / run_id


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds between two times of the server."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_deploying_again_changes_nothing(installation: Installation) -> None:
    assert {change["action"] for change in installation.apply()} == {"keep"}


def test_what_is_to_happen_every_day_is_planned_for_the_days_to_come(api: Api) -> None:
    def planned() -> list[dict[str, Any]]:
        query = {"deployments": {"name": {"any_": ["daily"]}}, "flows": {"name": {"any_": ["expire"]}}}
        found: list[dict[str, Any]] = api.ask("POST", "/flow_runs/filter", query).json()
        return [run for run in found if run["auto_scheduled"] and run["state_type"] == "SCHEDULED"]

    wait_until(planned, 120)


def test_strangers_are_turned_away(installation: Installation) -> None:
    answer = httpx.post(f"{installation.url}/flow_runs/filter", json={}, timeout=30, trust_env=False)
    assert answer.status_code == 401


def test_the_doctor_finds_the_worker_well(api: Api, installation: Installation) -> None:
    run = api.wait(api.start_run("doctor/on-demand", {"out": installation.results, "disk_gb": 0.5}))
    (table,) = api.artifacts(run["id"], "table")
    assert "the CPU, as chosen" in table["data"]


def test_a_service_gets_one_run_for_one_idempotency_key(
    api: Api, finished: dict[str, Any], params: dict[str, Any]
) -> None:
    again = api.start(RECONSTRUCT, params, idempotency_key="boxes-v1")
    assert (again.status_code, again.json()["id"]) == (200, finished["id"])


@pytest.mark.parametrize("place", ["in params", "beside params"])
def test_a_parameter_that_does_not_exist_is_refused_by_the_server(api: Api, params: dict[str, Any], place: str) -> None:
    more = {"stepz": 1}
    asked = {"params": {**params, **more}} if place == "in params" else {"params": params, **more}
    deployment = api.ask("GET", f"/deployments/name/{RECONSTRUCT}").json()["id"]
    answer = api.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": asked})
    assert answer.status_code == 409
    assert "'stepz' was unexpected" in answer.json()["detail"]


def test_a_parameter_that_the_server_was_told_not_to_check_is_refused_by_the_flow(
    api: Api, params: dict[str, Any]
) -> None:
    unchecked = api.start(RECONSTRUCT, {**params, "stepz": 1}, enforce_parameter_schema=False)
    run = api.wait(unchecked.json()["id"], "FAILED")
    assert run["state"]["message"].startswith("VALIDATION_FAILED: ")
    assert "stepz" in run["state"]["message"]
    assert not api.artifacts(run["id"])


def test_a_finished_run_shows_progress_quality_previews_and_summary(api: Api, finished: dict[str, Any]) -> None:
    (progress,) = api.artifacts(finished["id"], "progress")
    assert float(progress["data"]) == 100.0
    keys = {artifact["key"] for artifact in api.artifacts(finished["id"])}
    names = {"progress", "dataset", "cameras", "quality", "preview", "previews", "summary"}
    assert {f"nvdiffrec-{name}" for name in names} <= keys
    (preview,) = (artifact for artifact in api.artifacts(finished["id"]) if artifact["key"] == "nvdiffrec-preview")
    assert preview["data"].startswith("data:image/")
    assert {"service", "nvdiffrec", "reconflow", "dataset-boxes"} <= set(finished["tags"])


def test_results_verify_file_by_file_and_say_which_run_made_them(
    api: Api, installation: Installation, finished: dict[str, Any], tmp_path: Path, figures: list[str]
) -> None:
    run_id = api.run_id(finished["id"])
    folder = fetch(installation, run_id, tmp_path)
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    assert finished["id"] in json.dumps(facts)
    stages_s = facts["seconds"]
    figures.append(
        f"first run: {seconds_between(finished['created'], finished['start_time']):.1f} s from creation to start, "
        f"{finished['total_run_time']:.1f} s in the flow, {stages_s:.1f} s of them in stages"
    )


def test_a_run_is_found_by_the_tag_with_its_run_id_and_by_either_id(
    api: Api, installation: Installation, finished: dict[str, Any]
) -> None:
    run_id = api.run_id(finished["id"])
    assert [run["id"] for run in api.runs_with(f"run-{run_id}")] == [finished["id"]]
    for either in (run_id, finished["id"]):
        done = installation.reconflow("link", either, "--out", installation.results, "--json")
        assert json.loads(done.stdout)["run_id"] == run_id


def test_a_link_downloads_without_credentials_until_it_ends(
    api: Api, installation: Installation, finished: dict[str, Any]
) -> None:
    run_id = api.run_id(finished["id"])
    options = ("--out", installation.results, "--file", "nvdiffrec/mesh.glb", "--json")
    url = json.loads(installation.reconflow("link", run_id, *options).stdout)["url"]
    answer = httpx.get(url, timeout=30, trust_env=False)
    assert answer.is_success
    assert answer.content[:4] == b"glTF"
    assert "X-Amz-Expires=3600" in url


def test_the_end_of_a_run_is_told_to_a_webhook_with_a_signature(
    api: Api, finished: dict[str, Any], receiver: WebhookReceiver
) -> None:
    wait_until(lambda: receiver.told_of(finished["id"]), 60)
    message = receiver.told_of(finished["id"])[0]
    assert message["event"] == "reconstruct.completed"
    assert message["run_id"] == api.run_id(finished["id"])
    assert message["results"]["nvdiffrec"]["psnr_db"] > 20
    assert receiver.refused == 0


def cancel(api: Api, run: str) -> dict[str, Any]:
    """Do both steps with the operator's form; the run has to live between them."""
    api.wait(api.start_run("cancel/operator", {"run": run, "by": "ada", "reason": "wrong pictures"}))
    flow_run_id = run if "-" in run else api.runs_with(f"run-{run}")[-1]["id"]
    assert api.run(flow_run_id)["state_type"] in ("RUNNING", "SCHEDULED")
    assert api.variables(flow_run_id)
    return api.wait(api.start_run("cancel/operator", {"run": run, "by": "bob", "confirm": True}))


def test_a_running_run_is_cancelled_in_two_steps_and_nothing_of_it_is_left(
    api: Api, installation: Installation, long_params: dict[str, Any], figures: list[str]
) -> None:
    flow_run_id = api.start_run(RECONSTRUCT, long_params)
    api.wait_for_fit(flow_run_id)
    run_id = api.run_id(flow_run_id)
    assert installation.alive_of(UUID(flow_run_id))
    confirmation = cancel(api, run_id)
    run = api.wait(flow_run_id, "CANCELLED", 60)
    wait_until(lambda: not installation.alive_of(UUID(flow_run_id)), 10)
    assert api.variables(flow_run_id) == []
    assert installation.s3.unfinished_uploads(installation.bucket) == 0
    stored = installation.s3.keys(installation.bucket, f"results/runs/{run_id}/")
    assert f"results/runs/{run_id}/manifest.json" in stored
    assert not any(key.endswith((".glb", ".part")) for key in stored)
    assert not list((installation.home / "cache").rglob(f"scratch/*/{run_id}"))
    seconds = seconds_between(confirmation["start_time"], run["state"]["timestamp"])
    figures.append(f"cancelled {seconds:.1f} s after the confirming flow began")


def test_the_run_after_a_cancelled_one_completes(api: Api, params: dict[str, Any]) -> None:
    api.wait(api.start_run(RECONSTRUCT, {**params, "seed": 1}))


def test_a_run_that_has_not_begun_is_cancelled_and_never_begins(
    api: Api, installation: Installation, params: dict[str, Any]
) -> None:
    later = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    scheduled = {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}
    flow_run_id = api.start_run(RECONSTRUCT, {**params, "seed": 2}, state=scheduled)
    assert flow_run_id in api.offered_to_workers("cpu", later)
    cancel(api, flow_run_id)
    run = api.wait(flow_run_id, "CANCELLED", 30)
    assert run["run_count"] == 0
    assert flow_run_id not in api.offered_to_workers("cpu", later)
    assert api.variables(flow_run_id) == []


def checkpoints(installation: Installation) -> set[str]:
    """Return what unfinished fits have kept to go on from."""
    keys = installation.s3.keys(installation.bucket, "results/stages/infer/")
    return {key for key in keys if key.endswith("-checkpoint/result.json")}


def test_a_killed_run_crashes_and_a_new_one_with_its_run_id_goes_on_from_its_stages(
    api: Api, installation: Installation, params: dict[str, Any], boxes: Path, tmp_path: Path, figures: list[str]
) -> None:
    from tests.support.installation import kill_hard

    others = checkpoints(installation)
    killed = api.start_run(RECONSTRUCT, {**installation.unlike_others(params, boxes), "steps": 1500})
    api.wait_for_fit(killed)
    wait_until(lambda: checkpoints(installation) - others, 60)
    run_id, killed_s = api.run_id(killed), time.time()
    kill_hard(installation.flow_process(killed))
    wait_until(lambda: not installation.alive_of(UUID(killed)), 20)
    crashed = api.wait(killed, "CRASHED", 60)
    wait_until(lambda: len(api.runs_with(f"run-{run_id}")) == 2, 90)
    (new,) = (run["id"] for run in api.runs_with(f"run-{run_id}") if run["id"] != killed)
    recovered = api.wait(new)
    states = api.task_states(new)
    assert (states["validate"], states["transforms"]) == ("Cached", "Cached")
    assert states["infer"] == "Completed"
    assert api.run(killed)["state_type"] == "CRASHED"
    folder = fetch(installation, run_id, tmp_path)
    assert "checkpoint" in (folder / "run.json").read_text("utf-8")
    started_s = datetime.fromisoformat(recovered["start_time"]).timestamp()
    crashed_s = datetime.fromisoformat(crashed["state"]["timestamp"]).timestamp()
    figures.append(
        f"killed flow: crashed after {max(0.0, crashed_s - killed_s):.1f} s, at work again after "
        f"{started_s - killed_s:.1f} s, done {recovered['total_run_time']:.1f} s later"
    )


@pytest.fixture(scope="module")
def walk(installation: Installation, boxes: Path) -> dict[str, Any]:
    """What a walk over three datasets, one of them broken, is asked for."""
    from tests.support.installation import SMALL

    for name in ("one", "two", "broken"):
        installation.upload_dataset(boxes, f"night/{name}")
    installation.s3.client().delete_object(Bucket=installation.bucket, Key="night/broken/multi_views/top.png")
    options = {name: value for name, value in SMALL.items() if name != "preset"}
    return {
        "datasets": f"s3://{installation.bucket}/night",
        "out": f"s3://{installation.bucket}/nightly",
        "preset": SMALL["preset"],
        "options": options,
        "attempts": 1,
        "deployment": RECONSTRUCT,
    }


def rows_of(api: Api, walk_id: str, key: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a walk's table, by the dataset's name."""
    (table,) = (artifact for artifact in api.artifacts(walk_id, "table") if artifact["key"] == key)
    return {row["dataset"].rsplit("/", 1)[-1]: row for row in json.loads(table["data"])}


def test_a_dry_walk_decides_and_starts_nothing(api: Api, installation: Installation, walk: dict[str, Any]) -> None:
    run = api.wait(api.start_run("reprocess/nightly", {**walk, "dry_run": True}))
    decided = rows_of(api, run["id"], "reprocess-decisions")
    assert {name: row["decision"] for name, row in decided.items()} == dict.fromkeys(["one", "two", "broken"], "new")
    assert installation.s3.keys(installation.bucket, "nightly/") == []
    assert api.runs_with("dataset-one") == []


def test_a_walk_runs_what_is_new_and_a_broken_dataset_fails_alone(
    api: Api, installation: Installation, walk: dict[str, Any]
) -> None:
    run = api.wait(api.start_run("reprocess/nightly", walk), timeout_s=400)
    rows = rows_of(api, run["id"], "reprocess-runs")
    assert {name: row["state"] for name, row in rows.items()} == {
        "one": "Completed",
        "two": "Completed",
        "broken": "Failed",
    }
    assert rows["broken"]["message"].startswith("INVALID_FILE_COUNT: ")


def test_a_second_walk_finds_nothing_to_do(api: Api, walk: dict[str, Any]) -> None:
    before = len(api.runs_with("dataset-broken"))
    run = api.wait(api.start_run("reprocess/nightly", walk))
    rows = rows_of(api, run["id"], "reprocess-decisions")
    assert {name: row["decision"] for name, row in rows.items()} == {"broken": "given up"}
    assert len(api.runs_with("dataset-broken")) == before


def test_results_expire_by_rule_after_a_dry_run_and_reading_them_says_so(
    api: Api, installation: Installation, walk: dict[str, Any]
) -> None:
    store = walk["out"]
    (run_id,) = (api.run_id(run["id"]) for run in api.runs_with("dataset-one"))
    request = {"out": store, "rules": {"keep_per_tag": {"dataset-one": 0}}}
    prefix = f"nightly/runs/{run_id}/"
    before = installation.s3.keys(installation.bucket, prefix)
    api.wait(api.start_run("expire/daily", {**request, "dry_run": True}))
    assert installation.s3.keys(installation.bucket, prefix) == before
    run = api.wait(api.start_run("expire/daily", {**request, "dry_run": False}))
    (table,) = api.artifacts(run["id"], "table")
    assert [row["run_id"] for row in json.loads(table["data"]) if row["decision"] == "expired"] == [run_id]
    assert installation.s3.keys(installation.bucket, prefix) == []
    answer = json.loads(installation.reconflow("link", run_id, "--out", store, "--json").stdout)
    assert answer["error"]["code"] == "JOB_EXPIRED"


def test_nobody_asked_for_anything_outside_of_the_machine(guard: NetworkGuard, finished: dict[str, Any]) -> None:
    assert guard.asked == []


def test_only_the_workers_are_left(api: Api, installation: Installation) -> None:
    wait_until(lambda: not [line for line in installation.alive().values() if "prefect.engine" in line], 150)
    assert len(installation.workers_alive()) == 3
    assert os.getpid() not in installation.alive()
