"""An installation as an operator makes it: `reconflow deploy`, `reconflow worker`, runs, a notification, a crash."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks._prefect_processes import ROOT, PrefectProcesses, submit, wait_until

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # with the start of the installation
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

SECRET = "shared with the receiver"
PATIENCE_S = 240
LONG = {"preset": "draft", "steps": 20_000, "resolution": 96, "texture_size": 128, "target_faces": 2000}


class Receiver(ThreadingHTTPServer):
    """Refuses the first attempt of every delivery, checks signatures, keeps what arrives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: set[str] = set()
        self.payloads: list[dict[str, Any]] = []
        self.forged = 0


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = self.headers["X-Reconflow-Timestamp"].encode() + b"." + body
        expected = f"sha256={hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()}"
        self.server.forged += expected != self.headers["X-Reconflow-Signature"]
        delivery = self.headers["X-Reconflow-Delivery"]
        is_first = delivery not in self.server.seen
        self.server.seen.add(delivery)
        if not is_first:
            self.server.payloads.append(json.loads(body))
        self.send_response(500 if is_first else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, out: Path) -> Iterator[PrefectProcesses]:
    """A server with everything deployed, and the CPU workers."""
    with PrefectProcesses(tmp_path_factory.mktemp("prefect")) as processes:
        webhook = {
            "RECONFLOW_WEBHOOK_URL": f"http://127.0.0.1:{receiver.server_address[1]}/",
            "RECONFLOW_WEBHOOK_SECRET": SECRET,
        }
        deploy = [sys.executable, "-m", "flows.cli", "deploy", "--device", "cpu", "--out", str(out)]
        environment = processes.environment | webhook
        subprocess.run(deploy, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
        start_worker(processes, out)
        yield processes


def start_worker(processes: PrefectProcesses, out: Path) -> subprocess.Popen[bytes]:
    """Start `reconflow worker` and return when both of its workers run."""
    arguments = ("worker", "--device", "cpu", "--out", str(out), "--min-free-disk-gb", "0.1")
    worker = processes.start("worker", "-m", "flows.cli", *arguments)
    log = processes.home / "worker.log"
    wait_until(lambda: log.read_text("utf-8").count("' started!") == 2, PATIENCE_S)
    return worker


@pytest.fixture(scope="module")
def client(prefect: PrefectProcesses) -> Iterator[SyncPrefectClient]:
    with prefect.client() as client:
        yield client


def start(client: SyncPrefectClient, name: str, params: dict[str, Any]) -> FlowRun:
    """Create a run of a deployment."""
    return submit(client, client.read_deployment_by_name(name).id, params)


def ended(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """Return a run when it has ended."""

    def is_final() -> bool:
        state = client.read_flow_run(run.id).state
        return state is not None and state.is_final()

    wait_until(is_final, PATIENCE_S)
    return client.read_flow_run(run.id)


def told_about(receiver: Receiver, run: FlowRun) -> dict[str, Any]:
    """Return what was told about a run, when it has been told."""

    def found() -> list[dict[str, Any]]:
        return [payload for payload in receiver.payloads if payload["flow_run_id"] == str(run.id)]

    wait_until(found, PATIENCE_S)
    return found()[0]


def test_the_worker_s_machine_examines_itself(prefect: PrefectProcesses, client: SyncPrefectClient, out: Path) -> None:
    run = ended(client, start(client, "doctor/on-demand", {"out": str(out)}))
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    full = ended(client, start(client, "doctor/on-demand", {"out": str(out), "disk_gb": 1e9}))
    assert full.state is not None
    assert full.state.is_failed()
    assert str(full.state.message).startswith("DISK_FULL: ")


def test_a_refused_run_is_told_with_code_and_way_out_after_a_second_attempt(
    prefect: PrefectProcesses, client: SyncPrefectClient, receiver: Receiver, out: Path
) -> None:
    run = ended(client, start(client, "reconstruct/on-demand", {"dataset": "no/such/mug", "out": str(out)}))
    payload = told_about(receiver, run)
    assert (payload["event"], payload["dataset"], payload["models"]) == ("reconstruct.failed", "mug", ["nvdiffrec"])
    assert f"run-{payload['run_id']}" in run.tags
    assert payload["error"]["code"] == "VALIDATION_FAILED"
    assert payload["error"]["suggestion"]
    assert receiver.forged == 0


def test_a_killed_run_is_told_and_started_again_once(
    prefect: PrefectProcesses, client: SyncPrefectClient, receiver: Receiver, out: Path
) -> None:
    params = {"dataset": str(ROOT / "samples" / "lantern"), "out": str(out), **LONG}
    run = start(client, "reconstruct/on-demand", params)
    wait_until(lambda: prefect.progress_of(client, run.id).startswith("infer"), PATIENCE_S)
    for pid in prefect.alive_of(run.id):
        os.kill(pid, signal.SIGKILL)
    assert told_about(receiver, run)["state"] == "Crashed"
    (tag,) = [tag for tag in client.read_flow_run(run.id).tags if tag.startswith("run-")]

    def attempts() -> list[Any]:
        query = {"flow_runs": {"tags": {"all_": [tag]}}}
        return list(client.request("POST", "/flow_runs/filter", json=query).json())

    wait_until(lambda: len(attempts()) > 1, PATIENCE_S)
    (again,) = [found for found in attempts() if found["id"] != str(run.id)]
    wait_until(lambda: prefect.progress_of(client, again["id"]).startswith("infer"), PATIENCE_S)
    assert len(attempts()) == 2


def test_a_stopped_worker_leaves_no_process(prefect: PrefectProcesses, client: SyncPrefectClient, out: Path) -> None:
    (supervisor,) = [pid for pid, command in prefect.alive().items() if "flows.cli worker" in command]
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: not [line for line in prefect.alive().values() if "server start" not in line], 90)
