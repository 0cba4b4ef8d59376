"""Plain pictures of a mesh: textured, depth, wireframe. Nothing here is differentiable.

The base colour is shown unlit; the wireframe has a headlight only so that its faces can be told apart.

Anti-aliasing is by supersampling: a regular grid of samples per pixel, averaged in linear light. The grid is worked
off in bands of rows, so that memory grows with the picture and not with the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.colour import linear_from_srgb_u8, srgb_from_linear
from reconflow.errors import ValidationFailedError
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.rendering.raster import (
    F32,
    F64,
    I32,
    checked_faces,
    pixel_homogeneous,
    raster_rows,
    rasterize_view,
    resolve_rows,
    screen_from_homogeneous,
)

SAMPLES_PER_BAND = 1 << 20
"""Samples worked on at once by one thread: 20 bytes each."""

WIRE_COLOUR_LINEAR = (0.012, 0.021, 0.045)
_FULL_FROM_EDGE_PX = 6.0
"""Lines are opaque where edges are this long on average, pixels; paler in proportion below."""
_PALEST = 0.6
_WIDTH_PER_EDGE = 0.14
"""Lines are at most this part of an edge's mean length wide."""


@dataclass(frozen=True, eq=False)
class Render:
    """One picture, row 0 on top.

    Attributes:
        rgb_srgb: (H, W, 3) float32 in [0, 1], display values over white.
        coverage: (H, W) float32, how much of each pixel the object covers.
        depth: (H, W) float32 at the pixels' centres, along the optical axis, world units; 0 where empty.
    """

    rgb_srgb: F32
    coverage: F32
    depth: F32


def render_textured(textured: TexturedMesh, camera: PinholeCamera, supersample: int = 3) -> Render:
    """Render the unlit base colour over white, double-sided.

    The texture is looked up bilinearly in linear light (texel centres at +0.5, wrapping, v up), samples are averaged
    in linear light, the average is sRGB-encoded.

    Args:
        textured: The mesh, its UVs and its texture.
        camera: The view; its `image_hw` is the picture's size.
        supersample: Samples per pixel along each axis.
    """
    texture = linear_from_srgb_u8(textured.base_colour_srgb)
    uvs = np.ascontiguousarray(textured.uvs, dtype=np.float32)
    uv_faces = checked_faces(textured.uv_faces, len(uvs), "uv_faces")
    if len(uv_faces) != len(textured.mesh.faces):
        raise ValidationFailedError(
            f"The mesh has {len(textured.mesh.faces)} faces, but {len(uv_faces)} faces with texture coordinates.",
            suggestion="Give every face its row of `uv_faces`.",
        )

    def shade(samples: _Samples, rgb: F32, coverage: F32) -> None:
        _average_textured(samples.face_id, samples.bary, uvs, uv_faces, texture, supersample, rgb, coverage)

    rgb_srgb, coverage = _render_bands(textured.mesh, camera, supersample, shade)
    return Render(rgb_srgb, coverage, render_depth(textured.mesh, camera))


def render_depth(mesh: TriangleMesh, camera: PinholeCamera) -> F32:
    """Return (H, W) float32 depth at the pixels' centres, along the optical axis, world units; 0 where empty."""
    return rasterize_view(mesh.vertices, mesh.faces, camera).depth


def render_wireframe(
    mesh: TriangleMesh, camera: PinholeCamera, line_width_px: float = 0.8, supersample: int = 3
) -> Render:
    """Render the visible edges over flat grey faces lit from the camera, hidden lines removed.

    Lines get thinner and paler where edges are short on screen, so that a fine mesh still shows its shape.

    Args:
        mesh: The mesh.
        camera: The view.
        line_width_px: Largest width of the lines, pixels of the picture.
        supersample: Samples per pixel along each axis.
    """
    large = camera.resized((camera.image_hw[0] * supersample, camera.image_hw[1] * supersample))
    screen = screen_from_homogeneous(pixel_homogeneous(mesh.vertices, large))
    faces = checked_faces(mesh.faces, len(mesh.vertices))
    grey = _headlight(mesh, camera)
    edge_px = _mean_edge_length(screen, faces) / supersample
    reach = 0.5 * min(line_width_px, _WIDTH_PER_EDGE * edge_px) * supersample
    opacity = min(1.0, max(_PALEST, edge_px / _FULL_FROM_EDGE_PX))
    wire = np.array(WIRE_COLOUR_LINEAR, dtype=np.float32)

    def shade(samples: _Samples, rgb: F32, coverage: F32) -> None:
        _average_wireframe(
            samples.face_id, screen, faces, grey, wire, reach, opacity, samples.first_row, supersample, rgb, coverage
        )

    rgb_srgb, coverage = _render_bands(mesh, camera, supersample, shade)
    return Render(rgb_srgb, coverage, render_depth(mesh, camera))


