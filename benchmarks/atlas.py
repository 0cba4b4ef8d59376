"""How our atlas compares with xatlas: CPU seconds, charts, stretch, seams and use of the texture, in the same run.

    python -m benchmarks.atlas
    python -m benchmarks.atlas --mesh my.glb --faces 80000 --texture 2048 --skip-xatlas

CPU seconds are of this process, for xatlas of all its threads. Both layouts are measured by the same code; ours is
run once before to compile its kernels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._extras import lacks
from reconflow.geometry.atlas import AtlasFacts, measure_atlas, unwrap
from reconflow.geometry.atlas_raster import count_coverage
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import fix_non_manifold, remesh_to_budget
from reconflow.geometry.topology import edge_connected_faces


def generated_meshes(faces: int) -> dict[str, TriangleMesh]:
    """Return a bumpy sphere and a torus knot of about `faces` faces."""
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=5)
    points = np.asarray(sphere.vertices)
    bumps = np.sin(9 * points[:, 0]) * np.sin(9 * points[:, 1]) * np.sin(9 * points[:, 2])
    bumpy = TriangleMesh(
        (points * (1 + 0.12 * bumps)[:, None]).astype(np.float32), np.asarray(sphere.faces, dtype=np.int32)
    )
    return {name: remesh_to_budget(mesh, faces) for name, mesh in (("bumpy sphere", bumpy), ("torus knot", knot()))}


def knot(along: int = 600, around: int = 40, radius: float = 0.17) -> TriangleMesh:
    """Return a trefoil tube as a regular grid of quads, halved."""
    t = np.linspace(0, 2 * np.pi, along, endpoint=False)
    ring = 0.65 + 0.3 * np.cos(3 * t)
    curve = np.stack([ring * np.cos(2 * t), ring * np.sin(2 * t), 0.3 * np.sin(3 * t)], axis=1)
    tangent = np.roll(curve, -1, axis=0) - np.roll(curve, 1, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, tangent)
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)[None, :, None]
    points = curve[:, None] + radius * (np.cos(angle) * side[:, None] + np.sin(angle) * up[:, None])
    i, j = np.meshgrid(np.arange(along), np.arange(around), indexing="ij")
    a, b = i * around + j, (i + 1) % along * around + j
    c, d = (i + 1) % along * around + (j + 1) % around, i * around + (j + 1) % around
    quads = np.stack([a, b, c, d], axis=-1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 2, 1]], quads[:, [0, 3, 2]]])
    return TriangleMesh(points.reshape(-1, 3).astype(np.float32), faces.astype(np.int32))


def load_mesh(path: Path, faces: int) -> TriangleMesh:
    """Read any file that trimesh reads, weld equal positions and remesh to about `faces` faces."""
    import trimesh

    loaded = trimesh.load(path, force="mesh", process=False)
    vertices, index = np.unique(np.asarray(loaded.vertices, dtype=np.float32), axis=0, return_inverse=True)
    welded = TriangleMesh(vertices, index.reshape(-1)[np.asarray(loaded.faces)].astype(np.int32))
    return remesh_to_budget(fix_non_manifold(welded), faces)


def run_xatlas(mesh: TriangleMesh, texture_size: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Unwrap with xatlas at its defaults, the same padding and about the same texture size."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = texture_size, 4
    atlas.generate(xatlas.ChartOptions(), pack)
    _, faces, uvs = atlas[0]
    # It normalises u and v by a texture that need not be square: undo that, so that stretch and use mean the same.
    return uvs * np.array([atlas.width, atlas.height], dtype=np.float32) / max(atlas.width, atlas.height), faces


def row(name: str, seconds: float, facts: AtlasFacts, overlap: float) -> str:
    """Format one line of the table."""
    return (
        f"{name:<26}{seconds:>8.2f}{facts.charts:>8}{facts.sliver_charts:>8}{facts.stretch_l2:>8.3f}"
        f"{facts.stretch_linf:>8.2f}{facts.relative_seam_length:>8.1f}{facts.utilisation:>8.3f}{overlap:>10.5f}"
    )


def compare(name: str, mesh: TriangleMesh, texture_size: int, *, with_xatlas: bool) -> None:
    """Print one or two lines for a mesh."""
    start = time.process_time()
    ours = unwrap(mesh, texture_size)
    seconds = time.process_time() - start
    cover = count_coverage(ours.uvs, ours.uv_faces, (texture_size, texture_size))
    print(row(f"{name[-17:]} ({len(mesh.faces)})", seconds, ours.facts, float((cover > 1).mean())), flush=True)
    if not with_xatlas:
        return
    start = time.process_time()
    uvs, faces = run_xatlas(mesh, texture_size)
    theirs_seconds = time.process_time() - start
    charts, _ = edge_connected_faces(faces.astype(np.int32))
    facts = measure_atlas(mesh, uvs, faces.astype(np.int32), charts, texture_size)
    cover = count_coverage(uvs, faces.astype(np.int32), (texture_size, texture_size))
    print(row("  xatlas", theirs_seconds, facts, float((cover > 1).mean())), flush=True)
    print(f"  ratio of CPU time, ours / xatlas: 1 / {theirs_seconds / seconds:.0f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", type=Path, action="append", default=[], help="a mesh file; repeatable")
    parser.add_argument("--faces", type=int, default=20000, help="faces after remeshing")
    parser.add_argument("--texture", type=int, default=2048, help="side of the texture, texels")
    parser.add_argument("--skip-xatlas", action="store_true", help="only measure ours")
    options = parser.parse_args(argv)
    if lacks("trimesh"):
        return 0
    with_xatlas = not options.skip_xatlas and not lacks("xatlas")
    meshes = {str(path): load_mesh(path, options.faces) for path in options.mesh} or generated_meshes(options.faces)
    unwrap(remesh_to_budget(knot(), 2000), 256)
    print(
        f"{'mesh (faces)':<26}{'CPU s':>8}{'charts':>8}{'slivers':>8}{'L2':>8}{'Linf':>8}{'seams':>8}"
        f"{'used':>8}{'overlaps':>10}"
    )
    for name, mesh in meshes.items():
        compare(name, mesh, options.texture, with_xatlas=with_xatlas)
    return 0


if __name__ == "__main__":
    sys.exit(main())
