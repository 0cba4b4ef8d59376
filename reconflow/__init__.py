"""reconflow: six views of an object in, a measured, textured 3D mesh out.

    from reconflow import reconstruct_folder

    result = reconstruct_folder("samples/lantern", "out", preset="draft")
    print(result.status, result.psnr_db, result.mesh)

This package is the library: it computes, and imports no Prefect. Orchestration lives in `flows/` and `tasks/`.
Importing it is light; the numeric packages come with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reconflow.api import reconstruct_folder
    from reconflow.datasets.loading import load_dataset, validate_dataset
    from reconflow.stage_results import RunSummary

__version__ = "0.1.0"
__all__ = ["RunSummary", "__version__", "load_dataset", "reconstruct_folder", "validate_dataset"]

_MODULE_OF = {
    "RunSummary": "reconflow.stage_results",
    "load_dataset": "reconflow.datasets.loading",
    "reconstruct_folder": "reconflow.api",
    "validate_dataset": "reconflow.datasets.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
