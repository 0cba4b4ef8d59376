"""Run every benchmark with its defaults: `python -m benchmarks`; one alone: `python -m benchmarks.NAME`.

A module takes part by having `main(argv)`, which returns nothing or 0 when all is well. Modules whose names start with
an underscore are helpers. The whole takes about an hour. One that
fails does not keep the others from running; the exit status says so.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the benchmarks in alphabetical order, each under its name and in a process of its own."""
    failed = []
    for module in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda found: found.name):
        if module.name.startswith("_"):
            continue
        print(f"== {module.name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{module.name}"], cwd=ROOT, check=False).returncode:
            failed.append(module.name)
    print(f"failed: {', '.join(failed)}" if failed else "== all done", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
