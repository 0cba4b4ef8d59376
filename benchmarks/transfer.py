"""Moving one large file to and from an S3 server: ours, boto3's own transfer and s3fs, in turn, each in a process.

    python -m benchmarks.transfer [--mb 256] [--rounds 3]

The server is moto's, in a process of its own, and shares the machine with the clients; a larger part of the wall time
is the server's. CPU seconds and the growth of peak memory are the client's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks._extras import lacks
from reconflow.resources import MIB, peak_rss_bytes

BUCKET = "benchmark"
VARIANTS = ("ours", "boto3", "s3fs")


def ours(path: Path, key: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return how this project sends and fetches a file; both check its SHA-256."""
    from reconflow.outputs.files import sha256_of
    from reconflow.storage import open_bucket
    from reconflow.storage.transfer import Download, Upload, download_files, upload_files

    _, bucket = open_bucket(f"s3://{BUCKET}")
    _ = bucket.client
    sha256 = sha256_of(path)
    return (
        lambda: upload_files(bucket, [Upload(path, key, sha256)]),
        lambda: download_files(bucket, [Download(key, path.with_suffix(".back"), sha256)]),
    )


def boto3_transfer(path: Path, key: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return how boto3's `upload_file` and `download_file` do it."""
    import boto3

    client = boto3.client("s3")
    return (
        lambda: client.upload_file(str(path), BUCKET, key),
        lambda: client.download_file(BUCKET, key, str(path.with_suffix(".back"))),
    )


def s3fs_files(path: Path, key: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return how s3fs's `put_file` and `get_file` do it."""
    import s3fs

    files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    files.connect()
    return (
        lambda: files.put_file(str(path), f"{BUCKET}/{key}"),
        lambda: files.get_file(f"{BUCKET}/{key}", str(path.with_suffix(".back"))),
    )


PREPARE = {"ours": ours, "boto3": boto3_transfer, "s3fs": s3fs_files}


def measure(variant: str, path: Path) -> dict[str, float]:
    """Send and fetch a file in this process; return seconds, CPU seconds and MB of peak memory growth for each."""
    send, fetch = PREPARE[variant](path, f"{variant}.bin")
    measured = {}
    for name, work in (("up", send), ("down", fetch)):
        before, rss, started_s = resource.getrusage(resource.RUSAGE_SELF), peak_rss_bytes() / MIB, time.perf_counter()
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        measured[f"{name}_s"] = time.perf_counter() - started_s
        measured[f"{name}_cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured[f"{name}_mb"] = peak_rss_bytes() / MIB - rss
    path.with_suffix(".back").unlink()
    return measured


@contextmanager
def serving() -> Iterator[str]:
    """Run an S3 server in a process of its own; yields its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/").close()
                break
            except OSError:
                time.sleep(0.1)
        yield endpoint
    finally:
        server.terminate()
        server.wait()


def run_round(variant: str, path: Path, endpoint: str) -> dict[str, float]:
    """Measure one variant in a fresh process, and empty the server."""
    import boto3

    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="b", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket=BUCKET)
    command = [sys.executable, "-m", "benchmarks.transfer", "--measure", variant, str(path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    client.delete_object(Bucket=BUCKET, Key=f"{variant}.bin")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row per variant: medians, and the ratio of wall time to s3fs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return 0
    if lacks("moto", "boto3", "s3fs"):
        return 0
    rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, serving() as endpoint:
        path = Path(folder) / "mesh.bin"
        block = os.urandom(1 << 20)
        with path.open("wb") as stream:
            for _ in range(arguments.mb):
                stream.write(block)
        for _ in range(arguments.rounds):
            for variant in VARIANTS:
                rounds[variant].append(run_round(variant, path, endpoint))
    print(f"{arguments.mb} MB, median of {arguments.rounds}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("        ------------- up -------------   ------------ down ------------")
    print("           s  of s3fs   CPU s  peak MB      s  of s3fs   CPU s  peak MB")
    for variant in VARIANTS:
        cells = [_cells(rounds, variant, way) for way in ("up", "down")]
        print(f"{variant:6}  {'   '.join(cells)}")
    return 0


def _cells(rounds: dict[str, list[dict[str, float]]], variant: str, way: str) -> str:
    def median(who: str, what: str) -> float:
        return statistics.median(measured[f"{way}_{what}"] for measured in rounds[who])

    ratio = median(variant, "s") / median("s3fs", "s")
    most_mb = max(measured[f"{way}_mb"] for measured in rounds[variant])
    return f"{median(variant, 's'):5.1f}  {ratio:7.2f}  {median(variant, 'cpu_s'):6.1f}  {most_mb:7.0f}"


if __name__ == "__main__":
    sys.exit(main())
