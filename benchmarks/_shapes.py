"""Meshes, textures and cameras that the rendering benchmarks share; generated, so that they need no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class BenchmarkMesh:
    """A mesh inside the unit sphere with spherical texture coordinates.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int32.
        uvs: (T, 2) float32 in [0, 1], v up.
        uv_faces: (F, 3) int32 indices into `uvs`; no face straddles the seam.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    uvs: NDArray[np.float32]
    uv_faces: NDArray[np.int32]


def bumpy_sphere(rings: int = 108, sectors: int = 109) -> BenchmarkMesh:
    """Make a closed, asymmetric, bumpy sphere of 2 * sectors * (rings - 1) faces; 23326 by default."""
    latitude, longitude = np.meshgrid(np.arange(1, rings), np.arange(sectors), indexing="ij")
    theta, phi = latitude * np.pi / rings, longitude * 2 * np.pi / sectors
    body = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], axis=-1).reshape(-1, 3)
    unit = np.concatenate([body, [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]])
    radius = 1 + 0.25 * np.sin(3 * unit[:, 0] + 1) * np.cos(4 * unit[:, 1]) + 0.1 * np.sin(7 * unit[:, 2])
    north, south = len(body), len(body) + 1

    def at(ring: NDArray[np.int64], sector: NDArray[np.int64]) -> NDArray[np.int64]:
        return ring * sectors + sector % sectors

    ring, sector = (index.ravel() for index in np.meshgrid(np.arange(rings - 2), np.arange(sectors), indexing="ij"))
    a, b = at(ring, sector), at(ring, sector + 1)
    c, d = at(ring + 1, sector), at(ring + 1, sector + 1)
    every = np.arange(sectors)
    last = np.full(sectors, rings - 2)
    faces = np.concatenate(
        [
            np.stack([a, c, b], axis=1),
            np.stack([b, c, d], axis=1),
            np.stack([np.full(sectors, north), at(0 * every, every), at(0 * every, every + 1)], axis=1),
            np.stack([np.full(sectors, south), at(last, every + 1), at(last, every)], axis=1),
        ]
    )
    return with_spherical_uvs(unit * (radius / radius.max())[:, None], faces)


def load_mesh(path: Path) -> BenchmarkMesh:
    """Read any mesh file, scaled into the unit sphere, with spherical texture coordinates."""
    import trimesh

    mesh = trimesh.load(path, force="mesh", process=True)
    vertices = np.asarray(mesh.vertices) - mesh.bounds.mean(axis=0)
    return with_spherical_uvs(vertices / np.linalg.norm(vertices, axis=1).max(), np.asarray(mesh.faces))


def with_spherical_uvs(vertices: NDArray[Any], faces: NDArray[Any]) -> BenchmarkMesh:
    """Give every corner longitude and latitude; corners beyond the seam are moved to the face's side of it."""
    unit = vertices / np.maximum(np.linalg.norm(vertices, axis=1, keepdims=True), 1e-12)
    u = (np.arctan2(unit[:, 0], unit[:, 2]) / (2 * np.pi) + 0.5)[faces]
    v = (np.arccos(np.clip(-unit[:, 1], -1, 1)) / np.pi)[faces]
    u = np.where((np.ptp(u, axis=1, keepdims=True) > 0.5) & (u < 0.5), 1.0, u)
    corners = np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)
    uvs, index = np.unique(corners, axis=0, return_inverse=True)
    return BenchmarkMesh(
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.int32),
        uvs=uvs,
        uv_faces=index.reshape(-1, 3).astype(np.int32),
    )


def waves_texture(size: int = 1024) -> NDArray[np.float32]:
    """Make a (size, size, 3) float32 linear texture of smooth waves in [0, 1]."""
    y, x = np.meshgrid(*(np.arange(size) / size,) * 2, indexing="ij")
    waves = [0.5 + 0.5 * np.sin(2 * np.pi * (k * x + (5 - k) * y) * 4) for k in (1, 2, 3)]
    return np.stack(waves, axis=-1).astype(np.float32)
