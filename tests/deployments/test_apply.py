"""`reconflow deploy` against a real Prefect server: what it creates, that it is idempotent, and what it leaves alone.

The server is this module's own, since others' deployments have the same names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.expire_request import ExpireRequest
from tests.support.patient_transport import PatientTransport

ROOT = Path(__file__).resolve().parents[2]
WEBHOOK = {"RECONFLOW_WEBHOOK_URL": "http://127.0.0.1:9/token-4711", "RECONFLOW_WEBHOOK_SECRET": "hunter2"}
COLLECTIONS = (
    "deployments", "automations", "work_pools", "variables", "block_documents", "block_types", "block_schemas",
    "v2/concurrency_limits",
)  # fmt: skip
VOLATILE = {"status", "last_polled"}

pytestmark = pytest.mark.prefect


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The raw API of a server that is new to us."""
    from flows.embedded import EmbeddedServer

    with EmbeddedServer(tmp_path_factory.mktemp("prefect")) as server:
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        url, password = os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]
        server.wait()
        with (
            temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}),
            httpx.Client(
                base_url=url,
                auth=tuple(password.split(":")),  # type: ignore[arg-type]
                transport=PatientTransport(),
                timeout=60,
            ) as client,
        ):
            yield client


def apply(root: Path = ROOT, *, dry_run: bool = False, **choices: Any) -> dict[str, str]:
    """Apply, and return the action for every object as `kind name`."""
    from prefect.client.orchestration import get_client

    from deployments.apply import Choices
    from deployments.apply import apply as apply_all

    with get_client(sync_client=True) as client:
        changes = apply_all(client, root, Choices(**choices), dry_run=dry_run)
    return {f"{change.kind} {change.name}": change.action for change in changes}


def changed(actions: dict[str, str]) -> dict[str, str]:
    """Return what was not kept."""
    return {name: action for name, action in actions.items() if action != "keep"}


def objects(api: httpx.Client) -> dict[str, Any]:
    """Return everything on the server that an operator could see changing, time stamps included."""
    found = {name: api.post(f"/{name}/filter", json={}).raise_for_status().json() for name in COLLECTIONS}
    return {
        name: sorted(({key: entry[key] for key in entry.keys() - VOLATILE} for entry in entries), key=lambda e: e["id"])
        for name, entries in found.items()
    }


def deployment(api: httpx.Client, name: str) -> Any:
    """Return one deployment."""
    return api.get(f"/deployments/name/{name}").raise_for_status().json()


def test_a_dry_run_says_what_is_missing_and_creates_nothing(api: httpx.Client) -> None:
    actions = apply(dry_run=True)
    assert set(actions.values()) == {"create"}
    assert {"pool gpu", "pool cpu", "deployment reconstruct/on-demand", "variable reconflow_pool"} <= set(actions)
    assert {name: entries for name, entries in objects(api).items() if entries} == {}


def test_applied_again_nothing_changes(api: httpx.Client) -> None:
    first = apply(device="cpu", results="s3://results")
    assert set(first.values()) == {"create"}
    before = objects(api)
    assert changed(apply()) == {}
    assert changed(apply()) == {}
    assert objects(api) == before


