"""What a benchmark needs beyond the core installation, and what it says where that is missing."""

from __future__ import annotations

import importlib.util


def lacks(*modules: str) -> bool:
    """Return whether one of these modules is not installed, and say in a line which, and how to get them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        print(f"Left out without {', '.join(missing)}: pip install -e '.[dev,s3,bench]' -c constraints.txt", flush=True)
    return bool(missing)
