"""What the tests let a child process do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from reconflow.errors import CalibrationAmbiguousError
from reconflow.stage_child import Channel


def count(arguments: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Count and say so, with noise on both standard streams."""
    print("noise that is no message")
    os.write(1, b"noise from a library\n")
    for step in range(arguments["steps"]):
        channel.progress(step + 1, arguments["steps"], f"step {step + 1}")
    channel.tell(colour="blue")
    return {"sum": sum(range(arguments["steps"])), "pid": os.getpid(), "group": os.getpgrp()}


def fail(arguments: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Fail in the way asked for."""
    match arguments["how"]:
        case "on purpose":
            raise CalibrationAmbiguousError("Two answers.", suggestion="Give the field of view.", answers=[30, 60])
        case "unforeseen":
            raise KeyError("secret/path")
        case "memory":
            raise MemoryError
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "aborted":
            os.abort()
        case "silently":
            print("last words", file=sys.stderr)
            os._exit(3)
    return {}


def fill_memory(arguments: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Use a lot of memory."""
    block = bytearray(os.urandom(1)) * arguments["bytes"]
    return {"bytes": len(block)}


def linger(arguments: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Start a process, name both, and never come to an end by itself."""
    if arguments["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    channel.tell(pids=[os.getpid(), sleeper.pid])
    channel.progress(1, 2, "lingering")
    time.sleep(300)
    return {}
