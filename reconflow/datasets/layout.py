"""Which files make up which view: recognises a dataset's layout and plans what to read. Opens no picture."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from reconflow.cameras.formats import TransformsFile, TransformsFrame
from reconflow.cameras.six_axis import VIEW_NAMES
from reconflow.datasets.dataset import DatasetLayout, DepthEncoding
from reconflow.datasets.files import DatasetFolder, relative_name, shown
from reconflow.datasets.limits import MAX_POSED_VIEWS, MIN_POSED_VIEWS
from reconflow.datasets.report import Fault
from reconflow.datasets.transforms_file import find_transforms, read_transforms, world_up_of
from reconflow.errors import ErrorCode, InputError

PHOTO_FOLDER: Final = "multi_views"
DEPTH_FOLDER: Final = "depth_renders"
_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".exr", ".gif")


@dataclass(frozen=True, eq=False)
class ViewFiles:
    """The files of one view, by path relative to the dataset.

    Attributes:
        name: The view's name, safe as part of a file name.
        photo: The picture.
        mask: A mask file.
        depth: A depth render.
        depth_encoding: What the depth's values mean.
        frame: The view's entry in `transforms.json`.
    """

    name: str
    photo: str
    mask: str | None = None
    depth: str | None = None
    depth_encoding: DepthEncoding = DepthEncoding.RELATIVE_Z
    frame: TransformsFrame | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the view."""
        return tuple(file for file in (self.photo, self.mask, self.depth) if file is not None)


@dataclass(eq=False)
class DatasetPlan:
    """What to read, and what stands against it already.

    Attributes:
        layout: The convention recognised, or None.
        views: In the dataset's order; views with missing photos are left out.
        transforms_file: Name of the camera file, if there is one.
        transforms_bytes: Its size, once it was read.
        transforms_sha256: Hash of its content, hex, once it was read.
        cameras_given: Whether every view has a camera.
        world_up: "+y" or "+z".
        extras: Fields of the camera file that are not cameras.
        faults: Found while planning.
        warnings: Found while planning.
    """

    layout: DatasetLayout | None = None
    views: list[ViewFiles] = field(default_factory=list)
    transforms_file: str | None = None
    transforms_bytes: int = 0
    transforms_sha256: str | None = None
    cameras_given: bool = False
    world_up: str = "+y"
    extras: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_fault(self, code: ErrorCode, file: str | None, message: str, suggestion: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(code, None if file is None else shown(file), message, suggestion))


def plan_dataset(folder: DatasetFolder) -> DatasetPlan:
    """Recognise the layout and list every view's files.

    Args:
        folder: The dataset.

    Raises:
        InputError: When a folder of the layout cannot be listed or leads out of the dataset.
    """
    plan = DatasetPlan(transforms_file=find_transforms(folder))
    transforms = _transforms(folder, plan)
    photos, depths = folder.entries(PHOTO_FOLDER), folder.entries(DEPTH_FOLDER)
    has_photos = PHOTO_FOLDER in folder.entries()
    if transforms is not None and not (has_photos and _names_the_six_views(folder, transforms)):
        plan.layout = DatasetLayout.POSED
        _plan_posed(folder, plan, transforms, photos, depths)
    elif has_photos:
        plan.layout = DatasetLayout.SIX_VIEW
        _plan_six_views(folder, plan, transforms, photos, depths)
    elif plan.transforms_file is None:
        _explain_unknown_layout(folder, plan)
    return plan


def _transforms(folder: DatasetFolder, plan: DatasetPlan) -> TransformsFile | None:
    if plan.transforms_file is None:
        return None
    try:
        transforms, content = read_transforms(folder, plan.transforms_file)
        plan.world_up, note = world_up_of(transforms, plan.transforms_file)
    except InputError as error:
        plan.faults.append(Fault.from_error(error, plan.transforms_file))
        return None
    plan.warnings += [note] if note else []
    plan.extras = {key: value for key, value in transforms.extras.items() if key != "world_up"}
    plan.cameras_given = True
    plan.transforms_bytes, plan.transforms_sha256 = len(content), hashlib.sha256(content).hexdigest()
    return transforms


def _names_the_six_views(folder: DatasetFolder, transforms: TransformsFile) -> bool:
    """Whether the frames are the six views of a six-view folder, matched by stem."""
    if sorted(frame.name for frame in transforms.frames) != sorted(VIEW_NAMES):
        return False
    located = [_existing_photo(folder, frame.file_path) for frame in transforms.frames]
    return all(file is None or file.startswith(f"{PHOTO_FOLDER}/") for file in located)


