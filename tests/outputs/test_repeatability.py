"""Everything that is written repeats byte for byte in fresh processes, whatever the number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
import numba
numba.set_num_threads(int(sys.argv[1]))
from tests.outputs.finished_run import write_run
from tests.outputs.objects import labelled_box
from reconflow.outputs.files import sha256_of
layout = write_run(Path(sys.argv[2]), "abcd1234", labelled_box(2), seconds=1.0)
for path in sorted(p for p in layout.root.rglob("*") if p.is_file()):
    print(path.relative_to(layout.root), sha256_of(path))
"""


@pytest.mark.slow
def test_files_are_equal_at_one_and_at_two_threads(tmp_path: Path) -> None:
    listings = []
    for threads in ("1", "2"):
        environment = {
            **os.environ,
            "NUMBA_NUM_THREADS": threads,
            "PYTHONHASHSEED": threads,
            "OMP_NUM_THREADS": threads,
        }
        command = [sys.executable, "-c", SCRIPT, threads, str(tmp_path / threads)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=True)
        listings.append(done.stdout)
    assert "mesh.glb" in listings[0]
    assert "quality.json" in listings[0]
    assert listings[0] == listings[1]
