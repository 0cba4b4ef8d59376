"""A whole installation for tests: Prefect server, everything deployed, an object store, workers; and a caller's view.

The processes are real and are told to use nothing of the user's. What is deployed is `reconflow deploy`'s business.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from benchmarks._prefect_processes import ROOT, STOP_TIMEOUT_S, PrefectProcesses, wait_until
from tests.support.s3_server import S3Server

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SMALL = {"preset": "draft", "steps": 12, "resolution": 96, "texture_size": 128, "target_faces": 1500}
"""Options of a run that takes some seconds."""
LONG = {**SMALL, "steps": 20_000, "resolution": 128, "target_faces": 8000}
"""Options of one whose fit takes minutes, also when a busy server on SQLite keeps everybody waiting for one."""


class Installation(PrefectProcesses):
    """The processes of one installation, for the length of a `with` block.

    Args:
        home: Folder of their databases, caches and logs; created.
        s3: The object store.
        extra: Further variables of their environment.
    """

    def __init__(self, home: Path, s3: S3Server, extra: Mapping[str, str]) -> None:
        super().__init__(home, extra)
        self.s3 = s3
        self._numbers = itertools.count(100)
        self.bucket = s3.new_bucket()
        self.results = f"s3://{self.bucket}/results"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of everything that is started."""
        return {
            **super().environment,
            **self.s3.environment(),
            "AWS_EC2_METADATA_DISABLED": "true",
            "RECONFLOW_CACHE": str(self.home / "cache"),
        }

    def reconflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `reconflow` command to its end."""
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def apply(self) -> list[dict[str, str]]:
        """Deploy everything and return the changes."""
        done = self.reconflow("deploy", "--device", "cpu", "--out", self.results, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        changes: list[dict[str, str]] = json.loads(done.stdout)
        return changes

    def start_workers(self, limit: int) -> subprocess.Popen[bytes]:
        """Start `reconflow worker` on the CPU, and return when all its workers are known to the server."""
        least = ("--min-free-memory-gb", "0.5", "--min-free-disk-gb", "0.5")
        options = ("--device", "cpu", "--out", self.results, "--limit", str(limit), *least)
        process = self.start("workers", "-m", "flows.cli", "worker", *options)
        with Api(self) as api:
            wait_until(lambda: process.poll() is not None or len(api.workers("cpu")) >= 3, 180)
        assert process.poll() is None, (self.home / "workers.log").read_text()
        return process

    def stop_process(self, process: subprocess.Popen[bytes]) -> None:
        """End a process like an operator would."""
        process.terminate()
        process.wait(STOP_TIMEOUT_S + 10)

    def workers_alive(self) -> dict[int, str]:
        """Return the processes of workers, without those of their runs."""
        return {pid: line for pid, line in self.alive().items() if " worker start " in line}

    def flow_process(self, flow_run_id: str) -> int:
        """Return the process in which a run's flow is, not one that it started."""
        alive = self.alive_of(UUID(flow_run_id))
        (root,) = (pid for pid in alive if _parent_of(pid) not in alive)
        return root

    def unlike_others(self, params: Mapping[str, Any], boxes: Path) -> dict[str, Any]:
        """Return what a run is asked for, changed so that it shares no stage with any other run.

        Stages that are shared are dropped when the first of their runs is published, also for the others.
        """
        number = next(self._numbers)
        dataset = self.upload_dataset(boxes, f"datasets/boxes-{number}")
        return {**params, "dataset": dataset, "seed": number, "fov_deg": 45 + number / 1000}

    def upload_dataset(self, folder: Path, name: str) -> str:
        """Put a dataset into the bucket and return its location."""
        for path in folder.rglob("*.*"):
            self.s3.put(self.bucket, f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{self.bucket}/{name}"


class Api:
    """What a service sees of the installation: Prefect's REST API and nothing else.

    Args:
        installation: Whose server it is.
    """

    def __init__(self, installation: Installation) -> None:
        user, _, password = installation.password.partition(":")
        self._http = httpx.Client(base_url=installation.url, auth=(user, password), timeout=60, trust_env=False)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request; again when the server is too busy to take it, which a new run with its key survives."""
        ends_s = time.monotonic() + 180
        while True:
            try:
                answer = self._http.request(method, path, json=body)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() >= ends_s:
                    return answer
            except httpx.TransportError:
                if time.monotonic() >= ends_s:
                    raise
            time.sleep(0.5)

    def start(self, deployment: str, params: Mapping[str, Any], **more: Any) -> httpx.Response:
        """Create a run of a deployment, named `flow/deployment`."""
        found = self.ask("GET", f"/deployments/name/{deployment}")
        assert found.is_success, f"There is no deployment {deployment}."
        body = {"parameters": {"params": dict(params)}, **more}
        return self.ask("POST", f"/deployments/{found.json()['id']}/create_flow_run", body)

    def start_run(self, deployment: str, params: Mapping[str, Any], **more: Any) -> str:
        """Create a run and return its id; with a key, so that a request whose answer got lost can be repeated."""
        answer = self.start(deployment, params, **{"idempotency_key": secrets.token_hex(8), **more})
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    def run(self, flow_run_id: str) -> dict[str, Any]:
        """Return what the server says of a run."""
        found: dict[str, Any] = self.ask("GET", f"/flow_runs/{flow_run_id}").json()
        return found

    def runs_with(self, tag: str) -> list[dict[str, Any]]:
        """Return the runs that have a tag, oldest first."""
        query = {"flow_runs": {"tags": {"all_": [tag]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.ask("POST", "/flow_runs/filter", query).json()
        return found

    def run_id(self, flow_run_id: str) -> str:
        """Return the id under which a run's results are, out of its tags."""
        (run_id,) = (tag[4:] for tag in self.run(flow_run_id)["tags"] if tag.startswith("run-"))
        return str(run_id)

    def wait(self, flow_run_id: str, expected: str = "COMPLETED", timeout_s: float = 240) -> dict[str, Any]:
        """Return a run when it has ended; it has to have ended as expected."""
        try:
            wait_until(lambda: self.run(flow_run_id)["state_type"] in FINAL, timeout_s)
        except TimeoutError:
            raise AssertionError(f"{self._told(flow_run_id)} after {timeout_s:.0f} s") from None
        run = self.run(flow_run_id)
        assert run["state_type"] == expected, self._told(flow_run_id)
        return run

    def wait_for_fit(self, flow_run_id: str, timeout_s: float = 180) -> None:
        """Return when a run is at its longest stage."""

        def is_fitting() -> bool:
            assert self.run(flow_run_id)["state_type"] not in FINAL, self._told(flow_run_id)
            return any("**infer**: " in found["description"] for found in self.artifacts(flow_run_id, "progress"))

        wait_until(is_fitting, timeout_s)

    def artifacts(self, flow_run_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what a run shows, of one type or of all."""
        chosen = {"type": {"any_": [kind]}} if kind else {}
        query = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, **chosen}}
        found: list[dict[str, Any]] = self.ask("POST", "/artifacts/filter", query).json()
        return [artifact for artifact in found if artifact["type"]]

    def task_states(self, flow_run_id: str) -> dict[str, str]:
        """Return the names of the states of a run's tasks, by the task's name."""
        query = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        found = self.ask("POST", "/task_runs/filter", query).json()
        return {task["name"].split("-")[0]: task["state_name"] for task in found}

    def variables(self, text: str) -> list[str]:
        """Return the names of the variables with a text in their names."""
        return [found["name"] for found in self.ask("POST", "/variables/filter", {}).json() if text in found["name"]]

    def workers(self, pool: str) -> list[str]:
        """Return the names of a pool's workers that are there."""
        found = self.ask("POST", f"/work_pools/{pool}/workers/filter", {}).json()
        return [worker["name"] for worker in found if worker["status"] == "ONLINE"]

    def offered_to_workers(self, pool: str, before: str) -> list[str]:
        """Return the runs that a pool's workers would get if they asked for all that is due before a time."""
        answer = self.ask("POST", f"/work_pools/{pool}/get_scheduled_flow_runs", {"scheduled_before": before})
        return [found["flow_run"]["id"] for found in answer.json()]

    def _told(self, flow_run_id: str) -> str:
        run = self.run(flow_run_id)
        query = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_DESC", "limit": 15}
        lines = [log["message"][-600:] for log in self.ask("POST", "/logs/filter", query).json()]
        state = run["state"] or {}
        return "\n".join([f"{run['name']}: {state.get('name')} {state.get('message')}", *reversed(lines)])


def _parent_of(pid: int) -> int:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill_hard(pid: int) -> None:
    """End a process as the kernel does when memory is short."""
    os.kill(pid, 9)
