"""Facts of a textured mesh as a file: its topology and how well its texture is used. Measures, never repairs."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TexturedMesh
from reconflow.quality.report import MeshQuality


def measure_mesh(textured: TexturedMesh) -> MeshQuality:
    """Count and measure a textured mesh.

    Atlas use adds up the triangles' areas in the UV map, so that overlapping charts would count twice.
    """
    facts = asdict(mesh_facts(textured.mesh))
    volume = facts.pop("volume")
    height, width = textured.base_colour_srgb.shape[:2]
    corners = textured.mesh.vertices.astype(np.float64)[textured.mesh.faces]
    corners_uv = textured.uvs.astype(np.float64)[textured.uv_faces]
    edges = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2)
    texels = np.linalg.norm((np.roll(corners_uv, -1, axis=1) - corners_uv) * (width, height), axis=2)
    density = (texels[edges > 0] / edges[edges > 0]) if (edges > 0).any() else np.zeros(1)
    low, high = np.percentile(density, [5, 95])
    side, other = corners_uv[:, 1] - corners_uv[:, 0], corners_uv[:, 2] - corners_uv[:, 0]
    uv_area = 0.5 * float(np.abs(side[:, 0] * other[:, 1] - side[:, 1] * other[:, 0]).sum())
    return MeshQuality(
        **facts,
        volume=volume if facts["watertight"] else None,
        texture_hw=(height, width),
        charts=_chart_count(textured),
        atlas_use=uv_area,
        texels_per_unit=float(np.sqrt(uv_area * width * height / facts["area"])) if facts["area"] > 0 else 0.0,
        texel_stretch=float(high / low) if low > 0 else 0.0,
    )


def _chart_count(textured: TexturedMesh) -> int:
    """Count the pieces of the UV map that share no UV vertex."""
    start, end = textured.uv_faces.ravel(), np.roll(textured.uv_faces, -1, axis=1).ravel()
    count = len(textured.uvs)
    graph = coo_array((np.ones(len(start)), (start, end)), shape=(count, count))
    pieces, label = connected_components(graph, directed=False)
    return len(np.unique(label[np.unique(textured.uv_faces)])) if pieces else 0
