"""Which files the published model consists of, where they lie in a folder, and what is known of them.

Licences are what their sources state, and so are sizes and checksums; where nobody states one, there is none here.
What is recorded of files is in `weights_record`, how they get here in `weight_sources`, what is in them in
`checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reconflow.errors import WeightsInvalidError, WeightsMissingError

LOCK_NAME: Final = "weights.lock.json"
PIPELINE_ROLES: Final = (
    "sparse_structure_vggt_cond",
    "slat_vggt_cond",
    "sparse_structure_flow_model",
    "sparse_structure_decoder",
    "slat_flow_model",
    "slat_decoder_gs",
    "slat_decoder_mesh",
)
"""The networks that `pipeline.json` places; other entries there are not used."""


@dataclass(frozen=True)
class Bundle:
    """Files from one source under one licence.

    Attributes:
        name: Of its folder in a folder of weights.
        title: For people.
        source: Hugging Face repository `owner/name`, or a web address.
        revision: Of the repository.
        licence: As its source states it.
        restricted: Whether the licence restricts use, so that a person has to accept it.
    """

    name: str
    title: str
    source: str
    licence: str
    restricted: bool = False
    revision: str = "main"

    @property
    def is_repository(self) -> bool:
        """Whether the source is a repository on Hugging Face."""
        return "://" not in self.source

    def url(self, path: str) -> str:
        """Return where a file of the bundle is published."""
        if self.is_repository:
            return f"https://huggingface.co/{self.source}/resolve/{self.revision}/{path}"
        return f"{self.source}/{path}"


GENERATOR: Final = Bundle(
    "trellis-vggt-v0-2",
    "ReconViaGen v0.2",
    "Stable-X/trellis-vggt-v0-2",
    "MIT, as the code of TRELLIS and ReconViaGen; the weights' own page has the last word",
    revision="647659a5ad5fbf67e22793e7b5e2cee4b30c5d13",
)
VGGT: Final = Bundle(
    "vggt-object-v0-1",
    "VGGT, tuned on objects",
    "Stable-X/vggt-object-v0-1",
    "Meta's VGGT licence, whose first release allows non-commercial use only; a tuned copy inherits what applies",
    restricted=True,
)
DINOV2: Final = Bundle(
    "dinov2",
    "DINOv2 ViT-L/14 with registers",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14",
    "Apache-2.0",
)
BUNDLES: Final = (GENERATOR, VGGT, DINOV2)
_TRELLIS: Final = "microsoft/TRELLIS-image-large"
_LONGEST_NAME: Final = 100
"""Characters between two slashes of a network's place, so that every system can have a file of that name."""
_DEEPEST: Final = 8


@dataclass(frozen=True)
class WeightFile:
    """One file of the model.

    Attributes:
        bundle: What it belongs to.
        path: In the bundle, with forward slashes.
        about_bytes: Its size, roughly, for people.
        size: Its size where the source states it exactly; None for every file today.
        sha256: Likewise.
    """

    bundle: Bundle
    path: str
    about_bytes: int
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file in a folder of weights."""
        return f"{self.bundle.name}/{self.path}"


PIPELINE_FILE: Final = WeightFile(GENERATOR, "pipeline.json", 3_000)
VGGT_CONFIG: Final = WeightFile(VGGT, "config.json", 1_000)
VGGT_FILE: Final = WeightFile(VGGT, "model.safetensors", 5_026_400_000)
DINOV2_FILE: Final = WeightFile(DINOV2, "dinov2_vitl14_reg4_pretrain.pth", 1_217_600_000)
_PUBLISHED: Final[Mapping[str, tuple[str, int]]] = {
    "sparse_structure_vggt_cond": ("ckpts/ss_vggt_cond", 176_340_384),
    "slat_vggt_cond": ("ckpts/slat_vggt_cond", 25_174_768),
    "sparse_structure_flow_model": ("ckpts/ss_flow_img_dit_L_16l8_fp16", 1_130_770_840),
    "sparse_structure_decoder": ("ckpts/ss_dec_conv3d_16l8_fp16", 147_591_972),
    "slat_flow_model": ("ckpts/slat_flow_img_dit_L_64l8p2_fp16", 1_203_755_136),
    "slat_decoder_gs": ("ckpts/slat_dec_gs_swin8_B_64l8gs32_fp16", 171_450_952),
    "slat_decoder_mesh": ("ckpts/slat_dec_mesh_swin8_B_64l8m256c_fp16", 181_903_412),
}
"""The stem of each network's files where the published `pipeline.json` places it, and about the size of its weights."""