def _existing_photo(folder: DatasetFolder, written: str) -> str | None:
    """Return the file that a `file_path` means, with or without its suffix; None when absent or not allowed."""
    try:
        name = relative_name(written)
    except InputError:
        return None
    return next((file for file in (name, *(name + suffix for suffix in _SUFFIXES)) if folder.has_file(file)), None)


def _plan_six_views(
    folder: DatasetFolder,
    plan: DatasetPlan,
    transforms: TransformsFile | None,
    photos: list[str],
    depths: list[str],
) -> None:
    frames = {frame.name: frame for frame in transforms.frames} if transforms else {}
    has_depths = DEPTH_FOLDER in folder.entries()
    if not has_depths:
        plan.warnings.append(f"There is no {DEPTH_FOLDER} folder; the shape has to come from the silhouettes alone.")
    used: set[str] = set()
    for view in VIEW_NAMES:
        photo = _six_view_file(plan, PHOTO_FOLDER, photos, view)
        depth = _six_view_file(plan, DEPTH_FOLDER, depths, view) if has_depths else None
        frame = frames.get(view)
        _path_of(plan, frame, "file_path", frame.file_path if frame else None)
        mask = _path_of(plan, frame, "mask_path", frame.mask_path if frame else None)
        used.update(file for file in (photo, depth) if file)
        if photo is not None:
            plan.views.append(ViewFiles(view, photo, mask, depth, DepthEncoding.RELATIVE_Z, frame))
    for name, entries in ((PHOTO_FOLDER, photos), (DEPTH_FOLDER, depths)):
        _warn_of_extras(plan, [f"{name}/{entry}" for entry in entries if f"{name}/{entry}" not in used])


def _six_view_file(plan: DatasetPlan, name: str, entries: list[str], view: str) -> str | None:
    """Find `view`.png in a folder; a different spelling of the case is accepted with a warning."""
    wanted = f"{view}.png"
    matches = [entry for entry in entries if entry.lower() == wanted]
    if wanted in matches:
        return f"{name}/{wanted}"
    if len(matches) == 1:
        plan.warnings.append(f"{name}/{matches[0]} is used as {wanted}; names are lower case.")
        return f"{name}/{matches[0]}"
    other = [entry for entry in entries if PurePosixPath(entry).stem.lower() == view and entry.lower() != wanted]
    if matches:
        message, suggestion = f"{name} has several spellings of {wanted}: {', '.join(matches)}.", "Keep one of them."
    elif other:
        message = f"{name}/{wanted} is missing; {shown(other[0])} is not taken in its place."
        suggestion = f"Save {name}/{shown(other[0])} as PNG under the name {wanted}."
    else:
        message = f"{name}/{wanted} is missing."
        suggestion = (
            "Add the missing depth renders, or remove the folder to work from silhouettes alone."
            if name == DEPTH_FOLDER
            else "Add the missing views, or supply a transforms.json with your own cameras."
        )
    plan.add_fault(ErrorCode.INVALID_FILE_COUNT, f"{name}/{wanted}", message, suggestion)
    return None


def _warn_of_extras(plan: DatasetPlan, extra: list[str]) -> None:
    if extra:
        more = f" and {len(extra) - 5} more" if len(extra) > 5 else ""
        plan.warnings.append(f"Not used: {', '.join(shown(file) for file in extra[:5])}{more}.")


def _plan_posed(
    folder: DatasetFolder, plan: DatasetPlan, transforms: TransformsFile, photos: list[str], depths: list[str]
) -> None:
    count = len(transforms.frames)
    if not MIN_POSED_VIEWS <= count <= MAX_POSED_VIEWS:
        plan.add_fault(
            ErrorCode.INVALID_FILE_COUNT,
            plan.transforms_file,
            f"{plan.transforms_file} has {count} frames; {MIN_POSED_VIEWS} to {MAX_POSED_VIEWS} posed views are taken.",
            "Add views around the object." if count < MIN_POSED_VIEWS else "Select fewer views.",
        )
        return
    names = _safe_names([frame.name for frame in transforms.frames])
    by_photo: dict[str, str] = {}
    for name, frame in zip(names, transforms.frames, strict=True):
        photo = _posed_photo(folder, plan, frame, photos)
        mask = _path_of(plan, frame, "mask_path", frame.mask_path)
        depth, encoding = _posed_depth(plan, frame, depths)
        if photo is None:
            continue
        if photo in by_photo:
            plan.add_fault(
                ErrorCode.VALIDATION_FAILED,
                photo,
                f"{shown(photo)} is used by two frames of {plan.transforms_file}.",
                "Give every frame its own picture.",
            )
            continue
        by_photo[photo] = name
        plan.views.append(ViewFiles(name, photo, mask, depth, encoding, frame))
    _warn_of_extras(plan, [f"{PHOTO_FOLDER}/{p}" for p in photos if f"{PHOTO_FOLDER}/{p}" not in by_photo])
    if any(view.depth for view in plan.views) and not all(view.depth for view in plan.views):
        plan.warnings.append("Some views have a depth render and some have none.")


