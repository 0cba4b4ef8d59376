"""The names of everything a run stores, and of the run itself. Every path inside a run is built here, nowhere else."""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconflow.errors import JobNotFoundError, ValidationFailedError

RUN_ID_LENGTH: Final = 8
_RUN_ID_ALPHABET: Final = string.ascii_lowercase + string.digits
_RUN_ID_PATTERN: Final = re.compile(rf"[a-z0-9]{{{RUN_ID_LENGTH}}}")
_SAFE_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

VARYING_FILES: Final = frozenset({"run.json", "report.html", "error.json"})
"""Files whose content differs between two equal runs: they hold timings, the machine, identifiers."""


def new_run_id() -> str:
    """Return a fresh run identifier: 8 lower-case letters and digits, 41 bits from the system's random source."""
    return "".join(secrets.choice(_RUN_ID_ALPHABET) for _ in range(RUN_ID_LENGTH))


def is_run_id(text: str) -> bool:
    """Whether a text can be a run identifier."""
    return _RUN_ID_PATTERN.fullmatch(text) is not None


def check_run_id(text: str) -> str:
    """Return `text` when it can be a run identifier.

    Raises:
        JobNotFoundError: It cannot, so that no such run exists (nor can the text reach outside the artifact store).
    """
    if not is_run_id(text):
        raise JobNotFoundError(
            f"{text[:64]!r} is not a run id.",
            suggestion=f"A run id has {RUN_ID_LENGTH} lower-case letters and digits, like 3k9x0abz.",
            run_id=text[:64],
        )
    return text


def safe_name(text: str) -> str:
    """Return a view's or model's name as it may stand in a file name.

    Anything but letters, digits, `_` and `-` becomes `_`, so that OBJ references and zip entries need no quoting.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return name if _SAFE_NAME_PATTERN.fullmatch(name) else f"view{name}"


@dataclass(frozen=True)
class RunLayout:
    """Where the files of one run and one model stand.

    Attributes:
        root: The run's folder, `runs/<run-id>`.
        run_id: The run's identifier.
        model: The model's name, the sub-folder of its results.
        several: Whether the run has more models, so that each needs its own cameras (its mesh has its own scale) and
            its own report.
    """

    root: Path
    run_id: str
    model: str = "nvdiffrec"
    several: bool = False

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        if not _SAFE_NAME_PATTERN.fullmatch(self.model):
            raise ValidationFailedError(
                f"{self.model!r} cannot be a model's name.",
                suggestion="Use letters, digits, '_' and '-'.",
                model=self.model,
            )

    @property
    def model_dir(self) -> Path:
        """Folder of the model's results."""
        return self.root / self.model

    @property
    def glb(self) -> Path:
        """The textured mesh, binary glTF."""
        return self.model_dir / "mesh.glb"

    @property
    def obj(self) -> Path:
        """The textured mesh, Wavefront OBJ; refers to `mtl`."""
        return self.model_dir / "mesh.obj"

    @property
    def mtl(self) -> Path:
        """The OBJ's material; refers to `texture_kd`."""
        return self.model_dir / "mesh.mtl"

    @property
    def ply(self) -> Path:
        """The mesh with vertex colours, binary PLY."""
        return self.model_dir / "mesh.ply"

    @property
    def gaussians(self) -> Path:
        """The Gaussians of a model that makes them, PLY as splat viewers read it."""
        return self.model_dir / "gaussians.ply"

    @property
    def texture_kd(self) -> Path:
        """The base-colour texture, PNG, sRGB."""
        return self.model_dir / "texture_kd.png"

    @property
    def quality(self) -> Path:
        """The measured quality."""
        return self.model_dir / "quality.json"

    @property
    def previews(self) -> Path:
        """Folder of the pictures."""
        return self.model_dir / "previews"

    @property
    def turntable(self) -> Path:
        """The animated turntable, WebP."""
        return self.previews / "turntable.webp"

    def textured_preview(self, view: str) -> Path:
        """Picture of the textured mesh from one input camera, PNG."""
        return self.previews / f"textured_{safe_name(view)}.png"

    def wireframe_preview(self, view: str) -> Path:
        """Picture of the mesh's edges from one input camera, PNG."""
        return self.previews / f"wireframe_{safe_name(view)}.png"

    @property
    def transforms(self) -> Path:
        """The cameras used, in the mesh's frame, NeRF convention."""
        return (self.model_dir if self.several else self.root) / "transforms.json"

    @property
    def report(self) -> Path:
        """The self-contained report for people."""
        return (self.model_dir if self.several else self.root) / "report.html"

    @property
    def run(self) -> Path:
        """Timings, machine, memory, identifiers: what differs between equal runs."""
        return self.root / "run.json"

    @property
    def error(self) -> Path:
        """Why the run failed; only when it did."""
        return self.root / "error.json"

    @property
    def manifest(self) -> Path:
        """Every file with hash and size; written last."""
        return self.root / "manifest.json"

    @property
    def archive(self) -> Path:
        """Everything else in one zip."""
        return self.root / f"{self.run_id}.zip"
