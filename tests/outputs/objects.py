"""A small textured object for the tests: a closed, tapered box whose six sides carry their names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_pose
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh

CELL_PX = 96
SIDE_COLOURS = {
    "front": (206, 92, 60),
    "back": (70, 120, 190),
    "left": (90, 160, 90),
    "right": (210, 170, 60),
    "top": (170, 100, 180),
    "bottom": (110, 110, 120),
}


def labelled_box(cells: int = 4) -> TexturedMesh:
    """A box of half extents (0.55, 0.45, 0.3), its top leaning towards +x, in a 3 x 2 atlas, side by side.

    Each side is drawn as its six-axis camera sees it: text reads from left to right, its top is the image's top.
    """
    lattice: list[NDArray[np.int64]] = []
    uvs: list[NDArray[np.float64]] = []
    quads: list[NDArray[np.int64]] = []
    texture = np.zeros((2 * CELL_PX, 3 * CELL_PX, 3), np.uint8)
    steps = np.arange(cells + 1)
    for index, view in enumerate(VIEW_NAMES):
        pose = six_axis_pose(view, 1.0)
        right, up, out = (np.round(pose[:3, k]).astype(np.int64) for k in range(3))
        i, j = (grid.ravel() for grid in np.meshgrid(2 * steps - cells, 2 * steps - cells, indexing="xy"))
        start = sum(len(points) for points in lattice)
        lattice.append(i[:, None] * right + j[:, None] * up + cells * out)
        column, row = index % 3, index // 3
        margin = 4 / CELL_PX
        s = margin + (1 - 2 * margin) * (i + cells) / (2 * cells)
        t = margin + (1 - 2 * margin) * (j + cells) / (2 * cells)
        uvs.append(np.stack([(column + s) / 3, (1 - row + t) / 2], axis=1))
        a = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel() + start
        quads.append(np.stack([a, a + 1, a + cells + 2, a, a + cells + 2, a + cells + 1], axis=1).reshape(-1, 3))
        y, x = row * CELL_PX, column * CELL_PX
        texture[y : y + CELL_PX, x : x + CELL_PX] = _label(view)
    points = np.concatenate(lattice)
    distinct, vertex_of = np.unique(points, axis=0, return_inverse=True)
    corners = np.concatenate(quads)
    vertices = distinct / cells * np.array([0.55, 0.45, 0.3])
    vertices[:, 0] += 0.2 * (vertices[:, 1] + 0.45)
    return TexturedMesh(
        mesh=TriangleMesh(vertices.astype(np.float32), vertex_of.ravel()[corners].astype(np.int32)),
        uvs=np.concatenate(uvs).astype(np.float32),
        uv_faces=corners.astype(np.int32),
        base_colour_srgb=texture,
    )


def _label(view: str) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (CELL_PX, CELL_PX), SIDE_COLOURS[view])
    draw = ImageDraw.Draw(picture)
    draw.text((8, 6), view.upper(), fill=(255, 255, 255), font=ImageFont.load_default(18))
    draw.polygon([(16, 84), (16, 44), (60, 84)], fill=(20, 20, 24))
    return np.asarray(picture)
