"""Run every benchmark with its defaults: `python -m benchmarks`; one alone: `python -m benchmarks.NAME`.

A module takes part by having `main(argv)`. Modules whose names start with an underscore are helpers.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> int:
    """Run the benchmarks in alphabetical order, each under its name."""
    for module in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda found: found.name):
        if module.name.startswith("_"):
            continue
        print(f"== {module.name}", flush=True)
        importlib.import_module(f"benchmarks.{module.name}").main([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