def test_what_was_deployed_is_what_the_repository_says(api: httpx.Client) -> None:
    apply()
    found = api.post("/deployments/filter", json={}).json()
    flows = {flow["id"]: flow["name"] for flow in api.post("/flows/filter", json={}).json()}
    pools = {f"{flows[entry['flow_id']]}/{entry['name']}": entry["work_pool_name"] for entry in found}
    assert {"cancel/operator", "recover/automatic", "notify/automatic", "silence/automatic"} <= {
        name for name in pools if pools[name] == "cpu"
    }
    for entry in found:
        assert entry["tags"] == ["reconflow"]
        assert entry["job_variables"]["stream_output"] is False
        assert entry["enforce_parameter_schema"] is True
        assert entry["parameter_openapi_schema"]["additionalProperties"] is False
    assert deployment(api, "reconstruct/on-demand")["parameters"] == {"params": {"out": "s3://results"}}
    pool = api.get("/work_pools/gpu").json()["base_job_template"]["variables"]["properties"]
    assert pool["stream_output"]["default"] is False
    assert pool["env"]["default"]["RECONFLOW_DEVICE"] == "cuda"
    assert pool["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_an_expiry_that_somebody_starts_is_a_dry_run_and_the_scheduled_one_removes(api: httpx.Client) -> None:
    apply(results="s3://results")
    daily = deployment(api, "expire/daily")
    by_hand = api.post(f"/deployments/{daily['id']}/create_flow_run", json={}).raise_for_status().json()
    api.post(f"/deployments/{daily['id']}/schedule", json={"min_runs": 1}).raise_for_status()
    own = {"flow_runs": {"deployment_id": {"any_": [daily["id"]]}}}
    runs = api.post("/flow_runs/filter", json=own).raise_for_status().json()
    scheduled = [run["parameters"]["params"] for run in runs if run["auto_scheduled"]]
    assert scheduled
    assert all(ExpireRequest.model_validate(params).dry_run is False for params in scheduled)
    started = by_hand["parameters"]["params"]
    assert ExpireRequest.model_validate(started).dry_run is True
    assert {params["out"] for params in (started, *scheduled)} == {"s3://results"}
    (schedule,) = daily["schedules"]
    url = f"/deployments/{daily['id']}/schedules/{schedule['id']}"
    api.patch(url, json={"parameters": {}}).raise_for_status()
    assert changed(apply()) == {"deployment expire/daily": "update"}
    (again,) = deployment(api, "expire/daily")["schedules"]
    assert again["parameters"] == schedule["parameters"]


@pytest.mark.e2e
def test_prefect_deploy_alone_writes_the_same(api: httpx.Client) -> None:
    apply()
    api.delete(f"/deployments/{deployment(api, 'notify/automatic')['id']}").raise_for_status()
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert changed(apply()) == {}


@pytest.mark.e2e
def test_choices_are_kept_until_others_are_made(api: httpx.Client) -> None:
    apply(device="cpu", results="s3://results")
    assert deployment(api, "reconstruct/on-demand")["work_pool_name"] == "cpu"
    apply(device="cuda")
    on_demand = deployment(api, "reconstruct/on-demand")
    assert on_demand["work_pool_name"] == "gpu"
    assert on_demand["parameters"]["params"]["out"] == "s3://results"
    assert changed(apply()) == {}


def test_what_somebody_changed_is_set_right(api: httpx.Client) -> None:
    apply()
    doctor = deployment(api, "doctor/on-demand")
    api.patch(f"/deployments/{doctor['id']}", json={"tags": ["mine"], "description": "Mine."}).raise_for_status()
    assert changed(apply()) == {"deployment doctor/on-demand": "update"}
    assert deployment(api, "doctor/on-demand")["tags"] == ["reconflow"]


@pytest.mark.e2e
def test_the_nightly_walk_rests_until_it_knows_where_and_an_operator_s_pause_is_kept(api: httpx.Client) -> None:
    apply()
    (schedule,) = deployment(api, "reprocess/nightly")["schedules"]
    assert schedule["active"] is False
    apply(datasets="s3://datasets")
    nightly = deployment(api, "reprocess/nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["active"] is True
    assert nightly["parameters"]["params"]["datasets"] == "s3://datasets"
    url = f"/deployments/{nightly['id']}/schedules/{schedule['id']}"
    api.patch(url, json={"active": False}).raise_for_status()
    apply(results="s3://elsewhere")
    (schedule,) = deployment(api, "reprocess/nightly")["schedules"]
    assert schedule["active"] is False


def test_what_is_no_longer_defined_goes_and_what_others_made_stays(api: httpx.Client, tmp_path: Path) -> None:
    apply()
    theirs = deployment(api, "doctor/on-demand")
    foreign = {
        "name": "theirs",
        "flow_id": theirs["flow_id"],
        "tags": ["reconflow"],
        "entrypoint": theirs["entrypoint"],
    }
    api.post("/deployments/", json=foreign).raise_for_status()
    api.post("/work_pools/", json={"name": "theirs", "type": "process"}).raise_for_status()
    smaller = without_deployment(tmp_path, "flows/doctor_flow.py:doctor")
    assert changed(apply(smaller, dry_run=True)) == {"deployment doctor/on-demand": "remove"}
    assert deployment(api, "doctor/on-demand")["id"] == theirs["id"]
    assert changed(apply(smaller)) == {"deployment doctor/on-demand": "remove"}
    assert api.get("/deployments/name/doctor/on-demand").status_code == 404
    assert deployment(api, "doctor/theirs")["tags"] == ["reconflow"]
    assert api.get("/work_pools/theirs").status_code == 200
    assert changed(apply(smaller)) == {}
    assert changed(apply()) == {"deployment doctor/on-demand": "create"}


def without_deployment(folder: Path, entrypoint: str) -> Path:
    """Make a repository without one of the deployments."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))
    document["deployments"] = [entry for entry in document["deployments"] if entry["entrypoint"] != entrypoint]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document), "utf-8")
    (folder / "flows").symlink_to(ROOT / "flows")
    return folder


def with_another_pool(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let this version define one more pool and variable, and a deployment on a queue of its own."""
    from deployments import apply as applying
    from deployments.pools import POOLS, Pool

    monkeypatch.setattr(applying, "POOLS", (*POOLS, Pool("old", "cpu", "What an earlier version had.")))
    decide = applying._decide_variables
    monkeypatch.setattr(applying, "_decide_variables", lambda *given: {**decide(*given), "reconflow_old": "once"})
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))
    (doctor,) = (entry for entry in document["deployments"] if entry["entrypoint"].endswith(":doctor"))
    document["deployments"].append(
        {
            **doctor,
            "name": "old",
            "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
            "work_pool": {"name": "old", "work_queue_name": "slow"},
        }
    )
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document), "utf-8")
    (folder / "flows").symlink_to(ROOT / "flows")
    return folder


