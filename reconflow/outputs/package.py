"""The package of a run: everything in one zip, and the manifest that makes a result exist. Writes no result itself.

Order matters: files first, then the zip, the manifest last. A run without a manifest has no result for any reader.
The manifest holds nothing that differs between two equal runs, apart from the hashes of the files that do
(`runs.VARYING_FILES`, marked there) and of the zip that contains them. The zip carries a manifest of its own, which
lists everything but the zip.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Final

from pydantic import BaseModel, Field, ValidationError

from reconflow import __version__
from reconflow.errors import IncompleteResultsError, JobNotReadyError
from reconflow.outputs.files import replacing, sha256_of, write_bytes
from reconflow.outputs.runs import VARYING_FILES, RunLayout

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
_LIBRARIES: Final = ("numpy", "numba", "scipy", "scikit-image", "pillow", "torch")
_COMPRESSED_SUFFIXES: Final = {".png", ".webp", ".jpg", ".glb", ".zip"}
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
_FILE_MODE: Final = 0o100644 << 16
_CHUNK_BYTES: Final = 1 << 20


class RunStatus(StrEnum):
    """Whether the run reached its end; quality is another matter, see `quality.json`."""

    COMPLETED = "completed"
    FAILED = "failed"


class ScaleSource(StrEnum):
    """What a unit of the mesh is."""

    UNIT_RADIUS = "unit_radius"
    """The scale is unknown; the farthest vertex is at distance 1 from the origin."""
    DATASET = "dataset"
    """The unit of the supplied transforms.json."""
    METRES = "metres"
    """Metres, from a given object size."""


UNIT_TEXT: Final = {
    ScaleSource.UNIT_RADIUS: "1 unit = distance of the farthest vertex from the origin; the real scale is unknown",
    ScaleSource.DATASET: "1 unit = 1 unit of the supplied transforms.json",
    ScaleSource.METRES: "1 unit = 1 metre",
}
"""The sentence for files and reports."""

_AXES: Final = "right-handed, +y up, object's front towards +z; cameras OpenGL (x right, y up, looking along -z)"
_COLOUR_SPACES: Final = {
    "texture_kd.png": "sRGB",
    "mesh.glb base colour": "sRGB",
    "mesh.ply vertex colours": "sRGB",
    "previews": "sRGB",
}
_GAUSSIANS: Final = "gaussians.ply"


class FileEntry(BaseModel, frozen=True, extra="forbid"):
    """One file of the run."""

    path: str = Field(description="Relative to the run's folder, with forward slashes.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Of the content, hex.")
    varies: bool = Field(default=False, description="Whether the content differs between two equal runs.")


class ManifestFacts(BaseModel, frozen=True, extra="forbid"):
    """What the manifest says besides the files; the caller knows it."""

    model: str = Field(description="The model that made the result.")
    scale: ScaleSource = Field(description="What a unit of the mesh is.")
    world_up: str = Field(default="+y", description="The up axis of the supplied cameras' world.")
    options: dict[str, Any] = Field(description="The options of the run, all of them.")
    seed: int = Field(description="The seed of every random choice.")
    engines: dict[str, str] = Field(description="Which engine did what, e.g. device: cpu, rendering: numba.")
    photo_shifts: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="By view, how far the photo lies off its depth render: right, down, pixels; where measured.",
    )
    dataset_name: str = Field(description="The input folder's name.")
    dataset_digest: str = Field(description="SHA-256 over the input's content.")
    input_hashes: dict[str, str] = Field(description="SHA-256 of every input file.")
    licences: dict[str, str] = Field(default_factory=dict, description="What touched the asset, under which licence.")
    weights: dict[str, str] = Field(
        default_factory=dict, description="By model that has weights, a digest of them; `random ...` for random ones."
    )
    notes: tuple[str, ...] = Field(default=(), description="What the models say of their results.")


class RunSource(BaseModel, frozen=True, extra="forbid"):
    """What a run was made from: enough to tell, without opening a picture, whether it would be made the same again."""

    location: str = Field(description="The dataset: an s3:// address, or a digest of the folder's path.")
    listing: str = Field(description="The dataset's listing digest, taken before it was read; empty when unknown.")
    options: dict[str, Any] = Field(description="The request, all of it but dataset and output.")
    model_versions: dict[str, str] = Field(default_factory=dict, description="By model, of those that were loaded.")


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The content of `manifest.json`."""

    format_version: int = FORMAT_VERSION
    status: RunStatus
    source: RunSource | None = Field(default=None, description="None in runs of versions that did not record it.")
    facts: ManifestFacts | None = Field(description="None when the run failed before they were known.")
    unit: str
    axes: str = _AXES
    colour_spaces: dict[str, str]
    versions: dict[str, str]
    files: tuple[FileEntry, ...]


