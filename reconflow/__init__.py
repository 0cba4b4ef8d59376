"""reconflow: six views of an object in, a measured, textured 3D mesh out.

This package is the library: it computes, and imports no Prefect. Orchestration lives in `flows/` and `tasks/`.
"""

__version__ = "0.1.0"