def inventory(api: httpx.Client) -> set[str]:
    """Return the list of what is ours."""
    return set(api.get("/variables/name/reconflow_deployed").raise_for_status().json()["value"])


def test_everything_that_deploy_created_goes_when_it_is_not_defined_any_more(
    api: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply()
    before = objects(api)
    with monkeypatch.context() as earlier:
        apply(with_another_pool(earlier, tmp_path))
    assert api.get("/work_pools/old/queues/slow").status_code == 200
    assert {"pool:old", "queue:old/slow", "variable:reconflow_old", "deployment:doctor/old"} <= inventory(api)
    removed = {
        "deployment doctor/old": "remove",
        "queue old/slow": "remove",
        "pool old": "remove",
        "variable reconflow_old": "remove",
    }
    assert changed(apply(dry_run=True)) == removed
    assert changed(apply()) == removed
    assert changed(apply()) == {}
    after = objects(api)
    for name in COLLECTIONS:
        assert [entry["id"] for entry in after[name]] == [entry["id"] for entry in before[name]]


def test_a_pool_goes_only_when_nobody_needs_it_and_is_not_forgotten_until_then(
    api: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply()
    with monkeypatch.context() as earlier:
        apply(with_another_pool(earlier, tmp_path))
    old = deployment(api, "doctor/old")
    theirs = {"name": "theirs-too", "flow_id": old["flow_id"], "work_pool_name": "old", "work_queue_name": "slow"}
    made = api.post("/deployments/", json=theirs).raise_for_status().json()
    first = apply()
    assert changed(first) == {"deployment doctor/old": "remove", "variable reconflow_old": "remove"}
    assert {first["pool old"], first["queue old/slow"]} == {"keep"}
    run = api.post(f"/deployments/{made['id']}/create_flow_run", json={"state": {"type": "RUNNING"}}).json()
    api.delete(f"/deployments/{made['id']}").raise_for_status()
    assert changed(apply()) == {}
    api.delete(f"/flow_runs/{run['id']}").raise_for_status()
    assert changed(apply()) == {"queue old/slow": "remove", "pool old": "remove"}
    assert api.get("/work_pools/old").status_code == 404


def test_a_block_type_goes_when_no_block_of_it_is_left(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from blocks.quality import QualityThresholdsBlock
    from deployments import apply as applying
    from deployments import default_blocks

    class Old(QualityThresholdsBlock):
        _block_type_name = "Reconflow old"
        _block_type_slug = "reconflow-old"

    with monkeypatch.context() as earlier:
        for module in (applying, default_blocks):
            earlier.setattr(module, "BLOCK_TYPES", (*default_blocks.BLOCK_TYPES, Old))
        apply()
    document = Old().save("mine")
    assert changed(apply()) == {}
    assert api.get("/block_types/slug/reconflow-old").status_code == 200
    api.delete(f"/block_documents/{document}").raise_for_status()
    assert changed(apply()) == {"block type reconflow-old": "remove"}
    assert api.get("/block_types/slug/reconflow-old").status_code == 404


def test_a_webhook_s_secrets_are_masked_and_its_automation_appears(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply()
    for name, value in WEBHOOK.items():
        monkeypatch.setenv(name, value)
    assert changed(apply()) == {
        "block reconflow-webhook/default": "create",
        "automation reconflow: notify": "create",
    }
    everything = json.dumps([objects(api), api.post("/block_documents/filter", json={}).json()])
    assert "hunter2" not in everything
    assert "token-4711" not in everything
    assert changed(apply()) == {}
    (document,) = api.get("/block_types/slug/reconflow-webhook/block_documents").json()
    api.delete(f"/block_documents/{document['id']}").raise_for_status()
    for name in WEBHOOK:
        monkeypatch.delenv(name)
    assert changed(apply()) == {"automation reconflow: notify": "remove"}


def test_an_automation_is_set_right_without_switching_it_on_or_doubling_it(api: httpx.Client) -> None:
    apply()
    name = "reconflow: recover crashed runs"
    (automation,) = [entry for entry in api.post("/automations/filter", json={}).json() if entry["name"] == name]
    api.patch(f"/automations/{automation['id']}", json={"enabled": False}).raise_for_status()
    assert changed(apply()) == {}
    kept = {key: automation[key] for key in ("name", "trigger", "actions", "actions_on_trigger", "actions_on_resolve")}
    body = {**kept, "description": "Mine.", "enabled": False, "trigger": {**kept["trigger"], "threshold": 5}}
    api.put(f"/automations/{automation['id']}", json=body).raise_for_status()
    api.post("/automations/", json={**body, "description": "A double."}).raise_for_status()
    assert changed(apply()) == {f"automation {name}": "update"}
    (found,) = [entry for entry in api.post("/automations/filter", json={}).json() if entry["name"] == name]
    assert found["trigger"]["threshold"] == 1
    assert found["enabled"] is False


def test_cancellations_have_a_queue_of_their_own_that_comes_first(api: httpx.Client) -> None:
    apply()
    queues = api.post("/work_pools/cpu/queues/filter", json={}).raise_for_status().json()
    assert min(queues, key=lambda queue: queue["priority"])["name"] == "cancel"
    deployed = api.post("/deployments/filter", json={}).raise_for_status().json()
    waiting_there = [found["entrypoint"] for found in deployed if found["work_queue_name"] == "cancel"]
    assert waiting_there == ["flows/cancel.py:cancel"]
