"""Running compiled kernels on several cores; how many and where, never what. No kernel lives here.

The kernels of this package are serial Numba functions that release the interpreter's lock, and this module spreads
them over plain Python threads. That is safe from any thread and after a fork or spawn, which none of Numba's own
threading layers is on every platform. Jobs must write disjoint outputs: then the result cannot depend on the number
of threads.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numba

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def thread_count() -> int:
    """Return how many threads kernels may use: Numba's setting (`NUMBA_NUM_THREADS`, `numba.set_num_threads`)."""
    return int(numba.get_num_threads())


def run_jobs(jobs: Sequence[Callable[[], None]], threads: int | None = None) -> None:
    """Run independent jobs and wait for all of them; the first error is raised.

    Args:
        jobs: Calls that write disjoint outputs.
        threads: Threads to use; None takes `thread_count()`. One thread runs the jobs in order, in the caller.
    """
    threads = min(thread_count() if threads is None else threads, len(jobs))
    if threads <= 1:
        for job in jobs:
            job()
        return
    futures = [_pool(threads).submit(job) for job in jobs]
    for future in futures:
        future.result()


def row_bands(rows: int, bands: int) -> list[tuple[int, int]]:
    """Split `rows` rows into at most `bands` contiguous, non-empty ranges (start, stop)."""
    bands = max(1, min(bands, rows))
    edges = [rows * k // bands for k in range(bands + 1)]
    return list(itertools.pairwise(edges))


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return this process's pool of that size; a forked child makes its own."""
    with _lock:
        key = (os.getpid(), threads)
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="rendering")
        return _pools[key]
