"""What orchestration costs: `reconflow run` and a bare Prefect flow, each in a fresh home, less what the stages took.

    python -m benchmarks.flow_overhead [--dataset DIR] [--rounds 3]

The variants alternate. `stock prefect` is seven empty tasks on Prefect's own temporary server, which is what a flow
gets with nothing configured. Wall times mean something on a quiet machine only; the load average is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SMALL_RUN = ("--preset", "draft", "--steps", "1", "--texture-size", "128", "--faces", "1500", "--json")
_STOCK_FLOW = """
from prefect import flow, task

@task
def stage(number):
    return number

@flow
def stages():
    for number in range(7):
        stage(number)

stages()
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of one command, wall and CPU of all its processes, and the share of both that stages took."""

    wall_s: float
    cpu_s: float
    stages_wall_s: float = 0.0
    stages_cpu_s: float = 0.0

    @property
    def overhead_wall_s(self) -> float:
        """Wall time that was not spent in stages."""
        return self.wall_s - self.stages_wall_s

    @property
    def overhead_cpu_s(self) -> float:
        """CPU time that was not spent in stages."""
        return self.cpu_s - self.stages_cpu_s


def measure(command: list[str], home: Path) -> Cost:
    """Run a command with an empty Prefect home and take its time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {
        **kept,
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    wall_s, after = time.perf_counter() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if not finished.stdout.startswith("{"):
        return Cost(wall_s, cpu_s)
    stages = json.loads((Path(json.loads(finished.stdout)["location"]) / "run.json").read_text("utf-8"))["stages"]
    return Cost(wall_s, cpu_s, sum(stage["seconds"] for stage in stages), sum(stage["cpu_seconds"] for stage in stages))


def measure_round(dataset: Path, folder: Path) -> dict[str, Cost]:
    """Measure every variant once."""
    run = [sys.executable, "-m", "flows.reconstruct", str(dataset), *_SMALL_RUN]
    stock = [sys.executable, "-c", _STOCK_FLOW]
    ours, plain = str(folder / "ours"), str(folder / "plain")
    return {
        "reconflow run, first": measure([*run, "--out", ours], folder / "unused"),
        "reconflow run, later": measure([*run, "--out", ours], folder / "unused"),
        "reconflow run --no-prefect": measure([*run, "--out", plain, "--no-prefect"], folder / "unused"),
        "stock prefect, first": measure(stock, folder / "stock"),
        "stock prefect, later": measure(stock, folder / "stock"),
    }


def main(argv: list[str] | None = None) -> None:
    """Print medians of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=ROOT / "samples" / "lantern")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    costs: dict[str, list[Cost]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            for variant, cost in measure_round(options.dataset.resolve(), Path(folder)).items():
                costs.setdefault(variant, []).append(cost)
    print(f"{'seconds':28}{'wall':>8}{'of it not in stages':>22}{'CPU':>8}{'of it not in stages':>22}")
    for variant, found in costs.items():
        wall, wall_over, cpu, cpu_over = (
            statistics.median(values)
            for values in (
                [cost.wall_s for cost in found],
                [cost.overhead_wall_s for cost in found],
                [cost.cpu_s for cost in found],
                [cost.overhead_cpu_s for cost in found],
            )
        )
        print(f"{variant:28}{wall:8.1f}{wall_over:22.1f}{cpu:8.1f}{cpu_over:22.1f}")
    print(f"rounds {options.rounds}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
