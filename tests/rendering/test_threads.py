from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
from render_shapes import bumpy_sphere, look_from

from reconflow.parallel import run_jobs
from reconflow.rendering.raster import rasterize_view

SCRIPT = Path(__file__).with_name("digest_of_everything.py")


def digest_with(threads: int) -> list[str]:
    """Run the script in a fresh process with that many threads; returns (numba threads, torch threads, digest)."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_one_and_two_threads_give_the_same_bytes_in_fresh_processes() -> None:
    one, two = digest_with(1), digest_with(2)
    assert one[:2] == ["1", "1"]
    assert two[:2] == ["2", "2"]
    assert one[2] == two[2]


def test_views_may_be_rendered_from_several_threads_at_once() -> None:
    vertices, faces = bumpy_sphere(3)
    camera = look_from((1.0, 0.2, 0.3), 3.5, 64)
    expected = rasterize_view(vertices, faces, camera)
    found: list[bytes] = []
    callers = [
        threading.Thread(target=lambda: found.append(rasterize_view(vertices, faces, camera).bary.tobytes()))
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert set(found) == {expected.bary.tobytes()}
    assert len(found) == 8


def test_the_first_error_of_a_job_is_raised() -> None:
    def fail() -> None:
        raise ArithmeticError("from a job")

    with pytest.raises(ArithmeticError, match="from a job"):
        run_jobs([fail, lambda: None], threads=2)


def test_jobs_run_whatever_the_number_of_threads() -> None:
    assert numba.get_num_threads() >= 1
    for threads in (1, 2, 5):
        done = np.zeros(4)
        run_jobs([partial(np.put, done, k, k + 1) for k in range(4)], threads=threads)
        assert done.tolist() == [1, 2, 3, 4]