def write_package(
    layout: RunLayout,
    facts: ManifestFacts | None,
    *,
    status: RunStatus = RunStatus.COMPLETED,
    source: RunSource | None = None,
    others: Sequence[RunLayout] = (),
) -> Manifest:
    """Zip everything in the run's folder, then write the manifest.

    The zip is written piece by piece; the same files give the same bytes. Hidden files and unfinished ones
    (`.name.xyz.part`) are not part of a run.

    Args:
        layout: The run; its files are complete.
        facts: Everything else the manifest says; None when the run failed before it was known.
        status: Of the run.
        source: What the run was made from.
        others: The layouts of further models of the run, whose results are expected as well.

    Raises:
        IncompleteResultsError: A completed run lacks one of the files that every result has.
        DiskFullError: There is no room.
    """
    if status is RunStatus.COMPLETED:
        for expected in (layout, *others):
            _expect_results(expected)
    layout.manifest.unlink(missing_ok=True)
    paths = _run_files(layout)
    entries = tuple(_entry(layout.root, path) for path in paths)
    inner = _manifest(status, facts, entries, source)
    with replacing(layout.archive) as stream:
        _write_zip(stream, layout.root, paths, _manifest_bytes(inner))
    archive = _entry(layout.root, layout.archive, varies=True)
    outer = inner.model_copy(update={"files": (*entries, archive)})
    write_bytes(layout.manifest, _manifest_bytes(outer))
    return outer


def read_manifest(root: Path) -> Manifest:
    """Read a run's manifest.

    Raises:
        JobNotReadyError: There is none: the run has no result yet.
        IncompleteResultsError: It cannot be read.
    """
    try:
        return Manifest.model_validate_json((root / MANIFEST_NAME).read_bytes())
    except FileNotFoundError as error:
        raise JobNotReadyError(
            "The run has no manifest, so it has no result yet.",
            suggestion="Wait for the run to finish, or look at its state.",
        ) from error
    except (ValidationError, ValueError) as error:
        raise IncompleteResultsError(
            "The run's manifest cannot be read.",
            suggestion="Fetch the run again, or repeat it.",
            file=MANIFEST_NAME,
        ) from error


def verify_package(root: Path) -> Manifest:
    """Check every file of a run against its manifest and return that.

    Raises:
        JobNotReadyError: There is no manifest.
        IncompleteResultsError: Files are missing or changed; `details` names all of them.
    """
    manifest = read_manifest(root)
    faults: dict[str, str] = {}
    base = root.resolve()
    for entry in manifest.files:
        path = root / entry.path
        if not path.resolve().is_relative_to(base):
            faults[entry.path] = "lies outside of the run"
        elif not path.is_file():
            faults[entry.path] = "is missing"
        elif path.stat().st_size != entry.size:
            faults[entry.path] = f"has {path.stat().st_size} bytes instead of {entry.size}"
        elif sha256_of(path) != entry.sha256:
            faults[entry.path] = "has another content"
    if faults:
        listed = "; ".join(f"{name} {fault}" for name, fault in faults.items())
        raise IncompleteResultsError(
            f"{len(faults)} of {len(manifest.files)} files are not what the manifest says: {listed}.",
            suggestion="Fetch the run again, or repeat it.",
            files=faults,
        )
    return manifest


def _expect_results(layout: RunLayout) -> None:
    needed = (
        layout.glb,
        layout.obj,
        layout.mtl,
        layout.ply,
        layout.texture_kd,
        layout.quality,
        layout.turntable,
        layout.transforms,
        layout.report,
        layout.run,
    )
    missing = [path.relative_to(layout.root).as_posix() for path in needed if not path.is_file()]
    if missing:
        raise IncompleteResultsError(
            f"The result lacks {', '.join(missing)}.",
            suggestion="Run the reconstruction again.",
            missing=missing,
        )


def _run_files(layout: RunLayout) -> list[Path]:
    """Return the run's files, sorted by their path; not the zip, the manifest, or hidden files."""
    skipped = {layout.archive, layout.manifest}
    found = (
        path
        for path in layout.root.rglob("*")
        if path.is_file()
        and path not in skipped
        and not any(part.startswith(".") for part in path.relative_to(layout.root).parts)
    )
    return sorted(found, key=lambda path: path.relative_to(layout.root).as_posix())


def _entry(root: Path, path: Path, *, varies: bool = False) -> FileEntry:
    name = path.relative_to(root).as_posix()
    return FileEntry(
        path=name, size=path.stat().st_size, sha256=sha256_of(path), varies=varies or path.name in VARYING_FILES
    )


def _manifest(
    status: RunStatus, facts: ManifestFacts | None, entries: tuple[FileEntry, ...], source: RunSource | None
) -> Manifest:
    gaussians = {_GAUSSIANS: "sRGB"} if any(Path(entry.path).name == _GAUSSIANS for entry in entries) else {}
    return Manifest(
        status=status,
        source=source,
        facts=facts,
        unit=UNIT_TEXT[facts.scale] if facts is not None else "unknown",
        colour_spaces=_COLOUR_SPACES | gaussians,
        versions=_versions(),
        files=entries,
    )


def _versions() -> dict[str, str]:
    versions = {"reconflow": __version__}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def _manifest_bytes(manifest: Manifest) -> bytes:
    content: Mapping[str, Any] = manifest.model_dump(mode="json")
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _write_zip(stream: IO[bytes], root: Path, paths: list[Path], manifest: bytes) -> None:
    with zipfile.ZipFile(stream, "w", allowZip64=True) as archive:
        for path in paths:
            info = _zip_info(path.relative_to(root).as_posix())
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
        archive.writestr(_zip_info(MANIFEST_NAME), manifest)


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
    info.external_attr = _FILE_MODE
    info.create_system = 3
    stored = Path(name).suffix in _COMPRESSED_SUFFIXES
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    return info
