"""Starting and keeping workers: what is examined first, which processes there are, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.doctor import Needs, examine_machine
from flows.worker_command import make_specs
from flows.worker_supervisor import Supervisor, WorkerSpec
from reconflow.gpus import Gpu

GIB = 1 << 30
FOREVER = "import time; time.sleep(300)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
)
WITH_A_RUN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({s})'])"


def gpu(index: int, free_gib: float) -> Gpu:
    """Return a GPU of 24 GiB."""
    return Gpu(index, f"GPU-{index}", "Test", "570.1", 24 * GIB, int(free_gib * GIB))


def gpu_findings(monkeypatch: pytest.MonkeyPatch, present: list[Gpu], **needs: object) -> dict[str, str | None]:
    """Return the codes of what is found about GPUs; None for what is well."""
    from flows import doctor

    monkeypatch.setattr("reconflow.gpus.list_gpus", lambda: tuple(present))
    findings = doctor.examine_gpus(Needs(device="cuda", **needs))  # type: ignore[arg-type]
    assert all(bool(finding.suggestion) is not finding.ok for finding in findings)
    return {finding.what: finding.code for finding in findings}


def test_a_machine_without_gpus_is_no_gpu_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_findings(monkeypatch, []) == {"GPU": "GPU_UNAVAILABLE"}


def test_every_gpu_that_is_meant_must_exist_and_have_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [gpu(0, 20), gpu(1, 11.9)]
    assert gpu_findings(monkeypatch, gpus) == {"GPU 0": None, "GPU 1": "GPU_UNAVAILABLE"}
    assert gpu_findings(monkeypatch, gpus, gpu_memory_gb=11.5) == {"GPU 0": None, "GPU 1": None}
    assert gpu_findings(monkeypatch, gpus, gpus=(0,)) == {"GPU 0": None}
    assert gpu_findings(monkeypatch, gpus, gpus=(0, 3)) == {"GPU 0": None, "GPU 3": "GPU_UNAVAILABLE"}


def test_a_gpu_that_is_lost_is_missed_when_it_is_known_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [gpu(0, 20), gpu(1, 20)]
    assert gpu_findings(monkeypatch, gpus, gpu_count=2) == {"GPU 0": None, "GPU 1": None}
    assert gpu_findings(monkeypatch, gpus[:1], gpu_count=2) == {"GPU 0": None, "GPUs": "GPU_UNAVAILABLE"}
    assert gpu_findings(monkeypatch, gpus[:1]) == {"GPU 0": None}


def test_too_little_disk_and_memory_and_a_place_that_cannot_be_written_each_have_their_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    needs = Needs(out=str(tmp_path / "file"), memory_gb=1e6, disk_gb=1e9)
    codes = {finding.what: finding.code for finding in examine_machine(needs) if not finding.ok}
    assert codes == {
        "free memory": "MEMORY_EXHAUSTED",
        "free disk": "DISK_FULL",
        "place for results": "STORAGE_UNREACHABLE",
    }


def test_one_worker_per_gpu_sees_that_gpu_alone_and_takes_one_run() -> None:
    specs = make_specs(Needs(device="cuda", gpus=(0, 2)), "gpu", 5, {"PATH": "/bin"})
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["0", "2"]
    for spec in specs:
        assert spec.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert spec.environment["RECONFLOW_DEVICE"] == "cuda"
        assert spec.command[spec.command.index("--limit") + 1] == "1"
        assert spec.environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert len({spec.name for spec in specs}) == 2


def test_on_the_cpu_short_runs_have_a_worker_of_their_own_and_no_gpu_is_seen() -> None:
    specs = make_specs(Needs(device="cpu"), "cpu", 2, {"PATH": "/bin"})
    queues = [spec.command[spec.command.index("--work-queue") + 1] for spec in specs]
    limits = [spec.command[spec.command.index("--limit") + 1] for spec in specs]
    assert list(zip(queues, limits, strict=True)) == [("default", "2"), ("control", "8"), ("cancel", "8")]
    assert {spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs} == {""}
    assert {spec.environment["RECONFLOW_DEVICE"] for spec in specs} == {"cpu"}


@pytest.mark.parametrize("gpus", ["", "0,,1", "a", "-1", "1,1"])
def test_a_list_of_gpus_that_is_none_is_refused(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli import app

    answer = CliRunner().invoke(app, ["worker", "--device", "cuda", "--gpus", gpus])
    assert answer.exit_code == 1
    assert "VALIDATION_FAILED" in answer.output


@pytest.mark.parametrize("option", [("--gpus", "0"), ("--gpu-count", "1")])
def test_the_cpu_has_no_gpus_to_choose(option: tuple[str, str]) -> None:
    from flows.cli import app

    answer = CliRunner().invoke(app, ["worker", "--device", "cpu", *option])
    assert answer.exit_code == 1
    assert f"{option[0]} means nothing" in answer.output


def test_a_worker_is_not_started_without_the_weights_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import app

    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "cache"))
    options = ["--device", "cpu", "--out", str(tmp_path), "--model", "both", "--min-free-disk-gb", "0"]
    answer = CliRunner().invoke(app, ["worker", *options])
    assert answer.exit_code == 1
    assert "WEIGHTS_MISSING" in answer.output
    assert "reconflow weights fetch" in answer.output


def test_a_worker_is_not_started_without_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli import app

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    answer = CliRunner().invoke(app, ["worker", "--device", "cpu", "--out", str(tmp_path), "--min-free-disk-gb", "0"])
    assert answer.exit_code == 1
    assert "No Prefect server is configured" in answer.output
    assert "No worker was started" in answer.output


def spec(script: str, name: str = "worker") -> WorkerSpec:
    """Return a worker that executes a script."""
    return WorkerSpec(name, [sys.executable, "-c", script], dict(os.environ))


@contextmanager
def signalling_after(seconds: float, times: int = 1) -> Iterator[None]:
    """Send this process SIGTERM after a while."""

    def send() -> None:
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


def started(lines: list[str]) -> list[int]:
    """Return the process ids of the workers that were started."""
    return [int(line.rsplit(" ", 1)[1].rstrip(".")) for line in lines if ": started" in line]


def is_running(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")


def test_a_signal_stops_all_workers() -> None:
    lines: list[str] = []
    with signalling_after(1.0):
        Supervisor([spec(FOREVER, "a"), spec(FOREVER, "b")], lines.append).run()
    pids = started(lines)
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_a_worker_that_dies_is_started_again_after_growing_pauses() -> None:
    lines: list[str] = []
    with signalling_after(5.0):
        Supervisor([spec("raise SystemExit(3)")], lines.append).run()
    ends = [line for line in lines if "ended with 3" in line]
    assert [line.rsplit("in ", 1)[1] for line in ends[:3]] == ["1 s.", "2 s.", "4 s."]
    assert len(started(lines)) >= 2


def test_a_worker_that_does_not_stop_is_killed_with_its_runs() -> None:
    lines: list[str] = []
    with signalling_after(1.5):
        Supervisor([spec(WITH_A_RUN.format(s=300) + "\n" + STUBBORN)], lines.append, stop_timeout_s=1.0).run()
    (pid,) = started(lines)
    listing = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    states = [state for group, state in map(str.split, listing.splitlines()) if int(group) == pid]
    assert all(state.startswith("Z") for state in states)


def test_a_second_signal_does_not_wait() -> None:
    lines: list[str] = []
    began = time.monotonic()
    with signalling_after(1.0, times=2):
        Supervisor([spec(STUBBORN)], lines.append, stop_timeout_s=60.0).run()
    assert time.monotonic() - began < 30
    assert not is_running(started(lines)[0])


def test_a_run_that_outlives_its_worker_finishes_before_the_next_worker_starts() -> None:
    lines: list[str] = []
    script = WITH_A_RUN.format(s=4) + "\nraise SystemExit(1)"
    with signalling_after(4.0):
        Supervisor([spec(script)], lines.append).run()
    assert len(started(lines)) == 1
    assert any("its run goes on" in line for line in lines)
