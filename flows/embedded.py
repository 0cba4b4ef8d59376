"""Prefect with nothing configured: a private server for the length of one command, and the settings that reach it.

Nothing of the user's Prefect is read or written: the embedded home stands beside the results, and no profile is
looked at. Whoever sets `PREFECT_API_URL` in the environment gets that server instead. Nothing here imports Prefect,
because the settings have to stand before Prefect is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reconflow.errors import JobNotFoundError, ServerUnreachableError
from reconflow.storage import LocalStore

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


def is_server_configured() -> bool:
    """Tell whether the environment names a Prefect server, which is then used instead of an embedded one."""
    return bool(os.environ.get("PREFECT_API_URL"))


def client_settings(home: Path) -> dict[str, str]:
    """Return the environment that keeps Prefect in `home`, and off the network.

    Args:
        home: Folder of the embedded Prefect: the run history, nothing else.
    """
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_history_file(home)}",
        "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _history_file(home: Path) -> Path:
    return home / f"history-{importlib.metadata.version('prefect')}.db"


class EmbeddedServer:
    """A Prefect server that lives as long as the `with` block; start it before Prefect is first imported.

    Entering returns as soon as the port is known, so that the caller's imports overlap the server's start; `wait`
    returns when the API answers. The server ends with the block, and with this process if that is killed.

    Args:
        home: Folder of the run history; created, and safe to delete between runs.
        settings: Further environment for this process and the server, over `client_settings`.
    """

    def __init__(self, home: Path, settings: dict[str, str] | None = None) -> None:
        self.home = home.resolve()
        self._settings = settings or {}
        self._replaced: dict[str, str | None] = {}
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        password = f"reconflow:{secrets.token_urlsafe(18)}"
        self._set_environment(
            client_settings(self.home)
            | {"PREFECT_API_AUTH_STRING": password, "PREFECT_SERVER_API_AUTH_STRING": password}
            | self._settings
        )
        try:
            self._start()
            port = self._next_message()["port"]
            self._set_environment({"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> None:
        """Return when the API answers.

        Raises:
            ServerUnreachableError: The server ended, or did not answer in time.
        """
        self._next_message()

    def stop(self) -> None:
        """End the server, let it write what it holds, and restore the environment."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
        for name, value in self._replaced.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._replaced = {}

    def _start(self) -> None:
        with (self.home / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.embedded_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": _import_path()},
                start_new_session=True,  # Ctrl-C in the terminal is this process's to handle
            )
        threading.Thread(target=self._read_messages, args=(self._process,), daemon=True).start()

    def _read_messages(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _next_message(self) -> dict[str, Any]:
        try:
            message = self._messages.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            message = None
        if message is None:
            raise ServerUnreachableError(
                "The embedded Prefect server did not start.",
                suggestion="Look at server.log in the .prefect folder beside the results, or run with --no-prefect.",
            )
        return message

    def _set_environment(self, values: dict[str, str]) -> None:
        for name, value in values.items():
            self._replaced.setdefault(name, os.environ.get(name))
            os.environ[name] = value


def _import_path() -> str:
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def serve_history(out: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve Prefect's web page over the history of embedded runs until it is interrupted.

    Args:
        out: The folder that holds the results.
        port: On the loopback address.
        tell: Told where the page is.

    Raises:
        JobNotFoundError: There is no history.
        ServerUnreachableError: The page cannot be served.
    """
    home = out / ".prefect"
    if not _history_file(home).is_file():
        raise _no_history(len(LocalStore(out).run_ids()))
    _expect_free(port)
    tell(f"Starting the run history of {out}: http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **client_settings(home.resolve())}
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
    if ended.returncode > 0:
        raise ServerUnreachableError(
            "Prefect's server ended by itself.", suggestion="See what it printed above, or choose another --port."
        )


def _no_history(runs: int) -> JobNotFoundError:
    if runs == 0:
        return JobNotFoundError("There are no runs in that folder.", suggestion="Give the --out folder of a run.")
    return JobNotFoundError(
        f"That folder holds {runs} {'run' if runs == 1 else 'runs'}, but none was done by this version of "
        "Prefect, which keeps the history.",
        suggestion="Open report.html or error.json in runs/<run id>; leave out --no-prefect to have a history.",
        runs=runs,
    )


def _expect_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerUnreachableError(
                f"Port {port} cannot be used ({error.strerror}).", suggestion="Choose another --port."
            ) from error