def network_files(stem: str, about_bytes: int = 0) -> tuple[WeightFile, WeightFile]:
    """Return configuration and weights of a stem as `pipeline.json` writes it: `ckpts/x` or `owner/repo/ckpts/x`.

    Raises:
        WeightsInvalidError: The stem leads out of its folder.
    """
    parts = stem.split("/")
    names = all(part not in ("", ".", "..") and len(part) <= _LONGEST_NAME for part in parts)
    if not names or len(parts) > _DEEPEST or not (stem.isascii() and stem.isprintable()) or "\\" in stem or ":" in stem:
        raise WeightsInvalidError(
            f"pipeline.json places a network at {stem[:100]!r}, which is no path below the weights.",
            suggestion="Fetch the published pipeline.json again.",
            faults=[{"file": PIPELINE_FILE.name, "message": "a path leads out of the folder"}],
        )
    bundle = GENERATOR
    if parts[0] != "ckpts" and len(parts) > 2:
        repository, stem = "/".join(parts[:2]), "/".join(parts[2:])
        bundle = _other_repository(repository)
    return WeightFile(bundle, f"{stem}.json", 1_000), WeightFile(bundle, f"{stem}.safetensors", about_bytes)


def _other_repository(repository: str) -> Bundle:
    if repository == GENERATOR.source:
        return GENERATOR
    name = repository.split("/")[1]
    if repository == _TRELLIS:
        return Bundle(name, "TRELLIS", repository, "MIT")
    return Bundle(repository.replace("/", "--"), name, repository, "unknown here; read its page", restricted=True)


class WeightsFolder:
    """A local folder with weights: one folder per bundle, or caches of Hugging Face and torch hub as they are.

    All files of a repository are taken from one place, so that those of two revisions are never combined.

    Args:
        root: The folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, file: WeightFile) -> Path | None:
        """Return where a file is; None when it is nowhere here."""
        paths = (place / file.path for place in self._places(file.bundle))
        return next((path for path in paths if path.is_file()), None)

    def need(self, file: WeightFile) -> Path:
        """Return where a file is.

        Raises:
            WeightsMissingError: It is nowhere; what is missing altogether is said.
        """
        found = self.find(file)
        if found is None:
            raise missing_error(self.missing() or [file])
        return found

    def files(self) -> list[WeightFile]:
        """Return every file that the model needs, as far as the `pipeline.json` here, or the published one, says.

        Raises:
            WeightsInvalidError: `pipeline.json` is not what it should be.
        """
        return [
            PIPELINE_FILE,
            *(file for role in PIPELINE_ROLES for file in self.role_files(role)),
            VGGT_CONFIG,
            VGGT_FILE,
            DINOV2_FILE,
        ]

    def role_files(self, role: str) -> tuple[WeightFile, WeightFile]:
        """Return configuration and weights of a network that `pipeline.json` places."""
        stem, about = _PUBLISHED[role]
        placed = self.find(PIPELINE_FILE)
        if placed is not None:
            models = read_pipeline(placed)["models"]
            if not isinstance(models.get(role), str):
                raise WeightsInvalidError(
                    f"pipeline.json places no {role}.",
                    suggestion=f"Fetch the weights of {GENERATOR.source}; those of TRELLIS lack VGGT's conditions.",
                    faults=[{"file": PIPELINE_FILE.name, "message": f"no entry {role}"}],
                )
            stem = models[role]
        return network_files(stem, about)

    def missing(self) -> list[WeightFile]:
        """Return the files that are nowhere here."""
        return [file for file in self.files() if self.find(file) is None]

    def bundles(self) -> list[Bundle]:
        """Return what the files come from, each once."""
        return list(dict.fromkeys(file.bundle for file in self.files()))

    def note(self, bundle: Bundle) -> str | None:
        """Say so when a bundle lies in a snapshot of Hugging Face that is not known to be the revision meant."""
        place = next(iter(self._places(bundle)), None)
        if not bundle.is_repository or place is None or place.parent.name != "snapshots":
            return None
        if place.name in (bundle.revision, _referenced(place.parent.parent, bundle.revision)):
            return None
        return (
            f"{bundle.title} is of the snapshot {place.name} of {bundle.source}, which is not known to be its revision "
            f"{bundle.revision}."
        )

    def _places(self, bundle: Bundle) -> list[Path]:
        """Return the folders that a bundle's files are looked for in; of a repository at most one."""
        own, snapshot = self.root / bundle.name, self._snapshot(bundle)
        if not bundle.is_repository:
            return [own, self.root / "checkpoints", self.root]
        if own.is_dir():
            return [own]
        if snapshot is not None:
            return [snapshot]
        return [self.root] if self._is_snapshot_of(bundle) else []

    def _snapshot(self, bundle: Bundle) -> Path | None:
        """Return the snapshot of a repository in a cache: of the revision meant, else of `main`, else the newest."""
        cached = self.root / f"models--{bundle.source.replace('/', '--')}"
        for revision in (bundle.revision, "main"):
            for name in (revision, _referenced(cached, revision)):
                if name is not None and (cached / "snapshots" / name).is_dir():
                    return cached / "snapshots" / name
        folders = [folder for folder in cached.glob("snapshots/*") if folder.is_dir()]
        return max(folders, key=lambda folder: (folder.stat().st_mtime_ns, folder.name), default=None)

    def _is_snapshot_of(self, bundle: Bundle) -> bool:
        """Whether the folder itself is one repository's: of the two, only the generator's has a `pipeline.json`."""
        is_generator = (self.root / "pipeline.json").is_file()
        return is_generator if bundle.name == GENERATOR.name else bundle.name == VGGT.name and not is_generator


