"""Writing a textured mesh as Wavefront OBJ with its MTL. The texture's picture itself is `write_texture`'s file.

OBJ knows neither unit nor axes, so both stand in a comment. References are bare names in the same folder, without
spaces. The UV origin is bottom-left, as our UVs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reconflow import __version__
from reconflow.errors import ValidationFailedError
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.corners import vertex_normals, without_collapsed
from reconflow.outputs.files import replacing, write_bytes, write_text
from reconflow.outputs.images import encode_image

_LINES_PER_WRITE = 4096


def write_texture(textured: TexturedMesh, path: Path) -> None:
    """Write the base-colour texture as PNG, sRGB, row 0 on top."""
    write_bytes(path, encode_image(textured.base_colour_srgb, "png"))


def write_obj(textured: TexturedMesh, obj_path: Path, mtl_path: Path, texture_path: Path, *, unit: str) -> None:
    """Write OBJ and MTL; the texture is referred to by name, see `write_texture`.

    Positions, UVs and normals have their own indices, so that seams split nothing; nine digits keep every float32.

    Args:
        textured: Surface, UVs and base colour.
        obj_path: The OBJ file.
        mtl_path: The MTL file, in the same folder.
        texture_path: The texture, in the same folder.
        unit: What one unit is, for the comment, e.g. `1 unit = 1 metre`.

    Raises:
        ValidationFailedError: The files are not in one folder, or a name has a space.
        ModelConvergenceError: The mesh is empty, or a value is not finite.
    """
    _check_references(obj_path, mtl_path, texture_path)
    clean = without_collapsed(textured)
    normals = vertex_normals(clean.mesh)
    header = [
        f"# reconflow {__version__}",
        f"# unit: {' '.join(unit.split())}",
        "# axes: right-handed, +y up, front towards +z; vt origin bottom-left",
        f"mtllib {mtl_path.name}",
        "o object",
    ]
    with replacing(obj_path) as stream:
        for block in _blocks(_lines(header, clean, normals)):
            stream.write(block)
    write_text(mtl_path, _material_text(texture_path.name))


def _check_references(obj_path: Path, mtl_path: Path, texture_path: Path) -> None:
    names = (obj_path.name, mtl_path.name, texture_path.name)
    apart = len({path.parent for path in (obj_path, mtl_path, texture_path)}) != 1
    if apart or any(any(c.isspace() for c in name) for name in names):
        raise ValidationFailedError(
            f"{', '.join(names)} cannot refer to each other by name.",
            suggestion="Put the OBJ, its MTL and the texture into one folder, under names without spaces.",
            names=list(names),
        )


def _material_text(texture_name: str) -> str:
    return "\n".join(
        [
            f"# reconflow {__version__}",
            "# map_Kd: sRGB, holds the light of the input pictures; no specular part was estimated",
            "newmtl surface",
            "Ka 0 0 0",
            "Kd 1 1 1",
            "Ks 0 0 0",
            "d 1",
            "illum 1",
            f"map_Kd {texture_name}",
            "",
        ]
    )


def _lines(header: list[str], clean: TexturedMesh, normals: NDArray[np.float32]) -> Iterator[str]:
    yield from header
    for values, form in (
        (clean.mesh.vertices, "v %.9g %.9g %.9g"),
        (clean.uvs, "vt %.9g %.9g"),
        (normals, "vn %.9g %.9g %.9g"),
    ):
        yield from (form % tuple(row) for row in values.tolist())
    yield "usemtl surface"
    corners = np.stack([clean.mesh.faces, clean.uv_faces, clean.mesh.faces], axis=2).reshape(-1, 9) + 1
    yield from ("f {}/{}/{} {}/{}/{} {}/{}/{}".format(*row) for row in corners.tolist())


def _blocks(lines: Iterable[str]) -> Iterator[bytes]:
    block: list[str] = []
    for line in lines:
        block.append(line)
        if len(block) == _LINES_PER_WRITE:
            yield ("\n".join(block) + "\n").encode("utf-8")
            block.clear()
    if block:
        yield ("\n".join(block) + "\n").encode("utf-8")
