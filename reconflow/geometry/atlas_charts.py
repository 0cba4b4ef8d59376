"""Cutting a surface into charts that an orthographic projection flattens. Which face goes where; no packing.

A chart costs what its faces lose by facing away from its direction (Cohen-Steiner et al., "Variational shape
approximation", 2004: area times the squared difference of normals), plus the length of its seams, plus a fixed price.
Faces are labelled with one of several fixed directions, labels are smoothed, connected parts become charts, charts are
merged while that lowers the cost and refined at their borders towards their own mean direction. Charts whose
projection covers itself are cut apart in the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_area_vectors, unit_rows
from reconflow.geometry.topology import connected_labels, face_neighbours

_MERGE_ROUNDS = 40
_SWEEPS = 8


@dataclass(frozen=True)
class ChartOptions:
    """What charts cost; see the module. Lengths are relative to the root of the surface's area.

    Attributes:
        seam_weight: Price of a seam per length; larger gives fewer, more stretched charts.
        chart_price: Price of a chart, relative to the surface's area.
        min_cos: Smallest cosine between a face's normal and its chart's direction, if it can be had.
    """

    seam_weight: float = 0.1
    chart_price: float = 2e-4
    min_cos: float = 0.4


_LENIENT = ChartOptions(chart_price=1e-2, min_cos=0.25)
_SMALL_SHARE = 5e-4


@dataclass(frozen=True, eq=False)
class Surface:
    """What the labelling needs to know of a mesh's faces, computed once.

    Attributes:
        normals: (F, 3) unit normals; zero for faces without area.
        smooth_normals: (F, 3) unit normals averaged over neighbours that face alike.
        areas: (F,) squared world units.
        neighbours: (F, 3) int32 face across each edge; -1 for none.
        lengths: (F, 3) edge lengths, world units.
    """

    normals: NDArray[np.float64]
    smooth_normals: NDArray[np.float64]
    areas: NDArray[np.float64]
    neighbours: NDArray[np.int32]
    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, mesh: TriangleMesh, smoothing: int = 3) -> Surface:
        """Measure a mesh; normals are averaged `smoothing` times over the faces' neighbours that face alike."""
        vectors = face_area_vectors(mesh)
        normals = unit_rows(vectors)
        neighbours = face_neighbours(mesh.faces)
        across = np.concatenate([normals, np.zeros((1, 3))])[neighbours]
        alike = np.clip(2.0 * np.einsum("fi,fki->fk", normals, across) - 0.5, 0.0, 1.0)  # sharp edges stay sharp
        smooth = vectors
        for _ in range(smoothing):
            padded = np.concatenate([smooth, np.zeros((1, 3))])
            smooth = smooth + sum(alike[:, k, None] * padded[neighbours[:, k]] for k in range(3))
        corners = mesh.vertices.astype(np.float64)[mesh.faces]
        lengths = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2)
        areas = np.asarray(np.linalg.norm(vectors, axis=1), dtype=np.float64)
        return cls(normals, unit_rows(smooth), areas, neighbours, lengths)


@dataclass(frozen=True, eq=False)
class Charts:
    """A partition of a mesh's faces.

    Attributes:
        labels: (F,) int32 chart of each face.
        directions: (C, 3) unit direction along which each chart is projected, from the object towards the viewer.
    """

    labels: NDArray[np.int32]
    directions: NDArray[np.float64]


