"""The texture atlas of a surface: from a mesh to UV coordinates without overlaps, and what they are worth.

The steps live apart: `atlas_charts` cuts, `atlas_flatten` lays flat, `atlas_pack` packs, `atlas_raster` relates texels
to faces, `stretch` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ValidationFailedError
from reconflow.geometry.atlas_charts import ChartOptions, Surface, cut_into_charts, projection_directions
from reconflow.geometry.atlas_flatten import FlatCharts, flatten_charts, split_overlaps
from reconflow.geometry.atlas_pack import pack_charts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.stretch import measure_stretch, seam_length, signed_uv_areas
from reconflow.geometry.surface import face_areas

__all__ = ["Atlas", "AtlasFacts", "ChartOptions", "measure_atlas", "unwrap"]

_SLIVER_TEXELS = 16.0


@dataclass(frozen=True)
class AtlasFacts:
    """What a UV layout is worth.

    Attributes:
        charts: Number of patches.
        sliver_charts: Patches of less than 16 texels.
        stretch_l2: Root mean square stretch (Sander et al. 2001); 1 without distortion.
        stretch_linf: Largest stretch; 1 without distortion.
        flipped_faces: Faces that run clockwise in the texture.
        seam_length: Total length of the seams on the surface, world units.
        relative_seam_length: The same over the root of the surface's area.
        texels_per_unit: Root of texels per surface area over the whole atlas, texels per world unit.
        utilisation: Part of the texture that faces cover, 0 to 1.
    """

    charts: int
    sliver_charts: int
    stretch_l2: float
    stretch_linf: float
    flipped_faces: int
    seam_length: float
    relative_seam_length: float
    texels_per_unit: float
    utilisation: float


@dataclass(frozen=True, eq=False)
class Atlas:
    """UV coordinates of a mesh; see `TexturedMesh` for the frame.

    Attributes:
        uvs: (T, 2) float32 in [0, 1], v up; ordered by chart.
        uv_faces: (F, 3) int32 indices into `uvs`, corner by corner as the mesh's faces.
        face_charts: (F,) int32 chart of each face, the largest chart first.
        texture_size: Side of the square texture that the gutters were made for, texels.
        facts: Measures of the layout.
    """

    uvs: NDArray[np.float32]
    uv_faces: NDArray[np.int32]
    face_charts: NDArray[np.int32]
    texture_size: int
    facts: AtlasFacts


def unwrap(
    mesh: TriangleMesh,
    texture_size: int = 2048,
    *,
    gutter: int = 4,
    directions: NDArray[np.float64] | None = None,
    face_costs: NDArray[np.float64] | None = None,
    options: ChartOptions | None = None,
) -> Atlas:
    """Lay a surface out in a square texture: no two faces overlap, all patches have the same texel density.

    Args:
        mesh: Any mesh without edges of more than two faces; faces without area get no texels.
        texture_size: Side of the texture, texels.
        gutter: Smallest distance between patches along x or y, texels; half of it is kept to the border.
        directions: (D, 3) unit directions in which patches may first be projected; six axes, eight corners and twelve
            edges by default.
        face_costs: (F, D) additional cost of each face in a patch of each direction, such as how badly the camera
            there sees it; a face seen edge-on costs 2 by itself.
        options: What patches cost.

    Raises:
        ValidationFailedError: The mesh has no area, or the sizes make no sense.
        ModelConvergenceError: The patches do not fit into the texture.
    """
    options = options or ChartOptions()
    directions = projection_directions() if directions is None else directions
    _check(mesh, texture_size, gutter, directions, face_costs)
    surface = Surface.of(mesh)
    charts = cut_into_charts(surface, directions, options, face_costs)
    charts = split_overlaps(mesh, charts, surface)
    flat = flatten_charts(mesh, charts)
    packing = pack_charts(flat, texture_size, gutter)
    uvs = (packing.texels / texture_size).astype(np.float32)
    uv_faces, uvs, face_charts = _largest_first(flat, uvs)
    facts = measure_atlas(mesh, uvs, uv_faces, face_charts, texture_size)
    return Atlas(uvs, uv_faces, face_charts, texture_size, facts)


def measure_atlas(
    mesh: TriangleMesh,
    uvs: NDArray[np.float32],
    uv_faces: NDArray[np.int32],
    face_charts: NDArray[np.int32],
    texture_size: int,
) -> AtlasFacts:
    """Measure a layout, whoever made it.

    Args:
        mesh: The surface.
        uvs: (T, 2) in [0, 1].
        uv_faces: (F, 3) indices into `uvs`.
        face_charts: (F,) chart of each face, numbered from 0.
        texture_size: Side of the square texture, texels.
    """
    uv_areas = np.abs(signed_uv_areas(uvs, uv_faces))
    chart_texels = np.bincount(face_charts, weights=uv_areas) * texture_size**2
    area = float(face_areas(mesh).sum())
    stretch = measure_stretch(mesh, uvs, uv_faces)
    seams = seam_length(mesh, uv_faces)
    return AtlasFacts(
        charts=len(chart_texels),
        sliver_charts=int(np.count_nonzero(chart_texels < _SLIVER_TEXELS)),
        stretch_l2=stretch.l2,
        stretch_linf=stretch.linf,
        flipped_faces=stretch.flipped_faces,
        seam_length=seams,
        relative_seam_length=seams / area**0.5,
        texels_per_unit=float(np.sqrt(chart_texels.sum() / area)),
        utilisation=float(uv_areas.sum()),
    )


def _largest_first(
    flat: FlatCharts, uvs: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Renumber charts by falling area in the texture, and the uvs with them."""
    areas = np.bincount(flat.labels, weights=np.abs(signed_uv_areas(uvs, flat.faces)), minlength=len(flat.sizes))
    rank = np.empty(len(areas), dtype=np.int32)
    rank[np.argsort(-areas, kind="stable")] = np.arange(len(areas), dtype=np.int32)
    order = np.argsort(rank[flat.point_charts], kind="stable")
    renumbered = np.empty(len(order), dtype=np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    return renumbered[flat.faces], np.ascontiguousarray(uvs[order]), rank[flat.labels]


def _check(
    mesh: TriangleMesh,
    texture_size: int,
    gutter: int,
    directions: NDArray[np.float64],
    face_costs: NDArray[np.float64] | None,
) -> None:
    if not len(mesh.faces) or float(face_areas(mesh).sum()) <= 0.0:
        raise ValidationFailedError(
            "A surface without area has no texture.", suggestion="Check the mesh.", faces=len(mesh.faces)
        )
    if texture_size < 16 or not 0 <= gutter < texture_size / 8:
        raise ValidationFailedError(
            "The texture must have at least 16 texels a side and gutters of less than an eighth of it.",
            suggestion="Use a texture size such as 1024 and a gutter such as 4.",
            texture_size=texture_size,
            gutter=gutter,
        )
    if face_costs is not None and face_costs.shape != (len(mesh.faces), len(directions)):
        raise ValidationFailedError(
            "The face costs must have one row per face and one column per direction.",
            suggestion="Pass the directions that the costs were made for.",
            expected=[len(mesh.faces), len(directions)],
            actual=list(face_costs.shape),
        )
