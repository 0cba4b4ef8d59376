"""The process that `reconflow.child_process` starts: it calls one function and tells its parent how that went.

Run by its parent, never by hand. It ends with its parent, however that ends: the kernel kills it where it can, and the
end of its standard input does everywhere. Whatever libraries print goes to standard error, away from the messages.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import IO, Any, Final, TypeAlias

from reconflow.failures import as_known_error

_PR_SET_PDEATHSIG: Final = 1


class Channel:
    """The way to the parent; safe from any thread.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def progress(self, step: int, total: int, message: str) -> None:
        """Report progress; an `OnProgress`."""
        self._send({"progress": [step, total, message]})

    def tell(self, **event: Any) -> None:
        """Tell the parent anything JSON-able."""
        self._send({"event": event})

    def result(self, result: dict[str, Any]) -> None:
        """Hand over the result, the last message."""
        self._send({"result": result})

    def error(self, error: Exception) -> None:
        """Hand over why there is no result, the last message."""
        known = as_known_error(error)
        facts = {
            "kind": type(known).__name__,
            "message": known.message,
            "suggestion": known.suggestion,
            "details": known.details,
            "traceback": "".join(traceback.format_exception(error)),
        }
        self._send({"error": facts})

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(json.dumps(message, default=str) + "\n")
            self._stream.flush()


ChildFunction: TypeAlias = Callable[[dict[str, Any], Channel], dict[str, Any]]


def main() -> None:
    """Read the request, do it, and end."""
    _die_with_parent()
    channel = Channel(_take_standard_output())
    signal.signal(signal.SIGTERM, _stop)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        module, name = request["function"].split(":")
        function: ChildFunction = getattr(importlib.import_module(module), name)
        channel.result(function(request["arguments"], channel))
    except Exception as error:
        channel.error(error)
    os._exit(0)  # at once: neither threads nor exit handlers of libraries keep the memory any longer


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, where the kernel can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _take_standard_output() -> IO[str]:
    """Return standard output for the messages alone; what is printed goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _watch_parent() -> None:
    """End the whole group at the end of standard input: the parent is gone."""
    while sys.stdin.buffer.read(1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