def _mean_edge_length(screen: F64, faces: I32) -> float:
    """Return the mean length of the faces' sides on screen, samples; 0 when nothing is in front of the camera."""
    in_front = faces[(screen[faces, 3] != 0.0).all(axis=1)]
    if len(in_front) == 0:
        return 0.0
    corners = screen[in_front, :2]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean())


@dataclass(frozen=True, eq=False)
class _Samples:
    """One band of the supersampled raster: face_id (rows, W), bary (rows, W, 2), the sample row it starts at."""

    face_id: I32
    bary: F32
    first_row: int


def _render_bands(
    mesh: TriangleMesh, camera: PinholeCamera, supersample: int, shade: Callable[[_Samples, F32, F32], None]
) -> tuple[F32, F32]:
    """Rasterise at `supersample` times the resolution and let `shade` average each band in linear light.

    Returns:
        rgb_srgb: (H, W, 3) over white.
        coverage: (H, W).
    """
    height, width = camera.image_hw
    large = camera.resized((height * supersample, width * supersample))
    homog = pixel_homogeneous(mesh.vertices, large)
    screen = screen_from_homogeneous(homog)
    faces = checked_faces(mesh.faces, len(mesh.vertices))
    rgb = np.empty((height, width, 3), np.float32)
    coverage = np.empty((height, width), np.float32)

    def band(start: int, stop: int) -> None:
        shape = ((stop - start) * supersample, width * supersample)
        face_id, bary, key = np.empty(shape, np.int32), np.empty((*shape, 2), np.float32), np.empty(shape, np.float32)
        first_row = start * supersample
        raster_rows(homog, screen, faces, first_row, key, face_id)
        resolve_rows(homog, faces, first_row, face_id, bary, key)
        shade(_Samples(face_id, bary, first_row), rgb[start:stop], coverage[start:stop])
        rgb[start:stop] = srgb_from_linear(rgb[start:stop])

    samples = height * width * supersample**2
    bands = max(thread_count(), math.ceil(samples / SAMPLES_PER_BAND))
    run_jobs([partial(band, start, stop) for start, stop in row_bands(height, bands)])
    return rgb, coverage