def projection_directions(count: int = 26) -> NDArray[np.float64]:
    """Return unit directions: the 6 axes (front, back, left, right, top, bottom), 8 corners (14), 12 edges (26)."""
    axes = [(0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]
    steps = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    corners = [step for step in steps if abs(step[0]) + abs(step[1]) + abs(step[2]) == 3]
    edges = [step for step in steps if abs(step[0]) + abs(step[1]) + abs(step[2]) == 2]
    return unit_rows(np.array([*axes, *corners, *edges], dtype=np.float64)[:count])


def cut_into_charts(
    surface: Surface,
    directions: NDArray[np.float64],
    options: ChartOptions,
    face_costs: NDArray[np.float64] | None = None,
) -> Charts:
    """Partition the faces; charts are connected but may still cover themselves when projected.

    Args:
        surface: The mesh's faces.
        directions: (D, 3) unit directions to start from.
        options: What charts cost.
        face_costs: (F, D) additional cost of a face being in a chart of a direction, per area; a cosine lost weighs 2.
    """
    n_faces = len(surface.areas)
    costs = np.zeros((n_faces, 0)) if face_costs is None else face_costs * surface.areas[:, None]
    weight = options.seam_weight * math.sqrt(float(surface.areas.sum()))
    facing = _cosines(surface.normals, directions)
    wanted = 2.0 * (1.0 - _cosines(surface.smooth_normals, directions))
    if face_costs is not None:
        wanted = wanted + face_costs
    wanted[facing < options.min_cos] += 1e3
    labels = wanted.argmin(axis=1).astype(np.int32)
    _refine(labels, directions, np.arange(len(directions)), surface, costs, weight, options.min_cos, _SWEEPS)
    charts = _connected(Charts(labels, directions), surface)
    for _ in range(2):
        charts = _merged(charts, surface, costs, weight, options)
        preferred = _preferred(charts, costs)
        labels = charts.labels.copy()
        _refine(labels, charts.directions, preferred, surface, costs, weight, options.min_cos, _SWEEPS)
        charts = _towards_mean(_connected(Charts(labels, charts.directions), surface), surface, options.min_cos)
    charts = _merged(charts, surface, costs, weight, options)
    return _merged(_evicted(charts, surface, directions), surface, costs, weight, _LENIENT, small=_SMALL_SHARE)


def _cosines(normals: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (F, D) dot products, summed in a fixed order whatever the number of threads."""
    return np.asarray(np.einsum("fi,di->fd", normals, directions), dtype=np.float64)


def _connected(charts: Charts, surface: Surface) -> Charts:
    """Give every connected part of a label its own chart, numbered by first face."""
    across = np.where(surface.neighbours >= 0, charts.labels[surface.neighbours], -1)
    joined = np.where(across == charts.labels[:, None], surface.neighbours, -1).astype(np.int32)
    labels, n_labels = connected_labels(joined)
    first = np.empty(n_labels, dtype=np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    return Charts(labels, charts.directions[charts.labels[first]])


def _area_vectors(labels: NDArray[np.int32], surface: Surface, n_charts: int) -> NDArray[np.float64]:
    """Sum area times normal over each chart, (C, 3)."""
    vectors = surface.normals * surface.areas[:, None]
    return np.stack([np.bincount(labels, weights=vectors[:, i], minlength=n_charts) for i in range(3)], axis=1)


def _lowest_cos(labels: NDArray[np.int32], directions: NDArray[np.float64], surface: Surface) -> NDArray[np.float64]:
    """Return (C,) the smallest cosine between each chart's direction and its faces; faces without area don't count."""
    facing = np.einsum("fi,fi->f", surface.normals, directions[labels])
    facing[surface.areas <= 0] = 1.0
    lowest = np.ones(len(directions))
    np.minimum.at(lowest, labels, facing)
    return lowest


def _towards_mean(charts: Charts, surface: Surface, min_cos: float) -> Charts:
    """Turn each chart's direction to its mean normal where no face then faces away too far."""
    mean = unit_rows(_area_vectors(charts.labels, surface, len(charts.directions)))
    before = _lowest_cos(charts.labels, charts.directions, surface)
    after = _lowest_cos(charts.labels, mean, surface)
    better = after >= np.minimum(before, min_cos)
    return Charts(charts.labels, np.where(better[:, None], mean, charts.directions))


def _merged(
    charts: Charts,
    surface: Surface,
    costs: NDArray[np.float64],
    weight: float,
    options: ChartOptions,
    small: float = 1.0,
) -> Charts:
    """Merge neighbouring charts, the most rewarding pairs first, while that lowers the cost.

    Only pairs count of which one has at most the share `small` of the surface's area.
    """
    price = options.chart_price * float(surface.areas.sum())
    refused: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    labels, directions = charts.labels, charts.directions.copy()
    n_charts = len(directions)
    for _ in range(_MERGE_ROUNDS):
        pairs, shared = _neighbouring_charts(labels, surface, n_charts)
        open_pairs = ~np.isin(pairs[:, 0] * n_charts + pairs[:, 1], refused)
        pairs, shared = pairs[open_pairs], shared[open_pairs]
        vectors = _area_vectors(labels, surface, n_charts)
        sums = _summed_costs(labels, costs, n_charts)
        bend = np.linalg.norm(vectors, axis=1)
        left, right = pairs.T
        loss = 2.0 * (bend[left] + bend[right] - np.linalg.norm(vectors[left] + vectors[right], axis=1))
        loss += (sums[left] + sums[right]).min(axis=1) - sums[left].min(axis=1) - sums[right].min(axis=1)
        gain = weight * shared + price - loss
        sizes = np.bincount(labels, weights=surface.areas, minlength=n_charts)
        gain[np.minimum(sizes[left], sizes[right]) > small * sizes.sum()] = -1.0
        chosen = _independent_pairs(pairs, gain, n_charts)
        if len(chosen) == 0:
            break
        target = np.arange(n_charts)
        target[pairs[chosen, 1]] = pairs[chosen, 0]
        proposed = target[labels].astype(np.int32)
        mean = unit_rows(_area_vectors(proposed, surface, n_charts))
        trial = directions.copy()
        trial[pairs[chosen, 0]] = mean[pairs[chosen, 0]]
        lowest = _lowest_cos(proposed, trial, surface)
        bad = lowest[pairs[chosen, 0]] < options.min_cos
        refused = np.concatenate([refused, pairs[chosen[bad], 0] * n_charts + pairs[chosen[bad], 1]])
        target[pairs[chosen[bad], 1]] = pairs[chosen[bad], 1]
        directions[pairs[chosen[~bad], 0]] = mean[pairs[chosen[~bad], 0]]
        labels = target[labels].astype(np.int32)
    return _connected(Charts(labels, directions), surface)


def _neighbouring_charts(
    labels: NDArray[np.int32], surface: Surface, n_charts: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (P, 2) pairs of touching charts, smaller first, ascending, and (P,) the lengths of common borders."""
    across = np.where(surface.neighbours >= 0, labels[surface.neighbours], labels[:, None])
    face, side = np.nonzero(across > labels[:, None])
    keys = labels[face].astype(np.int64) * n_charts + across[face, side]
    unique, index = np.unique(keys, return_inverse=True)
    shared = np.bincount(index, weights=surface.lengths[face, side], minlength=len(unique))
    return np.stack([unique // n_charts, unique % n_charts], axis=1), shared.astype(np.float64)


def _independent_pairs(pairs: NDArray[np.int64], gain: NDArray[np.float64], n_charts: int) -> NDArray[np.int64]:
    """Pick pairs with a gain, best first, each chart at most once."""
    taken = np.zeros(n_charts, dtype=bool)
    chosen = []
    for k in np.argsort(-gain, kind="stable"):
        if gain[k] <= 0.0:
            break
        left, right = pairs[k]
        if not taken[left] and not taken[right]:
            taken[left] = taken[right] = True
            chosen.append(k)
    return np.array(chosen, dtype=np.int64)


def _preferred(charts: Charts, costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return (C,) the start direction whose summed face costs are lowest in each chart; zeros without costs."""
    return np.asarray(_summed_costs(charts.labels, costs, len(charts.directions)).argmin(axis=1), dtype=np.int64)


def _summed_costs(labels: NDArray[np.int32], costs: NDArray[np.float64], n_charts: int) -> NDArray[np.float64]:
    """Sum (F, D) costs over each chart, (C, D); a column of zeros without costs."""
    if costs.shape[1] == 0:
        return np.zeros((n_charts, 1))
    return np.stack([np.bincount(labels, weights=column, minlength=n_charts) for column in costs.T], axis=1)


def _evicted(charts: Charts, surface: Surface, directions: NDArray[np.float64]) -> Charts:
    """Move the faces that their chart would fold (rare) into charts of their nearest fixed direction."""
    facing = np.einsum("fi,fi->f", surface.normals, charts.directions[charts.labels])
    folded = np.flatnonzero((facing < 0.1) & (surface.areas > 0))
    labels = charts.labels.copy()
    labels[folded] = len(charts.directions) + _cosines(surface.normals[folded], directions).argmax(axis=1)
    return _connected(Charts(labels, np.concatenate([charts.directions, directions])), surface)


def _refine(
    labels: NDArray[np.int32],
    directions: NDArray[np.float64],
    preferred: NDArray[np.int64],
    surface: Surface,
    costs: NDArray[np.float64],
    weight: float,
    min_cos: float,
    sweeps: int,
) -> None:
    for _ in range(sweeps):
        changed = _sweep(
            labels,
            directions,
            preferred,
            surface.normals,
            surface.smooth_normals,
            surface.areas,
            surface.neighbours,
            surface.lengths,
            costs,
            weight,
            min_cos,
        )
        if changed * 1000 < len(labels):
            break


@njit(cache=True)
def _sweep(
    labels: NDArray[np.int32],
    directions: NDArray[np.float64],
    preferred: NDArray[np.int64],
    normals: NDArray[np.float64],
    smooth_normals: NDArray[np.float64],
    areas: NDArray[np.float64],
    neighbours: NDArray[np.int32],
    lengths: NDArray[np.float64],
    costs: NDArray[np.float64],
    weight: float,
    min_cos: float,
) -> int:
    """Give each face, in order, the cheapest of its own and its neighbours' labels; return how many changed."""
    changed = 0
    for f in range(labels.shape[0]):
        best_label, best = labels[f], np.inf
        for k in range(-1, 3):
            if k >= 0 and neighbours[f, k] < 0:
                continue
            label = labels[f] if k < 0 else labels[neighbours[f, k]]
            if k >= 0 and label == labels[f]:
                continue
            d = directions[label]
            facing = normals[f, 0] * d[0] + normals[f, 1] * d[1] + normals[f, 2] * d[2]
            smooth = smooth_normals[f, 0] * d[0] + smooth_normals[f, 1] * d[1] + smooth_normals[f, 2] * d[2]
            energy = 2.0 * areas[f] * (1.0 - smooth)
            if facing < min_cos and areas[f] > 0.0:
                if k >= 0:
                    continue
                energy = 1e30  # whatever else is allowed is better than staying
            if costs.shape[1] > 0:
                energy += costs[f, preferred[label]]
            for j in range(3):
                if neighbours[f, j] >= 0 and labels[neighbours[f, j]] != label:
                    energy += weight * lengths[f, j]
            if energy < best:
                best_label, best = label, energy
        if best_label != labels[f]:
            labels[f] = best_label
            changed += 1
    return changed
