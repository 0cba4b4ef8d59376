"""Writing a six-view dataset folder, as the sample script and the tests need it. Reading it back is `loading`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.formats import format_nerf
from reconflow.cameras.six_axis import VIEW_NAMES
from reconflow.datasets.layout import DEPTH_FOLDER, PHOTO_FOLDER
from reconflow.errors import ValidationFailedError


def write_six_view(
    root: Path,
    photos: Mapping[str, NDArray[np.uint8]],
    depths: Mapping[str, NDArray[np.unsignedinteger[Any]]] | None = None,
    cameras: Sequence[PinholeCamera] | None = None,
) -> None:
    """Write a six-view folder; it appears under its name only once it is complete.

    Args:
        root: Folder to create; must not exist.
        photos: (H, W, 3) or (H, W, 4) uint8 sRGB display values by view name, straight alpha, row 0 on top.
        depths: (h, w) uint8 or uint16 by view name; 0 = background, else z / z_max of the view in full codes.
        cameras: The six cameras, for a `transforms.json` in the NeRF convention.

    Raises:
        ValidationFailedError: When `root` exists, a view is missing, an array cannot be stored as it is, or the
            cameras cannot be said in the NeRF convention.
    """
    if root.exists():
        raise ValidationFailedError(
            f"{root.name} exists already.", suggestion="Choose another name, or remove it first.", file=root.name
        )
    for what, images in ((PHOTO_FOLDER, photos), (DEPTH_FOLDER, depths)):
        if images is not None:
            _check_images(what, images)
    transforms = None if cameras is None else format_nerf(cameras, folder=f"./{PHOTO_FOLDER}")
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_images(unfinished / PHOTO_FOLDER, photos)
        if depths is not None:
            _write_images(unfinished / DEPTH_FOLDER, depths)
        if transforms is not None:
            text = json.dumps(transforms, indent=1, allow_nan=False) + "\n"
            (unfinished / "transforms.json").write_text(text, encoding="utf-8")
        unfinished.chmod(0o755)
        os.rename(unfinished, root)  # noqa: PTH104 - refuses to replace a folder that is not empty
    finally:
        if unfinished.exists():
            shutil.rmtree(unfinished)


def _check_images(what: str, images: Mapping[str, NDArray[Any]]) -> None:
    if sorted(images) != sorted(VIEW_NAMES):
        raise ValidationFailedError(
            f"{what} needs exactly the views {', '.join(VIEW_NAMES)}.", suggestion="Supply all six.", views=list(images)
        )
    for view, image in images.items():
        is_photo = image.ndim == 3 and image.shape[2] in (3, 4) and image.dtype == np.uint8
        is_depth = image.ndim == 2 and image.dtype in (np.uint8, np.uint16)
        if not (is_photo if what == PHOTO_FOLDER else is_depth):
            raise ValidationFailedError(
                f"{what}/{view}: an array of shape {image.shape} and type {image.dtype} cannot be stored.",
                suggestion="Photos are (H, W, 3 or 4) uint8, depth renders (h, w) uint8 or uint16.",
                view=view,
            )


def _write_images(folder: Path, images: Mapping[str, NDArray[Any]]) -> None:
    folder.mkdir()
    for view in VIEW_NAMES:
        Image.fromarray(np.ascontiguousarray(images[view])).save(folder / f"{view}.png", format="PNG", optimize=False)
