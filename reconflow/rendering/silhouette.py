"""The silhouette of a mesh in one view: which edges it follows and which pixel pairs it separates.

What is blended, and how a gradient comes back, is the business of `antialias_op` and `fused`, which share this walk.

An edge belongs to the silhouette when its faces lie on one side of it on screen (one front-facing, one back-facing,
or only one face at all). It is walked along both image axes: at every line of pixel centres it crosses the segment
between two neighbouring centres, the *inner* one on the faces' side and the *outer* one. The crossing counts when the
outer pixel shows something farther away than the edge, and when no other edge crosses between the same two centres
farther out: on a fine mesh the silhouette edges zigzag within a pixel, and only the outermost is the outline.
Intervals are half-open, so that a chain of edges crosses each line of centres exactly once. Crossings of vertical and
of horizontal lines each measure the whole outline; an edge at angle a to the x axis takes them with shares cos^2 a and
sin^2 a, which removes the jumps that choosing the major axis makes wherever an outline turns through 45 degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from reconflow.rendering.raster import F32, F64, I32

I8 = NDArray[np.int8]

KEY_TOLERANCE = 1e-6
"""Relative difference of depth keys below which two surfaces count as the same."""


@dataclass(frozen=True, eq=False)
class EdgeTopology:
    """The edges of a triangle list and the faces on them.

    Attributes:
        edges: (E, 2) int32 vertex indices, the smaller one first, sorted.
        edge_faces: (E, 2) int32 the faces on the edge, -1 for none; of more than two, those with the lowest index.
        edge_turns: (E, 2) int8: +1 where the face runs from the first to the second vertex, -1 the other way.
    """

    edges: I32
    edge_faces: I32
    edge_turns: I8

    @cached_property
    def face_component(self) -> I32:
        """(F,) int32: faces connected through vertices share a number."""
        vertices = int(self.edges.max(initial=0)) + 1
        links = np.ones(len(self.edges), np.int8), (self.edges[:, 0], self.edges[:, 1])
        _, of_vertex = connected_components(coo_matrix(links, shape=(vertices, vertices)), directed=False)
        component = np.zeros(int(self.edge_faces.max(initial=-1)) + 1, np.int32)
        for k in range(2):
            present = self.edge_faces[:, k] >= 0
            component[self.edge_faces[present, k]] = of_vertex[self.edges[present, 0]]
        return component


def build_edge_topology(faces: NDArray[np.int32]) -> EdgeTopology:
    """Find the edges of (F, 3) faces; vertices are shared by index."""
    count = len(faces)
    starts = faces[:, [0, 1, 2]].T.reshape(-1).astype(np.int64)
    stops = faces[:, [1, 2, 0]].T.reshape(-1).astype(np.int64)
    owner = np.tile(np.arange(count, dtype=np.int32), 3)
    low, high = np.minimum(starts, stops), np.maximum(starts, stops)
    order = np.lexsort((owner, high, low))
    low, high, owner = low[order], high[order], owner[order]
    turn = np.where((starts < stops)[order], 1, -1).astype(np.int8)
    is_first = np.ones(len(low), bool)
    is_first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    first = np.flatnonzero(is_first)
    has_second = np.diff(np.append(first, len(low))) >= 2
    second = np.minimum(first + 1, len(low) - 1)
    return EdgeTopology(
        edges=np.stack([low[first], high[first]], axis=1).astype(np.int32),
        edge_faces=np.stack([owner[first], np.where(has_second, owner[second], -1)], axis=1).astype(np.int32),
        edge_turns=np.stack([turn[first], np.where(has_second, turn[second], 0)], axis=1).astype(np.int8),
    )


@njit(cache=True, nogil=True)
def face_orientation(screen: F64, faces: I32, orientation: I8) -> None:
    """Write +1 for faces counter-clockwise in the pixel frame, -1 for the others (edge-on ones too), 0 if cut."""
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        if screen[i0, 3] + screen[i1, 3] + screen[i2, 3] < 3.0:
            orientation[f] = 0
            continue
        area = (screen[i1, 0] - screen[i0, 0]) * (screen[i2, 1] - screen[i0, 1]) - (screen[i2, 0] - screen[i0, 0]) * (
            screen[i1, 1] - screen[i0, 1]
        )
        orientation[f] = 1 if area > 0.0 else -1


@njit(cache=True, nogil=True)
def silhouette_edges(orientation: I8, edge_faces: I32, edge_turns: I8, chosen: I32, sides: I8) -> int:
    """List the silhouette edges of one view; edges on a face that the near plane cuts are left out.

    Args:
        orientation: (F,) from `face_orientation`; 0 leaves a face's edges out.
        edge_faces: (E, 2), see `EdgeTopology`.
        edge_turns: (E, 2), see `EdgeTopology`.
        chosen: (E,), written: indices of the silhouette edges.
        sides: (E,), written: +1 when their faces lie left of the edge (positive cross product), else -1.

    Returns:
        How many there are.
    """
    count = 0
    for e in range(edge_faces.shape[0]):
        side = edge_turns[e, 0] * orientation[edge_faces[e, 0]]
        other = edge_faces[e, 1]
        if side == 0 or (other >= 0 and edge_turns[e, 1] * orientation[other] != side):
            continue
        chosen[count] = e
        sides[count] = side
        count += 1
    return count


@njit(cache=True, nogil=True)
def crossing_bound(screen: F64, edges: I32, chosen: I32, height: int, width: int) -> int:
    """Return an upper bound of the crossings that `walk_silhouette` can list."""
    bound = 0
    for index in range(chosen.shape[0]):
        a, b = edges[chosen[index], 0], edges[chosen[index], 1]
        bound += int(min(abs(screen[b, 0] - screen[a, 0]), float(width))) + 2
        bound += int(min(abs(screen[b, 1] - screen[a, 1]), float(height))) + 2
    return bound


@njit(cache=True, nogil=True)
def walk_silhouette(
    screen: F64, edges: I32, chosen: I32, sides: I8, key: F32, slots: I32, pixels: I32, crossing: F64
) -> int:
    """Walk silhouette edges and list the pixel pairs that the visible outline separates.

    Of all crossings between the same two centres that have the same inner pixel only the outermost is kept; the
    others lie behind the surface that ends there.

    Args:
        screen: (V, 4) from `raster.screen_from_homogeneous`.
        edges: (E, 2) vertex indices.
        chosen: (S,) silhouette edges.
        sides: (S,) the side their faces lie on.
        key: (H, W) depth key seen by each pixel, above 1 where empty.
        slots: (H * W * 4,) scratch, all -1 before and after.
        pixels: (P, 4), written: inner pixel, outer pixel (row * W + column), edge, slot; P from `crossing_bound`.
            The pixels lie below each other when bit 1 of the slot is clear, else side by side.
        crossing: (P, 3), written: distance in pixels from the inner centre to the edge, 0 to 1 (it grows with the
            pixel coordinate when the inner pixel's index is the smaller one); position along the edge on screen, 0 at
            its first vertex, 1 at its second; the crossing's share.

    Returns:
        How many pairs there are; they fill the front of both arrays, in a fixed order.
    """
    height, width = key.shape
    count = 0
    for index in range(chosen.shape[0]):
        a, b = edges[chosen[index], 0], edges[chosen[index], 1]
        ax, ay, ak = screen[a, 0], screen[a, 1], screen[a, 2]
        dx, dy, dk = screen[b, 0] - ax, screen[b, 1] - ay, screen[b, 2] - ak
        for axis in range(2):
            along_x = axis == 0
            start, step = (ax, dx) if along_x else (ay, dy)
            across, slope = (ay, dy) if along_x else (ax, dx)
            length, breadth = (width, height) if along_x else (height, width)
            low, high = min(start, start + step), max(start, start + step)
            if not (high > 0.0 and low < length):
                continue
            share = step * step / (dx * dx + dy * dy)
            inner_above = sides[index] * (dx if along_x else -dy) > 0.0
            for i in range(math.ceil(max(low, 0.0) - 0.5), min(math.ceil(high - 0.5), length)):
                s = (i + 0.5 - start) / step
                cross = across + s * slope
                j = math.floor(cross - 0.5)
                if not 0 <= j < breadth - 1:
                    continue
                inner, outer = (j + 1, j) if inner_above else (j, j + 1)
                edge_key = ak + s * dk
                outer_key = key[outer, i] if along_x else key[i, outer]
                if not outer_key > edge_key + KEY_TOLERANCE * abs(edge_key):
                    continue
                distance = abs(cross - (inner + 0.5))
                inner_pixel = inner * width + i if along_x else i * width + inner
                slot = 4 * inner_pixel + 2 * axis + (1 if inner_above else 0)
                place = slots[slot]
                if place < 0:
                    place = count
                    slots[slot] = count
                    count += 1
                elif distance <= crossing[place, 0]:
                    continue
                pixels[place, 0] = inner_pixel
                pixels[place, 1] = outer * width + i if along_x else i * width + outer
                pixels[place, 2] = chosen[index]
                pixels[place, 3] = slot
                crossing[place, 0] = distance
                crossing[place, 1] = s
                crossing[place, 2] = share
    for place in range(count):
        slots[pixels[place, 3]] = -1
    return count


@dataclass(frozen=True, eq=False)
class SilhouettePairs:
    """The pixel pairs that a view's silhouette separates; see `walk_silhouette` for the two arrays.

    Attributes:
        pixels: (P, 4) int32 (inner pixel, outer pixel, edge, slot).
        crossing: (P, 3) float64 (distance from the inner centre, position along the edge, share).
    """

    pixels: I32
    crossing: F64


def find_silhouette_pairs(
    screen: F64, faces: I32, topology: EdgeTopology, key: F32, shown: NDArray[np.bool_] | None = None
) -> SilhouettePairs:
    """Find the silhouette of one view and the pixel pairs it separates.

    Args:
        screen: (V, 4) from `raster.screen_from_homogeneous`.
        faces: (F, 3) vertex indices.
        topology: The faces' edges.
        key: (H, W) depth key seen by each pixel, above 1 where empty.
        shown: (F,) which faces this view rasterised; None for all.
    """
    orientation = np.empty(len(faces), np.int8)
    face_orientation(screen, faces, orientation)
    if shown is not None:
        orientation[~shown] = 0
    chosen, sides = np.empty(len(topology.edges), np.int32), np.empty(len(topology.edges), np.int8)
    count = silhouette_edges(orientation, topology.edge_faces, topology.edge_turns, chosen, sides)
    chosen, sides = chosen[:count], sides[:count]
    bound = crossing_bound(screen, topology.edges, chosen, *key.shape)
    pixels, crossing = np.empty((bound, 4), np.int32), np.empty((bound, 3))
    slots = np.full(key.size * 4, -1, np.int32)
    pairs = walk_silhouette(screen, topology.edges, chosen, sides, key, slots, pixels, crossing)
    return SilhouettePairs(pixels[:pairs], crossing[:pairs])


@njit(cache=True, nogil=True)
def scatter_crossing_gradient(
    screen: F64, homog: F64, a: int, b: int, on_column: int, along: float, sign: float, gradient: float, grad_homog: F64
) -> None:
    """Add the gradient of one crossing's distance to the edge's two vertices.

    On a column of pixel centres the crossing lies at y = ay + s (by - ay), s = (x - ax) / (bx - ax), so that
    dy/da = (1 - s) (-m, 1) and dy/db = s (-m, 1), m the slope; likewise on a row.

    Args:
        screen: (V, 4) pixel positions.
        homog: (V, 4) pixel-homogeneous vertices.
        a: First vertex.
        b: Second vertex.
        on_column: 1 when the crossing is on a column of pixel centres, 0 on a row.
        along: s, the position along the edge.
        sign: +1 when the distance grows with the pixel coordinate.
        gradient: dL/d(distance).
        grad_homog: (V, 3), added to: gradient of (xh, yh, w).
    """
    dx, dy = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
    if on_column == 1:
        gx, gy = -sign * gradient * dy / dx, sign * gradient
    else:
        gx, gy = sign * gradient, -sign * gradient * dx / dy
    for k in range(2):
        vertex, share = (a, 1.0 - along) if k == 0 else (b, along)
        inverse = share / homog[vertex, 3]
        grad_homog[vertex, 0] += gx * inverse
        grad_homog[vertex, 1] += gy * inverse
        grad_homog[vertex, 2] -= (gx * screen[vertex, 0] + gy * screen[vertex, 1]) * inverse
