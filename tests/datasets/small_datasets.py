"""Small valid datasets to be spoilt by the tests, and the means of spoiling them."""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.datasets.loading import validate_dataset
from reconflow.datasets.report import Fault
from reconflow.datasets.writing import write_six_view

PX = 64


def silhouette(index: int, px: int = PX) -> NDArray[np.bool_]:
    """An off-centre ellipse with a bar, different for every index."""
    ys, xs = (np.mgrid[0:px, 0:px] + 0.5) / px
    angle = 0.9 * index
    u = (xs - 0.5) * math.cos(angle) + (ys - 0.5) * math.sin(angle)
    v = -(xs - 0.5) * math.sin(angle) + (ys - 0.5) * math.cos(angle)
    ellipse = (u / (0.30 - 0.02 * index)) ** 2 + (v / (0.14 + 0.025 * index)) ** 2 < 1
    bar = (u > 0) & (u < 0.40) & (np.abs(v) < 0.05 + 0.005 * index)
    return np.asarray(ellipse | bar)


def photo(index: int, px: int = PX) -> NDArray[np.uint8]:
    """A coloured object on white."""
    ys, xs = np.mgrid[0:px, 0:px]
    colours = np.stack([40 + 100 * xs / px, 30 + 120 * ys / px, np.full((px, px), 20.0 + 20 * index)], axis=-1)
    return np.where(silhouette(index, px)[..., None], colours, 255).astype(np.uint8)


def depth(index: int, px: int = PX, bits: int = 8) -> NDArray[Any]:
    """A tilted plane behind the silhouette, 0 elsewhere, the farthest pixel at full code."""
    ys, xs = np.mgrid[0:px, 0:px]
    mask = silhouette(index, px)
    z = 1 + 0.3 * xs / px + 0.2 * ys / px
    codes = np.round(z / z[mask].max() * (2**bits - 1))
    return np.where(mask, codes, 0).astype(np.uint8 if bits == 8 else np.uint16)


def six_views(root: Path, *, px: int = PX, bits: int = 8, cameras: bool = False, with_depth: bool = True) -> Path:
    rig = six_axis_rig(0.9, 3.0, (px, px)) if cameras else None
    depths = {view: depth(i, px, bits) for i, view in enumerate(VIEW_NAMES)} if with_depth else None
    write_six_view(root, {view: photo(i, px) for i, view in enumerate(VIEW_NAMES)}, depths, rig)
    return root


def look_from(angle: float, up: str = "y") -> list[list[float]]:
    """Camera-to-world of a camera 3 units from the origin, `angle` around the up axis."""
    c, s = math.cos(angle), math.sin(angle)
    pose = np.array([[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]])
    if up == "z":
        pose = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]) @ pose
    return pose.tolist()


def rgba(index: int, px: int = PX) -> NDArray[np.uint8]:
    alpha = silhouette(index, px).astype(np.uint8) * np.uint8(255)
    return np.concatenate([photo(index, px), alpha[..., None]], axis=-1)


def posed_views(root: Path, count: int = 3, *, px: int = PX, up: str = "y", **frame: str) -> Path:
    """N RGBA views; `frame` adds fields with {} replaced by the view's stem."""
    (root / "images").mkdir(parents=True)
    frames = []
    for i in range(count):
        save(root / f"images/view_{i}.png", rgba(i, px))
        fields = {key: value.format(f"view_{i}") for key, value in frame.items()}
        frames.append({"file_path": f"images/view_{i}.png", "transform_matrix": look_from(0.7 * i, up), **fields})
    write_json(root, {"camera_angle_x": 0.8, "frames": frames})
    return root


def save(path: Path, image: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def encode(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=fmt, **options)
    return stream.getvalue()


def write_json(root: Path, spec: object, name: str = "transforms.json") -> None:
    (root / name).write_text(json.dumps(spec))


def edit_json(root: Path, name: str = "transforms.json") -> dict[str, Any]:
    return json.loads((root / name).read_text())  # type: ignore[no-any-return]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, raw: bytes, *extra: bytes, interlace: int = 0) -> bytes:
    """A PNG from raw filtered rows, for what no writer offers."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlace)
    body = (
        png_chunk(b"IHDR", header) + b"".join(extra) + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def insert_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """Put an ancillary chunk behind a PNG's header."""
    return content[:33] + png_chunk(kind, data) + content[33:]


def the_fault(root: Path) -> Fault:
    """The single fault of a dataset."""
    faults = validate_dataset(root).faults
    assert len(faults) == 1, faults
    return faults[0]
