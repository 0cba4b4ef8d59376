"""Small runs to store: a few files and a real manifest, no reconstruction."""

from __future__ import annotations

from pathlib import Path

from reconflow.outputs.package import RunStatus, write_package
from reconflow.outputs.runs import RunLayout
from reconflow.storage import ArtifactStore, Workspace

FILES = {"nvdiffrec/mesh.glb": b"glTF" + bytes(range(256)) * 40, "run.json": b"{}\n", "report.html": b"<p>report</p>\n"}


def write_run(store: ArtifactStore, run_id: str, files: dict[str, bytes] | None = None) -> Workspace:
    """Write a run's files and manifest into its workspace, unpublished."""
    workspace = store.open_workspace(run_id)
    for name, content in (FILES if files is None else files).items():
        path = workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_package(RunLayout(workspace.root, run_id), None, status=RunStatus.FAILED)
    return workspace


def publish_run(store: ArtifactStore, run_id: str, files: dict[str, bytes] | None = None) -> None:
    """Write a run, publish it, and drop the workspace."""
    workspace = write_run(store, run_id, files)
    store.publish(workspace)
    store.discard_work(workspace)


def written(folder: Path, **contents: bytes) -> dict[str, Path]:
    """Write files and return their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    return paths