def _headlight(mesh: TriangleMesh, camera: PinholeCamera) -> F32:
    """Return (F,) linear grey of each face: Lambert's cosine to the camera, lifted off black, on both sides."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    normal = np.cross(b - a, c - a)
    to_camera = camera.position_world - (a + b + c) / 3
    length = np.linalg.norm(normal, axis=1) * np.linalg.norm(to_camera, axis=1)
    cosine: NDArray[Any] = np.abs((normal * to_camera).sum(axis=1)) / np.maximum(length, 1e-30)
    return (0.12 + 0.6 * cosine).astype(np.float32)


@njit(cache=True, nogil=True)
def bilinear_texel(texture: F32, u: float, v: float) -> tuple[int, int, int, int, float, float]:
    """Return the four texels around a lookup and the weights: (x0, x1, y0, y1, weight of x1, weight of y1).

    Texel centres lie at +0.5, coordinates wrap, v = 1 is the texture's row 0.
    """
    height, width = texture.shape[:2]
    x, y = u * width - 0.5, (1.0 - v) * height - 0.5
    left, top = math.floor(x), math.floor(y)
    x0, y0 = int(left), int(top)
    if x0 < 0 or x0 >= width:
        x0 %= width
    if y0 < 0 or y0 >= height:
        y0 %= height
    x1 = x0 + 1 if x0 + 1 < width else 0
    y1 = y0 + 1 if y0 + 1 < height else 0
    return x0, x1, y0, y1, x - left, y - top


@njit(cache=True, nogil=True)
def _average_textured(
    face_id: I32, bary: F32, uvs: F32, uv_faces: I32, texture: F32, factor: int, rgb: F32, coverage: F32
) -> None:
    """Average factor x factor textured samples into each pixel of a band, over white."""
    rows, width = coverage.shape
    share = 1.0 / (factor * factor)
    for row in range(rows):
        for col in range(width):
            red, green, blue, hits = 0.0, 0.0, 0.0, 0
            for i in range(row * factor, (row + 1) * factor):
                for j in range(col * factor, (col + 1) * factor):
                    f = face_id[i, j]
                    if f < 0:
                        continue
                    hits += 1
                    b0, b1 = float(bary[i, j, 0]), float(bary[i, j, 1])
                    b2 = 1.0 - b0 - b1
                    t0, t1, t2 = uv_faces[f, 0], uv_faces[f, 1], uv_faces[f, 2]
                    u = b0 * uvs[t0, 0] + b1 * uvs[t1, 0] + b2 * uvs[t2, 0]
                    v = b0 * uvs[t0, 1] + b1 * uvs[t1, 1] + b2 * uvs[t2, 1]
                    x0, x1, y0, y1, p, q = bilinear_texel(texture, u, v)
                    w00, w01, w10, w11 = (1 - p) * (1 - q), p * (1 - q), (1 - p) * q, p * q
                    red += (
                        w00 * texture[y0, x0, 0]
                        + w01 * texture[y0, x1, 0]
                        + w10 * texture[y1, x0, 0]
                        + w11 * texture[y1, x1, 0]
                    )
                    green += (
                        w00 * texture[y0, x0, 1]
                        + w01 * texture[y0, x1, 1]
                        + w10 * texture[y1, x0, 1]
                        + w11 * texture[y1, x1, 1]
                    )
                    blue += (
                        w00 * texture[y0, x0, 2]
                        + w01 * texture[y0, x1, 2]
                        + w10 * texture[y1, x0, 2]
                        + w11 * texture[y1, x1, 2]
                    )
            white = 1.0 - hits * share
            rgb[row, col, 0] = red * share + white
            rgb[row, col, 1] = green * share + white
            rgb[row, col, 2] = blue * share + white
            coverage[row, col] = hits * share


@njit(cache=True, nogil=True)
def _average_wireframe(
    face_id: I32,
    screen: F64,
    faces: I32,
    grey: F32,
    wire: F32,
    reach: float,
    opacity: float,
    first_row: int,
    factor: int,
    rgb: F32,
    coverage: F32,
) -> None:
    """Average factor x factor samples: the face's grey, under a line within `reach` samples of its edges."""
    rows, width = coverage.shape
    share = 1.0 / (factor * factor)
    for row in range(rows):
        for col in range(width):
            light, lines, hits = 0.0, 0.0, 0
            for i in range(row * factor, (row + 1) * factor):
                for j in range(col * factor, (col + 1) * factor):
                    f = face_id[i, j]
                    if f < 0:
                        continue
                    hits += 1
                    if _near_an_edge(screen, faces, f, j + 0.5, first_row + i + 0.5, reach):
                        lines += opacity
                        light += (1.0 - opacity) * grey[f]
                    else:
                        light += grey[f]
            white = 1.0 - hits * share
            for channel in range(3):
                rgb[row, col, channel] = (light + lines * wire[channel]) * share + white
            coverage[row, col] = hits * share


@njit(cache=True, nogil=True)
def _near_an_edge(screen: F64, faces: I32, f: int, x: float, y: float, reach: float) -> bool:
    """Tell whether a sample lies within `reach` samples of the lines through a face's edges, on screen."""
    for c in range(3):
        i, j = faces[f, c], faces[f, (c + 1) % 3]
        if screen[i, 3] == 0.0 or screen[j, 3] == 0.0:
            continue
        dx, dy = screen[j, 0] - screen[i, 0], screen[j, 1] - screen[i, 1]
        across = (x - screen[i, 0]) * dy - (y - screen[i, 1]) * dx
        if across * across <= reach * reach * (dx * dx + dy * dy):
            return True
    return False
