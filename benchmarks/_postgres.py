"""A temporary PostgreSQL server for a Prefect server to keep its database in. Knows nothing of Prefect.

PostgreSQL refuses to be run by root, so that root runs it as `postgres` or, where there is no such user, as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0


def find_postgres() -> Path | None:
    """Return the folder with `postgres` and `initdb`, the newest version's; None when there is none."""
    on_path = shutil.which("postgres")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    folders = [*([Path(on_path).resolve().parent] if on_path else []), *reversed(debian)]
    return next(
        (folder for folder in folders if all((folder / name).exists() for name in ("postgres", "initdb"))), None
    )


def version_of(binaries: Path) -> str:
    """Return what `postgres --version` says, like `postgres (PostgreSQL) 15.18`."""
    return subprocess.run(
        [binaries / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()


@contextmanager
def running_postgres(binaries: Path) -> Iterator[str]:
    """Run a fresh cluster with its usual settings on a free port.

    Yields:
        The address of an empty database for SQLAlchemy and asyncpg.

    Raises:
        RuntimeError: It does not start; with what it said.
    """
    identity = _identity()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if identity:
        shutil.chown(folder, identity["user"], identity["group"])
    port, data, log = _free_port(), folder / "data", folder / "log"
    try:
        _run([binaries / "initdb", "-D", data, "-U", "prefect", "-A", "trust", "-E", "UTF8"], identity)
        command = [binaries / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port)]
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **identity
            )
        try:
            _wait_for(server, log)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections and stops
            server.wait()
    finally:
        shutil.rmtree(folder)


def _identity() -> dict[str, Any]:
    """Return whom root runs it as, for `subprocess`."""
    if os.geteuid() != 0:
        return {}
    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _run(command: list[str | Path], identity: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **identity)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")


def _wait_for(server: subprocess.Popen[bytes], log: Path) -> None:
    ends_s = time.monotonic() + START_TIMEOUT_S
    while "ready to accept connections" not in log.read_text("utf-8"):
        if server.poll() is not None or time.monotonic() >= ends_s:
            raise RuntimeError(f"PostgreSQL does not start: {log.read_text('utf-8')}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
