"""How long the decision of `reprocess` takes over ten thousand datasets and manifests in an S3 server over HTTP.

    python -m benchmarks.reprocess_decisions [--datasets 10000]

The server is moto's, in a process of its own. `first` reads every manifest and writes the index, `later` goes by the
index; a tenth of the datasets have changed since. moto sorts all keys for every page of a listing, which makes long
listings grow with the square of their length, unlike in a real object store. Wall times mean something on a quiet
machine only; CPU seconds of both processes and the load average are printed beside them.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks._extras import lacks
from reconflow.datasets.sources import DatasetSource, find_datasets
from reconflow.outputs.package import FileEntry, Manifest, RunSource, RunStatus
from reconflow.outputs.runs import RUN_ID_LENGTH
from reconflow.reprocessing import count_verdicts, decide_all, wanted_of
from reconflow.request import RunRequest
from reconflow.run_records import RunRecord, read_records

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "benchmark"
VIEWS = ("front", "back", "left", "right", "top", "bottom")
FILES_PER_RUN = 27
Answer = TypeVar("Answer")


def serve(datasets: int) -> None:
    """Fill a server of moto's behind its back, which is quick, and serve until standard input ends."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for number in range(datasets):
        for folder in ("multi_views", "depth_renders"):
            for view in VIEWS:
                backend.put_object(BUCKET, f"data/object-{number:05}/{folder}/{view}.png", str(number).encode())
    print("{}:{}".format(*server.get_host_and_port()), flush=True)
    for line in sys.stdin:
        run_id, content = line.split(" ", 1)
        backend.put_object(BUCKET, f"out/runs/{run_id}/manifest.json", content.encode())
        print("stored", flush=True)


@contextmanager
def running_server(datasets: int) -> Iterator[subprocess.Popen[str]]:
    """Run the server, its address in the environment."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.reprocess_decisions", "--serve", str(datasets)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    address = next(line for line in process.stdout if line.count(":") == 1 and line[0].isdigit()).strip()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
    }
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def put_runs(server: subprocess.Popen[str], sources: list[DatasetSource], request: RunRequest) -> None:
    """Store a completed run of every dataset; a tenth of them saw other files."""
    assert server.stdin is not None
    assert server.stdout is not None
    wanted = wanted_of(request)
    entries = tuple(
        FileEntry(path=f"nvdiffrec/previews/file_{number}.png", size=1 << 20, sha256="0" * 64)
        for number in range(FILES_PER_RUN)
    )
    for number, source in enumerate(sources):
        origin = RunSource(
            location=source.location,
            listing="before" if number % 10 == 0 else source.listing,
            options=request.model_dump(mode="json", exclude={"dataset", "out"}),
            model_versions={name: version for name, version in wanted.versions.items() if name != "reconflow"},
        )
        manifest = Manifest(
            status=RunStatus.COMPLETED,
            source=origin,
            facts=None,
            unit="unknown",
            colour_spaces={},
            versions=wanted.versions,
            files=entries,
        )
        server.stdin.write(f"{number:0{RUN_ID_LENGTH}} {manifest.model_dump_json()}\n")
        server.stdin.flush()
        server.stdout.readline()


def cpu_s(server: subprocess.Popen[str]) -> tuple[float, float]:
    """Return the CPU seconds of this process and of the server so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return own.ru_utime + own.ru_stime, (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def timed(what: str, server: subprocess.Popen[str], work: Callable[[], Answer]) -> Answer:
    """Do something and print what it took."""
    began_s, before = time.perf_counter(), cpu_s(server)
    answer = work()
    wall_s, after = time.perf_counter() - began_s, cpu_s(server)
    print(f"{what:44}{wall_s:10.1f}{after[0] - before[0]:10.1f}{after[1] - before[1]:14.1f}", flush=True)
    return answer


def main(argv: list[str] | None = None) -> None:
    """Print what each part of the decision takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=10_000)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        serve(options.serve)
        return
    if lacks("moto", "boto3"):
        return
    data, out = f"s3://{BUCKET}/data", f"s3://{BUCKET}/out"
    request = RunRequest(dataset=data, out=out)
    print(f"{'seconds':44}{'wall':>10}{'CPU here':>10}{'CPU server':>14}")
    with running_server(options.datasets) as server:
        sources = timed(f"list {options.datasets} datasets of 12 files", server, lambda: find_datasets(data))
        put_runs(server, sources, request)
        reads: tuple[str, ...] = ("first", "later")
        for read in reads:
            records: list[RunRecord] = timed(
                f"read {len(sources)} manifests, {read}", server, lambda: read_records(out)
            )
        decisions = timed("decide", server, lambda: decide_all(sources, records, wanted_of(request)))
    print(count_verdicts(decisions))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
