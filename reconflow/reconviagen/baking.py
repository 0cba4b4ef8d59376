"""The base colour of a generated mesh: the photos where they show it, pictures of its Gaussians elsewhere.

Gaussians and photos need not agree in exposure; the Gaussians' colours are scaled to the photos' where both are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow.colour import linear_from_srgb
from reconflow.geometry.atlas import Atlas
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.geometry.similarity import Similarity
from reconflow.nvdiffrec.photos import Photo
from reconflow.nvdiffrec.texel_views import Texels, ViewGeometry, gather, see_mesh
from reconflow.nvdiffrec.texture import Corrections, fit_texture
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.gaussian_rendering import render_gaussians
from reconflow.reconviagen.sphere_cameras import sphere_cameras

Float32 = NDArray[np.float32]

_SOLID: Final = 0.5
"""Where Gaussians cover less of a pixel they say nothing about the surface."""
_KNOWN: Final = 0.02
"""Least quality with which a picture has to show a texel."""
_GAINS: Final = (0.5, 2.0)
_ENOUGH_TEXELS: Final = 200


def bake_texture(
    mesh: TriangleMesh,
    atlas: Atlas,
    photos: Sequence[Photo],
    pictures: GaussianPictures,
    size: int,
    steps: int,
    on_progress: OnProgress = ignore_progress,
    *,
    corrections: Corrections = Corrections.GUARDED,
) -> tuple[TexturedMesh, dict[str, Any]]:
    """Paint a registered mesh.

    Args:
        mesh: The surface in the photos' world.
        atlas: Its unwrapping, made for `size`.
        photos: The input views.
        pictures: What the Gaussians look like from all sides.
        size: Side of the texture, texels.
        steps: Correction passes towards the photos.
        on_progress: Receiver of progress; may raise `Cancelled`.
        corrections: Which pixels correct the texture, and how.

    Returns:
        textured: The painted mesh.
        statistics: As `fit_texture`, with `gaussian_share` of the texels painted by the Gaussians and the `gains` that
            their colours were multiplied with.
    """
    views = [pictures.geometry(mesh, index) for index in range(len(pictures.images))]
    facts: dict[str, Any] = {"gaussian_share": 0.0, "gains": [1.0, 1.0, 1.0]}

    def elsewhere(
        texels: Texels, colour: Float32, photographed: NDArray[np.bool_]
    ) -> tuple[Float32, NDArray[np.bool_]]:
        other, quality = gather(texels, views, pictures.images)
        known = quality > _KNOWN
        gains = matching_gains(other[known & photographed], colour[known & photographed])
        facts["gaussian_share"] = float((known & ~photographed).mean())
        facts["gains"] = [round(float(gain), 4) for gain in gains]
        return np.clip(other * gains, 0, 1), known

    textured, statistics = fit_texture(
        mesh, atlas, photos, size, steps, on_progress, corrections=corrections, elsewhere=elsewhere
    )
    return textured, statistics | facts


def matching_gains(colours: Float32, wanted: Float32) -> Float32:
    """Return the (3,) factors by which (N, 3) colours best meet the wanted ones; 1 when there are too few to tell."""
    if len(colours) < _ENOUGH_TEXELS:
        return np.ones(3, np.float32)
    middle = np.median(wanted, axis=0) / np.maximum(np.median(colours, axis=0), 1e-4)
    gains: Float32 = np.clip(middle, *_GAINS).astype(np.float32)
    return gains


class GaussianPictures:
    """Gaussians seen from all sides, rendered once.

    Attributes:
        cameras: One per picture, in the world.
        images: (H, W, 3) float32 linear light each, not premultiplied.
        solid: (H, W) bool each, where the Gaussians cover enough.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        place: Similarity,
        count: int,
        size: int,
        on_progress: OnProgress = ignore_progress,
        engine: str = "numba",
    ) -> None:
        """Render.

        Args:
            gaussians: In the generator's frame.
            place: From there to the world.
            count: Number of views.
            size: Side of a picture, pixels.
            on_progress: Called before every picture; may raise `Cancelled`.
            engine: As in `render_gaussians`.
        """
        self.cameras = sphere_cameras(count, size, place)
        self.images: list[Float32] = []
        self.solid: list[NDArray[np.bool_]] = []
        placed = gaussians.transformed(place)
        for index, camera in enumerate(self.cameras):
            on_progress(index, count, "picturing the Gaussians")
            picture = render_gaussians(placed, camera, near=0.2 * place.scale, engine=engine)
            straight = picture.rgb / np.maximum(picture.alpha, 1e-3)[..., None]
            self.images.append(linear_from_srgb(np.clip(straight, 0, 1)).astype(np.float32))
            self.solid.append(picture.alpha >= _SOLID)

    def geometry(self, mesh: TriangleMesh, index: int) -> ViewGeometry:
        """Say what one picture shows of a mesh: nothing where there are no Gaussians."""
        seen = see_mesh(mesh, self.cameras[index])
        return replace(seen, depth=np.where(self.solid[index], seen.depth, np.float32(0)))