def _referenced(cached: Path, revision: str) -> str | None:
    """Return the commit that a cache of Hugging Face has noted for a revision."""
    try:
        commit = (cached / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if commit.isalnum() else None


def digest_of(checksums: Mapping[str, str]) -> str:
    """Return one name for a set of files: a SHA-256, hex, over names and checksums."""
    text = "\n".join(f"{name} {sha256}" for name, sha256 in sorted(checksums.items()))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_json(path: Path, file: WeightFile) -> dict[str, Any]:
    """Read a JSON object of the weights.

    Raises:
        WeightsInvalidError: It is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise invalid_error([fault(file, "this is no JSON")]) from error
    if not isinstance(content, dict):
        raise invalid_error([fault(file, "this is no JSON object")])
    return content


def read_pipeline(path: Path) -> dict[str, Any]:
    """Read `args` of `pipeline.json`; its `models` is an object.

    Raises:
        WeightsInvalidError: They are no such thing.
    """
    content = read_json(path, PIPELINE_FILE).get("args")
    if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
        raise invalid_error([fault(PIPELINE_FILE, "it has no args with models")])
    return content


def missing_error(files: Iterable[WeightFile]) -> WeightsMissingError:
    """Return the error that says what to fetch, how large it is, and under which licence."""
    listed = list(files)
    parts = []
    for bundle in dict.fromkeys(file.bundle for file in listed):
        own = [file for file in listed if file.bundle == bundle]
        size = size_text(sum(file.about_bytes for file in own))
        count = f"{len(own)} file{'s' * (len(own) > 1)}"
        parts.append(f"{bundle.title} ({count}, about {size}, from {bundle.source}; licence: {bundle.licence})")
    restricted = any(file.bundle.restricted for file in listed)
    return WeightsMissingError(
        f"Weights of reconviagen are missing: {'; '.join(parts)}.",
        suggestion="Run `reconflow weights fetch --from PLACE`, where PLACE is a folder, an s3:// address or `https`"
        f"{'; read the licence and add --accept-licence' * restricted}.",
        files=[file.name for file in listed],
        about_bytes=sum(file.about_bytes for file in listed),
        licences={file.bundle.source: file.bundle.licence for file in listed},
    )


def invalid_error(
    faults: list[dict[str, str]], suggestion: str = "Remove the files named and fetch them again."
) -> WeightsInvalidError:
    """Return the error that lists what is wrong with which file."""
    named = "; ".join(f"{one['file']}: {one['message']}" for one in faults[:4])
    more = f"; and {len(faults) - 4} more" * (len(faults) > 4)
    return WeightsInvalidError(
        f"Weights of reconviagen cannot be used. {named}{more}.",
        suggestion=suggestion,
        faults=faults,
    )


def fault(file: WeightFile, message: str) -> dict[str, str]:
    """Return one entry of an error's `details["faults"]`."""
    return {"file": file.name, "message": message}


def size_text(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