def _posed_photo(folder: DatasetFolder, plan: DatasetPlan, frame: TransformsFrame, photos: list[str]) -> str | None:
    written = _path_of(plan, frame, "file_path", frame.file_path)
    if written is None:
        return None
    found = _existing_photo(folder, written)
    stem = PurePosixPath(written).name.removesuffix(PurePosixPath(written).suffix)
    if found is None and f"{stem}.png" in photos:
        found = f"{PHOTO_FOLDER}/{stem}.png"
    if found is None:
        plan.add_fault(
            ErrorCode.INVALID_FILE_COUNT,
            written,
            f"{plan.transforms_file} names {shown(written)}, which is missing.",
            "Add the picture, or remove its frame.",
        )
    return found


def _posed_depth(plan: DatasetPlan, frame: TransformsFrame, depths: list[str]) -> tuple[str | None, DepthEncoding]:
    """Find a frame's depth: the file it names (millimetres), else the depth render with the photo's stem."""
    named = _path_of(plan, frame, "depth_file_path", frame.depth_file_path)
    if named is not None:
        relative = named.startswith(f"{DEPTH_FOLDER}/")
        return named, DepthEncoding.RELATIVE_Z if relative else DepthEncoding.METRIC_Z
    stem = PurePosixPath(frame.name).name
    return (f"{DEPTH_FOLDER}/{stem}.png" if f"{stem}.png" in depths else None), DepthEncoding.RELATIVE_Z


def _path_of(plan: DatasetPlan, frame: TransformsFrame | None, key: str, written: str | None) -> str | None:
    """Normalise a path of the camera file; one that leaves the dataset becomes a fault."""
    if frame is None or written is None:
        return None
    try:
        return relative_name(written)
    except InputError as error:
        message = f"{plan.transforms_file}: {key}: {error.message}"
        plan.add_fault(error.code, plan.transforms_file, message, error.suggestion)
        return None


def _safe_names(names: list[str]) -> list[str]:
    """Make names that may be part of a file name, distinct even where case is ignored."""
    taken: set[str] = set()
    safe = []
    for name in names:
        base = re.sub(r"[^0-9A-Za-z_.-]+", "_", name).strip(".")[:80] or "view"
        unique, suffix = base, 2
        while unique.lower() in taken:
            unique, suffix = f"{base}_{suffix}", suffix + 1
        taken.add(unique.lower())
        safe.append(unique)
    return safe


def _explain_unknown_layout(folder: DatasetFolder, plan: DatasetPlan) -> None:
    entries = folder.entries()
    suggestion = (
        f"Lay the folder out as {PHOTO_FOLDER}/front.png ... bottom.png with {DEPTH_FOLDER}/ beside it, or supply a "
        "transforms.json that lists posed pictures."
    )
    nested = next((e for e in entries if {PHOTO_FOLDER, "transforms.json"} & set(folder_entries(folder, e))), None)
    pictures = [entry for entry in entries if entry.lower().endswith(_PICTURES)]
    spelled = next((e for e in entries if e.lower().replace("-", "_") in (PHOTO_FOLDER, "multiviews")), None)
    if spelled is not None:
        suggestion = f"Rename the folder {shown(spelled)} to {PHOTO_FOLDER}."
    elif nested is not None:
        suggestion = f"The dataset seems to be in the sub-folder {shown(nested)}; give that folder."
    elif pictures:
        suggestion = (
            f"Move the {len(pictures)} pictures into {PHOTO_FOLDER}/ and the depth renders into {DEPTH_FOLDER}/."
        )
    plan.add_fault(
        ErrorCode.INVALID_FILE_COUNT,
        None,
        f"{folder.name} holds neither a {PHOTO_FOLDER} folder nor a transforms.json.",
        suggestion,
    )


def folder_entries(folder: DatasetFolder, name: str) -> list[str]:
    """List a sub-folder that may be anything; one that cannot be listed counts as empty."""
    try:
        return folder.entries(name)
    except InputError:
        return []
