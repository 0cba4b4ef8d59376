"""What a validated dataset is. Reading and checking files live beside this module; nothing here touches a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera


class MaskSource(StrEnum):
    """Where a view's object mask came from, in order of preference."""

    ALPHA = "alpha"
    FILE = "file"
    DEPTH = "depth"
    BACKGROUND = "background"


class DepthEncoding(StrEnum):
    """What a stored depth value means."""

    RELATIVE_Z = "relative_z"
    """value / max_value = z / z_max of that view, z linear along the optical axis; 0 = background."""
    METRIC_Z = "metric_z"
    """value * unit = z in world units (nerfstudio: millimetres); 0 = unknown."""


@dataclass(frozen=True, eq=False)
class DepthImage:
    """One depth render, as stored.

    Attributes:
        values: (h, w) uint16 stored values, row 0 on top; its resolution is its own, not the photo's.
        max_value: The code that stands for z_max (255 for 8-bit, 65535 for 16-bit files).
        encoding: What the values mean.
        unit: World units per count, for METRIC_Z only.
    """

    values: NDArray[np.uint16]
    max_value: int
    encoding: DepthEncoding = DepthEncoding.RELATIVE_Z
    unit: float | None = None


@dataclass(frozen=True, eq=False)
class View:
    """One picture of the object.

    Attributes:
        name: Unique within the dataset; `front` ... `bottom` in a six-view folder.
        rgb_srgb: (H, W, 3) uint8 display values, straight (not premultiplied), row 0 on top.
        alpha: (H, W) float32 in [0, 1], how much of each pixel the object covers.
        mask_source: Where `alpha` came from.
        depth: The depth render, if there is one.
    """

    name: str
    rgb_srgb: NDArray[np.uint8]
    alpha: NDArray[np.float32]
    mask_source: MaskSource
    depth: DepthImage | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) of the photo, pixels."""
        return self.rgb_srgb.shape[0], self.rgb_srgb.shape[1]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) true where the object covers at least half of the pixel."""
        mask: NDArray[np.bool_] = self.alpha >= 0.5
        return mask


class DatasetLayout(StrEnum):
    """Which convention the input followed."""

    SIX_VIEW = "six_view"
    POSED = "posed"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A validated dataset in memory.

    Attributes:
        name: The folder's name, for people.
        layout: The convention it followed.
        views: The views; in the order of `VIEW_NAMES` for a six-view folder.
        cameras: Supplied cameras in the order of `views`, or None when they have to be calibrated.
        world_up: The supplied cameras' up axis, "+y" or "+z"; "+y" when there are none.
        digest: SHA-256 over the content of every input file, hex.
        file_hashes: SHA-256 of every input file by its path relative to the dataset.
        warnings: What is unusual but usable, sentences for a person.
        extras: Fields of a supplied transforms.json that are not cameras (`applied_transform`, `aabb_scale`, ...).
    """

    name: str
    layout: DatasetLayout
    views: tuple[View, ...]
    cameras: tuple[PinholeCamera, ...] | None
    digest: str
    world_up: str = "+y"
    file_hashes: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
