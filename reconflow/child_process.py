"""Running a function in a process group of its own, so that all the memory it took is back when it ends.

The other end is `reconflow.stage_child`. Between the two go JSON lines and nothing else: the request on the child's
standard input, whose end tells the child that its parent is gone; progress, events, the result or an error on its
standard output. What runs there is not this module's business.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from reconflow import errors
from reconflow.errors import ModelError, ModelOutOfMemoryError, ReconflowError
from reconflow.failures import MEMORY_SUGGESTION
from reconflow.progress import OnProgress, ignore_progress

STOP_GRACE_S: Final = 5.0
"""How long a child that is asked to stop may take before it is killed."""
_LISTEN_INTERVAL_S: Final = 0.5
"""How often the parent reports progress, and can so be stopped, while the child is silent."""
_COMPLAINT_BYTES: Final = 4000


class ChildTraceback(Exception):  # noqa: N818 - a cause to be shown, never raised
    """Where a child failed, as text; the cause of the error that the parent raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_in_child(
    function: str,
    arguments: Mapping[str, Any],
    on_progress: OnProgress = ignore_progress,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Call a function in a new process and return its result.

    The child ends when the call ends, however that is; with it every process that it has started.

    Args:
        function: `package.module:name` of a function that takes `arguments` and a `reconflow.stage_child.Channel`
            and returns a JSON-able object.
        arguments: JSON-able.
        on_progress: Hears the child's progress, and the last of it again while the child is silent; what it raises,
            `Cancelled` above all, ends the child.
        on_event: Given whatever else the child tells.
        environment: Changes to this process's environment.

    Raises:
        ReconflowError: As the child raised it.
        ModelOutOfMemoryError: The system killed the child, as it does when memory runs out.
        ModelError: The child ended without a word.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "reconflow.stage_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "PYTHONPATH": _import_path(), **(environment or {})},
            start_new_session=True,  # a group of its own, which no key in a terminal reaches
        )
        finished = False
        try:
            _send(process, {"function": function, "arguments": arguments})
            result = _listen(process, on_progress, on_event, complaints)
            finished = True
            return result
        finally:
            _end(process, ask_first=not finished)


def _send(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request).encode("utf-8") + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # the child is dead already; listening finds out how it died


def _listen(
    process: subprocess.Popen[bytes],
    on_progress: OnProgress,
    on_event: Callable[[dict[str, Any]], None] | None,
    complaints: IO[bytes],
) -> dict[str, Any]:
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read_messages, args=(process, messages), daemon=True).start()
    latest: tuple[int, int, str] = (0, 1, "starting a process")
    while True:
        try:
            message = messages.get(timeout=_LISTEN_INTERVAL_S)
        except queue.Empty:
            on_progress(*latest)
            continue
        if message is None:
            raise _death(process.wait(), complaints)
        if "progress" in message:
            step, total, text = message["progress"]
            latest = (step, total, text)
            on_progress(*latest)
        elif "event" in message and on_event is not None:
            on_event(message["event"])
        elif "error" in message:
            raise _rebuilt(message["error"])
        elif "result" in message:
            result: dict[str, Any] = message["result"]
            return result


def _read_messages(process: subprocess.Popen[bytes], messages: queue.Queue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.endswith(b"\n"):  # a killed process leaves half a line
                messages.put(json.loads(line))
    messages.put(None)


def _end(process: subprocess.Popen[bytes], *, ask_first: bool) -> None:
    """Wait for a child that has finished, or end one that has not, and leave nothing of its group."""
    assert process.stdin is not None
    try:
        if ask_first:
            _signal_group(process, signal.SIGTERM)
        else:
            process.stdin.close()
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _death(status: int, complaints: IO[bytes]) -> ReconflowError:
    """Return why a child ended without a result or an error, as far as its exit status tells."""
    if status == -signal.SIGKILL:
        error: ReconflowError = ModelOutOfMemoryError(
            "The model's process was killed, as the system does when memory runs out.",
            suggestion=MEMORY_SUGGESTION,
            signal="SIGKILL",
        )
    else:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        error = ModelError(
            f"The model's process ended unexpectedly ({how}).",
            suggestion="Run it again; finished stages are not repeated. If it ends so again, report it.",
            ended=how,
        )
    complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, complaints.tell() - _COMPLAINT_BYTES))
    text = complaints.read().decode("utf-8", "replace").strip()
    error.__cause__ = ChildTraceback(text) if text else None
    return error


def _rebuilt(facts: Mapping[str, Any]) -> ReconflowError:
    """Return the error that a child described, of the type it had there."""
    kind = getattr(errors, facts["kind"], ReconflowError)
    error: ReconflowError = kind(facts["message"], suggestion=facts["suggestion"], **facts["details"])
    error.__cause__ = ChildTraceback(facts["traceback"])
    return error


def _import_path() -> str:
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
