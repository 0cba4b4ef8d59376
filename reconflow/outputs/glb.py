"""Writing a textured mesh as one binary glTF 2.0 file. Reading it back is `reconflow.quality`'s part.

The file says what glTF asks for: metres as far as the scale is known (`extras` says whether it is), right-handed, +y
up, front to +z, counter-clockwise fronts, UV origin top-left, an sRGB base-colour texture. The base colour holds the
light of the pictures; it is still declared as an ordinary rough dielectric, since every viewer shows that, and
`KHR_materials_unlit` would take the material away from whoever wants to relight it. `extras` says so.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow import __version__
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.corners import SplitMesh, split_at_seams
from reconflow.outputs.files import write_bytes
from reconflow.outputs.images import MIME_TYPES, ImageFormat, encode_image

_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
GENERATOR: Final = f"reconflow {__version__}"

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTEX_TARGET, _INDEX_TARGET = 34962, 34963
_LINEAR, _LINEAR_MIPMAP, _CLAMP = 9729, 9987, 33071


@dataclass(frozen=True)
class GlbSummary:
    """What was written.

    Attributes:
        vertices: In the file, after splitting at seams.
        faces: In the file.
        removed_faces: Collapsed triangles that were left out.
        zero_area_faces: Triangles without area that were kept to leave no slit.
        size_bytes: Of the file.
    """

    vertices: int
    faces: int
    removed_faces: int
    zero_area_faces: int
    size_bytes: int


def write_glb(textured: TexturedMesh, path: Path, *, extras: Mapping[str, Any] | None = None) -> GlbSummary:
    """Write the mesh with its texture embedded as PNG; the same mesh and extras give the same bytes.

    Args:
        textured: Surface, UVs and base colour.
        path: The file; replaced in one step.
        extras: JSON-able provenance for `asset.extras`, e.g. the unit and the input's digest. Nothing
            time-dependent belongs in it.

    Raises:
        ModelConvergenceError: The mesh is empty, or a value is not finite.
    """
    split = split_at_seams(textured)
    data = encode_glb(split, textured.base_colour_srgb, extras=extras)
    write_bytes(path, data)
    return GlbSummary(
        vertices=len(split.positions),
        faces=len(split.faces),
        removed_faces=split.removed_faces,
        zero_area_faces=split.zero_area_faces,
        size_bytes=len(data),
    )


def encode_glb(
    split: SplitMesh,
    base_colour_srgb: NDArray[np.uint8],
    *,
    extras: Mapping[str, Any] | None = None,
    texture_format: ImageFormat = "png",
) -> bytes:
    """Return the file's bytes.

    Args:
        split: The mesh, one index per corner.
        base_colour_srgb: (H, W, 3) uint8 texture, row 0 on top.
        extras: As in `write_glb`.
        texture_format: `png`, or `jpeg` for a smaller file; glTF has no other without an extension.
    """
    parts = _Parts()
    index_type = np.uint16 if len(split.positions) < 65535 else np.uint32
    attributes = {
        "POSITION": parts.add_vertices(split.positions, bounded=True),
        "NORMAL": parts.add_vertices(split.normals),
        "TEXCOORD_0": parts.add_vertices(_top_left_uvs(split.uvs)),
    }
    indices = parts.add_indices(split.faces.astype(index_type).ravel())
    image_view = parts.add_view(encode_image(base_colour_srgb, texture_format))
    document = {
        "asset": {"version": "2.0", "generator": GENERATOR, "extras": {**_CONVENTIONS, **(extras or {})}},
        "scene": 0,
        "scenes": [{"name": "scene", "nodes": [0]}],
        "nodes": [{"name": "object", "mesh": 0}],
        "meshes": [
            {"name": "object", "primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}]}
        ],
        "materials": [_material()],
        "textures": [{"name": "base_colour", "source": 0, "sampler": 0}],
        "images": [{"name": "base_colour", "mimeType": MIME_TYPES[texture_format], "bufferView": image_view}],
        "samplers": [{"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP, "wrapS": _CLAMP, "wrapT": _CLAMP}],
        "accessors": parts.accessors,
        "bufferViews": parts.views,
        "buffers": [{"byteLength": len(parts.data)}],
    }
    return _container(document, bytes(parts.data))


_CONVENTIONS: Final = {
    "axes": "right-handed, +y up, front +z",
    "base_colour": "sRGB; holds the light of the input pictures, no shading model was estimated",
    "roughness_metallic": "constants, not estimated",
}


def _material() -> dict[str, Any]:
    return {
        "name": "surface",
        "pbrMetallicRoughness": {
            "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
            "baseColorTexture": {"index": 0, "texCoord": 0},
            "metallicFactor": 0.0,
            "roughnessFactor": 1.0,
        },
        "alphaMode": "OPAQUE",
        "doubleSided": False,
    }


def _top_left_uvs(uvs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([uvs[:, 0], np.float32(1) - uvs[:, 1]], axis=1)


class _Parts:
    """The binary chunk under construction: data, the views into it, and what the views mean."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add_view(self, data: bytes, target: int | None = None) -> int:
        self.data.extend(b"\0" * (-len(self.data) % 4))
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(view if target is None else {**view, "target": target})
        self.data.extend(data)
        return len(self.views) - 1

    def add_vertices(self, values: NDArray[np.float32], *, bounded: bool = False) -> int:
        view = self.add_view(values.astype("<f4").tobytes(), _VERTEX_TARGET)
        accessor: dict[str, Any] = {
            "bufferView": view,
            "componentType": _FLOAT,
            "count": len(values),
            "type": f"VEC{values.shape[1]}",
        }
        if bounded:
            accessor["min"], accessor["max"] = ([float(x) for x in f(axis=0)] for f in (values.min, values.max))
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_indices(self, indices: NDArray[Any]) -> int:
        view = self.add_view(indices.astype(indices.dtype.newbyteorder("<")).tobytes(), _INDEX_TARGET)
        component = _UINT16 if indices.dtype == np.uint16 else _UINT32
        self.accessors.append({"bufferView": view, "componentType": component, "count": len(indices), "type": "SCALAR"})
        return len(self.accessors) - 1


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<3I", _MAGIC, 2, total),
            struct.pack("<2I", len(text), _JSON_CHUNK),
            text,
            struct.pack("<2I", len(binary), _BINARY_CHUNK),
            binary,
        ]
    )
