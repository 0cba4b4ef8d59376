"""A function in a process group of its own: what comes back, how it fails, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reconflow import child_process
from reconflow.child_process import run_in_child
from reconflow.errors import CalibrationAmbiguousError, Cancelled, ErrorCode, ReconflowError
from reconflow.resources import peak_rss_bytes, rss_bytes

FUNCTIONS = "tests.stages.child_functions"
ROOT = Path(__file__).resolve().parents[2]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def expect_gone(pids: list[int], patience_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while any(map(is_alive, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_alive(pid)]


def test_result_progress_and_events_come_back_and_noise_does_not_matter() -> None:
    heard: list[tuple[int, int, str]] = []
    events: list[dict[str, Any]] = []
    result = run_in_child(f"{FUNCTIONS}:count", {"steps": 3}, lambda *report: heard.append(report), events.append)
    assert result["sum"] == 3
    assert result["pid"] == result["group"] != os.getpid()
    assert [report for report in heard if report[1] == 3] == [(k, 3, f"step {k}") for k in (1, 2, 3)]
    assert events == [{"colour": "blue"}]


def test_an_error_keeps_its_type_its_facts_and_where_it_was_raised() -> None:
    with pytest.raises(CalibrationAmbiguousError) as caught:
        run_in_child(f"{FUNCTIONS}:fail", {"how": "on purpose"})
    error = caught.value
    assert (error.code, error.message, error.suggestion) == (
        "CALIBRATION_AMBIGUOUS", "Two answers.", "Give the field of view.",
    )  # fmt: skip
    assert error.details == {"answers": [30, 60]}
    assert not error.retryable
    assert "child_functions.py" in str(error.__cause__)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("unforeseen", ErrorCode.UNKNOWN_ERROR),
        ("memory", ErrorCode.MODEL_OOM),
        ("killed", ErrorCode.MODEL_OOM),
        ("aborted", ErrorCode.MODEL_FAILED),
        ("silently", ErrorCode.MODEL_FAILED),
    ],
)
def test_however_a_child_ends_there_is_a_code_and_a_way_out(how: str, code: ErrorCode) -> None:
    with pytest.raises(ReconflowError) as caught:
        run_in_child(f"{FUNCTIONS}:fail", {"how": how})
    assert caught.value.code is code
    assert caught.value.suggestion
    assert "secret" not in caught.value.message
    if how == "silently":
        assert "last words" in str(caught.value.__cause__)
        assert "exit status 3" in caught.value.message


def test_its_memory_is_back_afterwards() -> None:
    before = rss_bytes()
    assert run_in_child(f"{FUNCTIONS}:fill_memory", {"bytes": 400_000_000})["bytes"] == 400_000_000
    assert rss_bytes() - before < 40_000_000


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("stop", [Cancelled("Enough.", suggestion="Stop."), KeyboardInterrupt()])
def test_stopping_ends_the_child_and_what_it_started(
    stubborn: bool, stop: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "STOP_GRACE_S", 0.5)
    pids: list[int] = []
    calls = 0

    def stop_when_silent(step: int, total: int, message: str) -> None:
        nonlocal calls
        calls += message == "lingering"
        if calls == 2:  # the child said it once; the second time it is the parent that looks whether to stop
            raise stop

    started_s = time.monotonic()
    with pytest.raises(type(stop)):
        run_in_child(
            f"{FUNCTIONS}:linger", {"stubborn": stubborn}, stop_when_silent, lambda event: pids.extend(event["pids"])
        )
    assert len(pids) == 2
    expect_gone(pids)
    assert time.monotonic() - started_s < 30


PARENT = f"""
from reconflow.child_process import run_in_child
run_in_child("{FUNCTIONS}:linger", {{"stubborn": True}}, on_event=lambda event: print(*event["pids"], flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_does_not_outlive_its_parent(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(text) for text in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(number)
        parent.wait(10)
    expect_gone(pids[:1])
    os.kill(pids[1], signal.SIGKILL) if is_alive(pids[1]) else None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count from the start of the program")
def test_a_process_does_not_count_the_memory_of_the_one_that_started_it() -> None:
    script = "from reconflow.resources import peak_rss_bytes; print(peak_rss_bytes())"
    large = np.ones(60_000_000)  # 480 MB
    told = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert int(told) < large.nbytes < peak_rss_bytes()
