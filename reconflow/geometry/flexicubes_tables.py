"""Tables of dual marching cubes, derived from the cube: which crossed edges make one vertex, and what is ambiguous.

A case is the set of a cube's negative corners, corner i as bit i. Corner i lies at (i & 1, i >> 1 & 1, i >> 2 & 1).
Nothing here knows a grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CORNERS: tuple[tuple[int, int, int], ...] = tuple((i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8))
"""Offsets of a cube's corners."""
EDGES: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4),
)  # fmt: skip
"""First and second corner of a cube's edges: +x for 0, 2, 4, 6, +z for 1, 3, 5, 7, -y for 8 to 11. In all four cubes
that share an edge of the grid it runs alike."""
MAX_DUALS = 4
"""Dual vertices of a cube at most."""
_AMBIGUOUS_CORNERS = 5
"""A case with one ambiguous face is problematic from this number of negative corners on."""


@dataclass(frozen=True)
class Face:
    """A face of the cube.

    Attributes:
        outwards: Offset of the neighbouring cube.
        edges: Its four edges.
    """

    outwards: tuple[int, int, int]
    edges: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DualTables:
    """What every case means.

    Attributes:
        owners: (256, 12) int8, the dual vertex that each edge belongs to, numbered within the case; -1 where the edge
            is not crossed.
        counts: (256,) int8, the dual vertices.
        problematic: (256,) bool, cases whose inverse is taken where two of them meet at an ambiguous face.
        across: (256, 3) int8, the neighbour across that face; zeros for other cases.
    """

    owners: NDArray[np.int8]
    counts: NDArray[np.int8]
    problematic: NDArray[np.bool_]
    across: NDArray[np.int8]


@cache
def dual_tables() -> DualTables:
    """Derive the tables; they are computed once."""
    owners = np.full((256, len(EDGES)), -1, np.int8)
    counts = np.zeros(256, np.int8)
    problematic = np.zeros(256, np.bool_)
    across = np.zeros((256, 3), np.int8)
    for case in range(256):
        duals = dual_vertices(case)
        counts[case] = len(duals)
        for number, edges in enumerate(duals):
            owners[case, list(edges)] = number
        ambiguous = [face for face in FACES if len(crossed_edges(case, face.edges)) == 4]
        if len(ambiguous) == 1 and case.bit_count() >= _AMBIGUOUS_CORNERS:
            problematic[case], across[case] = True, ambiguous[0].outwards
    return DualTables(owners, counts, problematic, across)


def dual_vertices(case: int) -> list[tuple[int, ...]]:
    """The crossed edges of each dual vertex of a case, ascending; dual vertices in the conventional order.

    Edges are joined over the cube's faces. Where a face is crossed four times its negative corners stay apart.
    """
    joined = []
    for face in FACES:
        crossed = crossed_edges(case, face.edges)
        if len(crossed) == 2:
            joined.append((crossed[0], crossed[1]))
        elif len(crossed) == 4:
            for corner in range(8):
                meeting = [edge for edge in crossed if corner in EDGES[edge]]
                if is_negative(case, corner) and meeting:
                    joined.append((meeting[0], meeting[1]))
    duals = connected_sets(crossed_edges(case, range(len(EDGES))), joined)
    inside = connected_sets(
        [corner for corner in range(8) if is_negative(case, corner)],
        [edge for edge in EDGES if is_negative(case, edge[0]) and is_negative(case, edge[1])],
    )

    def rank(dual: tuple[int, ...]) -> tuple[int, int]:
        ends = {corner for edge in dual for corner in EDGES[edge]}
        lowest = min(min(part) for part in inside if ends & set(part))
        return lowest, min(corner for corner in ends if not is_negative(case, corner))

    return sorted(duals, key=rank)


def is_negative(case: int, corner: int) -> bool:
    """Whether a corner is inside."""
    return bool(case >> corner & 1)


def crossed_edges(case: int, edges: Iterable[int]) -> list[int]:
    """Those of some edges whose ends have different signs."""
    return [edge for edge in edges if is_negative(case, EDGES[edge][0]) != is_negative(case, EDGES[edge][1])]


def connected_sets(members: Iterable[int], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Sets of members that pairs connect, each ascending."""
    sets = {member: {member} for member in members}
    for a, b in pairs:
        if sets[a] is not sets[b]:
            sets[a] |= sets[b]
            for member in sets[b]:
                sets[member] = sets[a]
    return sorted({tuple(sorted(found)) for found in sets.values()})


def _faces() -> tuple[Face, ...]:
    faces = []
    for axis, side in itertools.product(range(3), range(2)):
        outwards = [0, 0, 0]
        outwards[axis] = 2 * side - 1
        edges = tuple(i for i, edge in enumerate(EDGES) if all(CORNERS[corner][axis] == side for corner in edge))
        faces.append(Face((outwards[0], outwards[1], outwards[2]), edges))
    return tuple(faces)


FACES = _faces()
"""The six faces."""
