"""A Prefect server, workers and commands as processes of their own, for what cannot be measured inside one process.

Nothing of the user's Prefect is read or written. Every process that is started here, and every process that those
start, carries a mark in its environment, so that what is left of them can be found.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from deployments.pools import ENGINE_COMMAND

ROOT: Final = Path(__file__).resolve().parents[1]
MARK: Final = "RECONFLOW_MARK"
POOL: Final = "measured"
FITTING: Final = "fitting the surface"
"""What the progress of a run says while its fit is under way."""
START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 45.0


class PrefectProcesses:
    """A server for the length of a `with` block, and whatever else is started with it.

    Args:
        home: Folder of its database and logs; created.
        extra: Further variables of the environment of everything that is started.
    """

    def __init__(self, home: Path, extra: Mapping[str, str] | None = None) -> None:
        self.home, self._extra = home, dict(extra or {})
        self.mark = secrets.token_hex(8)
        self.password = f"measured:{secrets.token_urlsafe(12)}"
        self.url = f"http://127.0.0.1:{_free_port()}/api"
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The environment of everything that is started."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **kept,
            MARK: self.mark,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.home),
            "PREFECT_PROFILES_PATH": str(self.home / "profiles.toml"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": self.password,
            "PREFECT_SERVER_API_AUTH_STRING": self.password,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
            **self._extra,
        }

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # Background jobs of a shell ignore it, and so would a worker, which could not be stopped then.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.start_server()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_server(self) -> None:
        """Start the server, or start it again on its database, and return when it answers."""
        port = self.url.split(":")[2].split("/")[0]
        arguments = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
        self.server = self.start("server", *arguments)
        self._started.insert(0, self._started.pop())  # what is started first ends last
        wait_until(self._answers, START_TIMEOUT_S)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a Python process that leads a group of its own; its output goes to `<name>.log`."""
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_worker(
        self, client: SyncPrefectClient, name: str = "worker", limit: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a worker of the pool that takes so many runs at once, and return when the server has heard of it."""
        arguments = ("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name)
        process = self.start(name, *arguments, *(() if limit is None else ("--limit", str(limit))))

        def is_known() -> bool:
            found = client.request("POST", f"/work_pools/{POOL}/workers/filter", json={}).json()
            return name in {worker["name"] for worker in found}

        wait_until(is_known, START_TIMEOUT_S)
        return process

    def stop(self) -> None:
        """End everything that carries the mark; the server last."""
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)

    def alive(self) -> dict[int, str]:
        """Return all processes that carry the mark, with their command lines."""
        return processes_with(f"{MARK}={self.mark}")

    def alive_of(self, flow_run_id: UUID) -> dict[int, str]:
        """Return the processes that a worker started for a run, and those that they started."""
        return processes_with(f"{MARK}={self.mark}", f"PREFECT__FLOW_RUN_ID={flow_run_id}")

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """Give a client of the server."""
        with SyncPrefectClient(self.url, auth_string=self.password, httpx_settings={"timeout": 60.0}) as client:
            yield client

    def progress_of(self, client: SyncPrefectClient, flow_run_id: UUID) -> str:
        """Return what a run's progress artifact says, without its bold type; empty before there is one."""
        query = {"artifacts": {"flow_run_id": {"any_": [str(flow_run_id)]}, "type": {"any_": ["progress"]}}}
        return " ".join(
            str(found["description"]).replace("**", "")
            for found in client.request("POST", "/artifacts/filter", json=query).json()
        )

    def deploy(self, client: SyncPrefectClient, flow: Any, entrypoint: str) -> UUID:
        """Create the pool and a deployment of a flow in it.

        Args:
            client: Of the server.
            flow: The flow.
            entrypoint: Where it is, like `flows/reconstruct.py:reconstruct`.
        """
        if client.request("POST", "/work_pools/filter", json={}).json() == []:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        return client.create_deployment(
            client.create_flow(flow),
            "measured",
            work_pool_name=POOL,
            path=str(ROOT),
            entrypoint=entrypoint,
            job_variables={"stream_output": False, "command": ENGINE_COMMAND},
        )

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5.0).is_success
        except httpx.TransportError:
            return False


@contextmanager
def installation(folder: Path) -> Iterator[tuple[PrefectProcesses, SyncPrefectClient]]:
    """Run a server, `reconflow deploy` and `reconflow worker --device cpu` as an operator would, results in `out`."""
    out = str(folder / "out")
    with PrefectProcesses(folder / "prefect") as processes:
        deploy = [sys.executable, "-m", "flows.cli", "deploy", "--device", "cpu", "--out", out]
        subprocess.run(deploy, cwd=ROOT, env=processes.environment, check=True, capture_output=True)
        processes.start("worker", "-m", "flows.cli", "worker", "--device", "cpu", "--out", out)
        with processes.client() as client:
            wait_until(lambda: _all_queues_polled(client), START_TIMEOUT_S)
            yield processes, client


def _all_queues_polled(client: SyncPrefectClient) -> bool:
    queues = client.request("POST", "/work_pools/cpu/queues/filter", json={}).json()
    return all(queue["status"] == "READY" for queue in queues)


def wait_until(condition: Callable[[], object], timeout_s: float, interval_s: float = 0.2) -> None:
    """Return when a condition holds.

    Raises:
        TimeoutError: It does not in time.
    """
    ends_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= ends_s:
            raise TimeoutError(f"Not within {timeout_s:.0f} s: {getattr(condition, '__name__', condition)}")
        time.sleep(interval_s)


def submit(client: SyncPrefectClient, deployment: UUID, params: Mapping[str, Any]) -> FlowRun:
    """Create a run of a deployment."""
    return client.create_flow_run_from_deployment(deployment, parameters={"params": dict(params)})


def wait_for_end(client: SyncPrefectClient, flow_run_id: UUID, timeout_s: float) -> FlowRun:
    """Return a run when its state is final.

    Raises:
        TimeoutError: It is not in time.
    """

    def has_ended() -> bool:
        state = client.read_flow_run(flow_run_id).state
        return state is not None and state.is_final()

    wait_until(has_ended, timeout_s)
    return client.read_flow_run(flow_run_id)


def wait_for_fit(processes: PrefectProcesses, client: SyncPrefectClient, flow_run_id: UUID, timeout_s: float) -> None:
    """Return when a run's fit is under way.

    Raises:
        RuntimeError: The run has ended.
        TimeoutError: It does not get there in time.
    """

    def fitting() -> bool:
        state = client.read_flow_run(flow_run_id).state
        if state is not None and state.is_final():
            raise RuntimeError(f"The run ended before its fit: {state.name}. {state.message}")
        return FITTING in processes.progress_of(client, flow_run_id)

    wait_until(fitting, timeout_s)


def processes_with(*variables: str) -> dict[int, str]:
    """Return the processes that have all these `NAME=value` in their environment, with their command lines."""
    wanted, found = {variable.encode() for variable in variables}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # gone meanwhile, or another user's
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
