"""Reading back the GLB files this project writes, so that quality is measured on the file and not on memory.

It is strict and small: one mesh, one primitive, one embedded texture, as `reconflow.outputs.glb` writes them, and
shares nothing with that writer. Not a general glTF reader.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reconflow.errors import IncompleteResultsError
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh

_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
_COMPONENTS: Final[dict[int, str]] = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
_MISFITS: Final = (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError, SyntaxError)
"""What parsing and picture decoding raise on content that contradicts itself (Pillow: OSError and SyntaxError)."""
_WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


def read_glb(path: Path) -> TexturedMesh:
    """Read one of our GLB files.

    Vertices in exactly the same place are one vertex again, as any reader has to assume; mesh facts of the result are
    therefore facts of the file.

    Raises:
        IncompleteResultsError: The file is missing, damaged, or not one of ours.
    """
    document, binary = read_container(path)
    try:
        return _textured_mesh(document, binary)
    except _MISFITS as error:
        raise _damaged(path.name, f"its content does not fit together ({type(error).__name__}: {error})") from error


def read_container(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the JSON document and the binary chunk of a GLB file.

    Raises:
        IncompleteResultsError: The file is missing or its frame is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path.name, "it is missing") from error
    if len(data) < 20:
        raise _damaged(path.name, "it is too short")
    magic, version, total = struct.unpack_from("<3I", data)
    if (magic, version, total) != (_MAGIC, 2, len(data)):
        raise _damaged(path.name, "it is not a whole glTF 2.0 binary file")
    chunks, offset = [], 12
    while offset + 8 <= total:
        length, kind = struct.unpack_from("<2I", data, offset)
        if offset + 8 + length > total:
            raise _damaged(path.name, "a chunk is cut off")
        chunks.append((kind, data[offset + 8 : offset + 8 + length]))
        offset += 8 + length
    if [kind for kind, _ in chunks] != [_JSON_CHUNK, _BINARY_CHUNK]:
        raise _damaged(path.name, "it has other chunks than one of JSON and one of data")
    try:
        document = json.loads(chunks[0][1])
    except ValueError as error:
        raise _damaged(path.name, "its JSON cannot be parsed") from error
    if not isinstance(document, dict):
        raise _damaged(path.name, "its JSON is not an object")
    return document, chunks[1][1]


def weld_positions(positions: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Join points in exactly the same place.

    Args:
        positions: (N, 3) float32.

    Returns:
        vertices: (V, 3) float32, distinct, in the order of their first occurrence.
        vertex_of: (N,) int32, the vertex each point became.
    """
    bits = np.ascontiguousarray(positions + np.float32(0)).view(np.dtype((np.void, 12))).ravel()
    _, first, inverse = np.unique(bits, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return positions[first[order]], rank[inverse]


def _textured_mesh(document: dict[str, Any], binary: bytes) -> TexturedMesh:
    (mesh,), (image,) = document["meshes"], document["images"]
    (primitive,) = mesh["primitives"]
    attributes = primitive["attributes"]
    positions = _accessor(document, binary, attributes["POSITION"], 3).astype(np.float32)
    uvs = _accessor(document, binary, attributes["TEXCOORD_0"], 2).astype(np.float32)
    corners = _accessor(document, binary, primitive["indices"], 1).astype(np.int64).reshape(-1, 3)
    if len(uvs) != len(positions) or corners.max(initial=0) >= len(positions):
        raise ValueError("an index points outside of the vertices")
    if not (np.isfinite(positions).all() and np.isfinite(uvs).all()):
        raise ValueError("a coordinate is not a finite number")
    with Image.open(io.BytesIO(_view(document, binary, image["bufferView"]))) as picture:
        texture = np.asarray(picture.convert("RGB"))
    vertices, vertex_of = weld_positions(positions)
    return TexturedMesh(
        mesh=TriangleMesh(vertices, vertex_of[corners]),
        uvs=np.stack([uvs[:, 0], np.float32(1) - uvs[:, 1]], axis=1),
        uv_faces=corners.astype(np.int32),
        base_colour_srgb=texture,
    )


def _view(document: dict[str, Any], binary: bytes, index: int) -> bytes:
    view = document["bufferViews"][index]
    start, length = view.get("byteOffset", 0), view["byteLength"]
    if start < 0 or length < 0 or start + length > len(binary):
        raise ValueError("a buffer view reaches past the data")
    return binary[start : start + length]


def _accessor(document: dict[str, Any], binary: bytes, index: int, width: int) -> NDArray[Any]:
    accessor = document["accessors"][index]
    if _WIDTHS[accessor["type"]] != width:
        raise ValueError(f"accessor {index} is a {accessor['type']}")
    values = np.frombuffer(_view(document, binary, accessor["bufferView"]), _COMPONENTS[accessor["componentType"]])
    if len(values) != accessor["count"] * width:
        raise ValueError(f"accessor {index} has {len(values)} values instead of {accessor['count'] * width}")
    return values.reshape(-1, width)


def _damaged(name: str, why: str) -> IncompleteResultsError:
    return IncompleteResultsError(
        f"The mesh file {name} cannot be read: {why}.",
        suggestion="Run the reconstruction again; if the file was copied, copy it again.",
        file=name,
        reason=why,
    )
