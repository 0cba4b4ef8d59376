import hashlib
import os
import subprocess
import sys

SCRIPT = """
import hashlib, numpy as np, trimesh
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.atlas_raster import dilate, rasterize_atlas
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import decimate, fix_non_manifold, remesh_to_budget

ball = trimesh.creation.icosphere(subdivisions=4)
bumps = 1 + 0.2 * np.sin(5 * ball.vertices).prod(axis=1, keepdims=True)
mesh = TriangleMesh((ball.vertices * bumps).astype(np.float32), ball.faces.astype(np.int32))
mesh = remesh_to_budget(decimate(fix_non_manifold(mesh), 4000), 3000, adaptivity=0.5)
atlas = unwrap(mesh, 256)
face, bary = rasterize_atlas(atlas.uvs, atlas.uv_faces, (256, 256))
texture = dilate(np.repeat(bary, 2, axis=2)[:, :, :3].copy(), face >= 0)
digest = hashlib.sha256()
for array in (mesh.vertices, mesh.faces, atlas.uvs, atlas.uv_faces, face, bary, texture):
    digest.update(array.tobytes())
print(digest.hexdigest())
"""


def run_with_threads(threads: int) -> str:
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **limits}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_fresh_processes_with_one_and_two_threads_make_the_same_bytes() -> None:
    first = run_with_threads(1)
    assert len(first) == len(hashlib.sha256().hexdigest())
    assert run_with_threads(2) == first
