"""One attempt at a run as a process of its own: the real pipeline on a small scale, to be killed, cancelled or cut off.

    python -m tests.support.attempt_process DATASET OUT RUN_ID STOP_FILE

Every message of its progress is a line of its output. It is cancelled when the stop file appears, as a run is whose
state has changed on a server. An error is told by its code.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from reconflow import pipeline, stages
from reconflow.errors import Cancelled, ReconflowError
from reconflow.request import RunRequest
from reconflow.storage import object_store, transfer

FAILED, CANCELLED = 1, 3
PART_BYTES = 64 << 10
"""Far below what it is in earnest, so that small results go up in parts like large ones."""


def main(dataset: str, out: str, run_id: str, stop_file: str) -> int:
    """Run all stages and return the exit status."""
    stages.write_turntable = partial(stages.write_turntable, frames=2, size=64)
    transfer.PART_BYTES = object_store.PART_BYTES = PART_BYTES
    stop = Path(stop_file)

    def report(step: int, total: int, message: str) -> None:
        if stop.exists():
            raise Cancelled("The run was cancelled.", suggestion="Start it again to go on.")
        print(message, flush=True)

    request = RunRequest(
        dataset=dataset, out=out, preset="draft", steps=12, resolution=96, texture_size=128, target_faces=1500
    )
    try:
        pipeline.run_pipeline(request, report, run_id=run_id)
    except ReconflowError as error:
        print(f"code: {error.code}", flush=True)
        return CANCELLED if isinstance(error, Cancelled) else FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
