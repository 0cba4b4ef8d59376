"""Whose silence means something: heartbeats that real runs send, held against the automation that waits for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from flows.cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    from prefect.settings import get_current_settings
    print(get_current_settings().flows.heartbeat_frequency)
"""
PATIENCE_S = 60

pytestmark = pytest.mark.prefect


@pytest.fixture
def broken(dataset: Path, tmp_path: Path) -> Path:
    """A dataset that lacks a picture, so that its run ends at once."""
    folder = shutil.copytree(dataset, tmp_path / "data" / "broken")
    (folder / "multi_views" / "top.png").unlink()
    return folder


def latest_run(client: SyncPrefectClient, flow: str) -> FlowRun:
    """Return the run of a flow that was created last."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    named = FlowFilter(name=FlowFilterName(any_=[flow]))
    (run,) = client.read_flow_runs(flow_filter=named, limit=1, sort=FlowRunSort.START_TIME_DESC)
    return run


def is_watched(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Tell whether the automation that ends silent runs waits for the next heartbeat of a run, as a server decides."""
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import RelatedResource, Resource

    from deployments.automations import look_at_silent_runs

    trigger = EventTrigger.model_validate(look_at_silent_runs(uuid4()).trigger.model_dump(mode="json"))
    beat = first_heartbeat(client, run)
    related = [RelatedResource.model_validate(resource) for resource in beat["related"]]
    return trigger.covers_resources(Resource.model_validate(beat["resource"]), related)


def first_heartbeat(client: SyncPrefectClient, run: FlowRun) -> Any:
    """Return the event when the server has it."""
    resource = {"id": [f"prefect.flow-run.{run.id}"]}
    query = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": resource}}
    ends_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_s:
        found = client.request("POST", "/events/filter", json=query).json()["events"]
        if found:
            return found[-1]
        time.sleep(0.2)
    raise TimeoutError("No heartbeat has arrived.")


@pytest.mark.parametrize("asked", [None, "180"])
@pytest.mark.parametrize(("command", "flow"), [("run", "reconstruct"), ("reprocess", "reprocess")])
def test_a_command_sends_heartbeats_as_often_as_the_automation_expects(
    client: SyncPrefectClient, broken: Path, tmp_path: Path, command: str, flow: str, asked: str | None
) -> None:
    from deployments.heartbeats import SILENT_AFTER_S

    data = broken if command == "run" else broken.parent
    environment = {**os.environ, **({"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": asked} if asked else {})}
    arguments = [sys.executable, "-c", COMMAND, command, str(data), "--out", str(tmp_path / "out")]
    finished = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    frequency_s = int(finished.stdout.splitlines()[-1])
    assert frequency_s * 2 <= SILENT_AFTER_S
    assert is_watched(client, latest_run(client, flow))


def test_a_flow_that_somebody_calls_sends_heartbeats_as_seldom_as_they_like(
    client: SyncPrefectClient, broken: Path, tmp_path: Path
) -> None:
    from flows.reconstruct import reconstruct
    from reconflow.errors import ReconflowError
    from reconflow.request import RunRequest

    with pytest.raises(ReconflowError):
        reconstruct(RunRequest(dataset=str(broken), out=str(tmp_path)))
    assert not is_watched(client, latest_run(client, "reconstruct"))


def test_the_workers_runs_send_them_and_their_deployments_have_the_tag() -> None:
    import yaml

    from deployments.automations import WATCHED_FLOWS
    from deployments.heartbeats import HEARTBEAT_S, HEARTBEAT_VARIABLE, WATCHED_TAG
    from deployments.pools import POOLS
    from flows.doctor import Needs
    from flows.worker_command import make_specs

    for pool in POOLS:
        environment = pool.job_template()["variables"]["properties"]["env"]["default"]
        assert environment[HEARTBEAT_VARIABLE] == str(HEARTBEAT_S)
    for spec in make_specs(Needs(device="cpu"), "cpu", 1, {HEARTBEAT_VARIABLE: "180"}):
        assert spec.environment[HEARTBEAT_VARIABLE] == str(HEARTBEAT_S)
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    watched = [entry for entry in deployments if entry["entrypoint"].split(":")[1] in WATCHED_FLOWS]
    assert watched
    assert all(WATCHED_TAG in entry["tags"] for entry in watched)
