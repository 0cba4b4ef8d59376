"""The base colour of an unwrapped mesh, fitted to the photos.

It is first gathered from the views that see each texel best, then corrected through the renderer until the renders
match. Colours are linear light inside, sRGB at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from reconflow.colour import linear_from_srgb, srgb_from_linear
from reconflow.geometry.atlas import Atlas
from reconflow.geometry.atlas_raster import dilate, rasterize_atlas
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.large_steps import conjugate_gradient, edge_laplacian
from reconflow.nvdiffrec.photos import Photo, shrink
from reconflow.nvdiffrec.texel_views import Texels, ViewGeometry, gather, locate_texels, see_mesh
from reconflow.progress import OnProgress, ignore_progress
from reconflow.rendering.backproject import backproject_image
from reconflow.rendering.shade import render_textured

Float32 = NDArray[np.float32]

_QUALITY_UNUSABLE, _QUALITY_USABLE = 0.005, 0.03
"""Below the first a texel takes its colour from its neighbours, above the second from the photos."""
_LOOKUP_RINGS, _FINAL_RINGS = 2, 8
"""How many texels colours are continued beyond their charts while fitting, and exactly in the end."""
_FIT_POWER = 1.0
"""Exponent of the cosine in the weights of the corrections."""
_SUPERSAMPLE = 2
"""Samples per pixel along each axis in the renders that photos are compared with."""
_FAINT_WEIGHT = 0.02
"""A texel that makes up less of a pixel than this, in all views together, mostly keeps its colour."""


Elsewhere = Callable[[Texels, Float32, NDArray[np.bool_]], tuple[Float32, NDArray[np.bool_]]]
"""Gives (N, 3) linear colours for N texels and (N,) where it has any, told the photos' colours and where they count."""


class Corrections(Enum):
    """How a painted texture is corrected towards photos that it does not match yet.

    Where the photos agree with each other, pixels at the rims of what a view sees only add noise: they are guarded
    against. Where the photos disagree, every pixel has to count for the renders to come close to all of them.
    """

    GUARDED = "guarded"
    """Pixels at depth edges and in grazing views hardly count."""
    UNGUARDED = "unguarded"
    """All pixels count, also for texels just behind a rim: of use for one pass, which then reaches right to the rims,
    and drifting over many."""
    LEAST_SQUARES = "least squares"
    """All pixels count for exactly the texels that show in them; converges."""


def fit_texture(
    mesh: TriangleMesh,
    atlas: Atlas,
    photos: Sequence[Photo],
    size: int,
    steps: int,
    on_progress: OnProgress = ignore_progress,
    *,
    corrections: Corrections = Corrections.GUARDED,
    elsewhere: Elsewhere | None = None,
) -> tuple[TexturedMesh, dict[str, Any]]:
    """Paint an unwrapped mesh so that its renders match the photos.

    Args:
        mesh: The surface.
        atlas: Its unwrapping, made for `size`.
        photos: The photos; without `elsewhere` their coverage must be consistent with the mesh's silhouettes to about
            a pixel.
        size: Side of the texture, texels.
        steps: Correction passes through the renderer.
        on_progress: Receiver of progress.
        corrections: Which pixels correct the texture, and how.
        elsewhere: Colours for what the photos do not show, also for what lies outside their masks; None continues
            theirs.

    Returns:
        textured: The painted mesh.
        statistics: `seen_share` of the covered texels and `rgb_mse` (linear light) before each pass.
    """
    total = steps + 2
    face_id, bary = rasterize_atlas(atlas.uvs, atlas.uv_faces, (size, size))
    texels = locate_texels(mesh, face_id, bary)
    geometry = [see_mesh(mesh, photo.camera, None if elsewhere is None else photo.coverage >= 0.5) for photo in photos]
    on_progress(1, total, "painting the texture")
    colour, quality = gather(texels, geometry, [p.linear for p in photos], [_low_frequencies(p) for p in photos])
    confidence = np.clip((quality - _QUALITY_UNUSABLE) / (_QUALITY_USABLE - _QUALITY_UNUSABLE), 0, 1)[:, None]
    seen, source = confidence[:, 0] > 0.5, colour
    if elsewhere is not None:
        other, known = elsewhere(texels, colour, seen)
        source, seen = np.where(seen[:, None], colour, other), seen | known
    filled = _fill_unseen(mesh, texels, face_id, bary, source, seen)
    if elsewhere is not None:
        filled = np.where(known[:, None], other, filled)
    colour = confidence * colour + (1 - confidence) * filled
    losses: list[list[float]] = []
    texture = _spread(colour, texels)
    del face_id, bary, filled  # a texture's worth of memory each
    correcting, share = geometry, confidence
    if corrections is Corrections.UNGUARDED:
        correcting = [replace(view, trust=np.ones_like(view.trust)) for view in geometry]
        share = np.ones_like(confidence)
    for step in range(steps):
        render = partial(_Residual.of, _encode(mesh, atlas, texture))
        if corrections is Corrections.LEAST_SQUARES:
            correction, loss = _least_squares_step(atlas, texels, map(render, photos, geometry))
        else:
            residuals = list(map(render, photos, geometry))
            gathered, _ = gather(texels, correcting, [r.image for r in residuals], grazing_power=_FIT_POWER)
            correction, loss = share * gathered, _mean_square(residuals)
        losses.append([step, loss])
        colour = np.clip(colour + correction, 0, 1)
        texture = _spread(colour, texels)
        on_progress(step + 2, total, "fitting the texture")
    texture = _spread(colour, texels, finished=True)
    on_progress(total, total, "texture done")
    statistics: dict[str, Any] = {
        "seen_share": float((quality > 0).mean()),
        "trusted_share": float((confidence > 0.5).mean()),
        "rgb_mse": losses,
    }
    return _encode(mesh, atlas, texture), statistics


def _low_frequencies(photo: Photo) -> Float32:
    """Blur a photo over a thirtieth of its side, within the object's mask, at an eighth of the resolution."""
    height, width = photo.coverage.shape
    factor = max(1, min(8, min(height, width) // 32))
    inside = ndimage.binary_erosion(photo.coverage >= 0.999, iterations=2).astype(np.float32)
    if not inside.any():
        inside = photo.coverage
    weighted = np.concatenate([photo.linear * inside[..., None], inside[..., None]], axis=2)
    small = shrink(weighted, (height // factor, width // factor))
    sigma = max(height, width) / 30 / factor
    blurred = np.stack([ndimage.gaussian_filter(small[..., c], sigma, mode="constant") for c in range(4)], axis=2)
    low: Float32 = blurred[..., :3] / np.maximum(blurred[..., 3:], 1e-6)
    return np.ascontiguousarray(low, np.float32)


def _encode(mesh: TriangleMesh, atlas: Atlas, texture: Float32) -> TexturedMesh:
    encoded = np.rint(srgb_from_linear(texture) * 255).astype(np.uint8)
    return TexturedMesh(mesh, atlas.uvs, atlas.uv_faces, encoded)


@dataclass(frozen=True, eq=False)
class _Residual:
    """Photo minus render of one view.

    Attributes:
        textured: What was rendered.
        photo: What it is compared with.
        image: (H, W, 3) float32 linear light, 0 off the mesh.
        squared: Sum of squares over what both cover.
        count: How many values that are.
    """

    textured: TexturedMesh
    photo: Photo
    image: Float32
    squared: float
    count: int

    @classmethod
    def of(cls, textured: TexturedMesh, photo: Photo, view: ViewGeometry) -> _Residual:
        """Render the mesh and subtract."""
        rendered = linear_from_srgb(render_textured(textured, photo.camera, supersample=_SUPERSAMPLE).rgb_srgb)
        on_mesh = view.depth > 0
        image = np.where(on_mesh[..., None], photo.over_white - rendered, np.float32(0))
        both = on_mesh & (photo.coverage >= 0.5)
        squared = float(np.square(image[both], dtype=np.float64).sum())
        return cls(textured, photo, image, squared, 3 * int(both.sum()))


def _mean_square(residuals: Sequence[_Residual]) -> float:
    return sum(r.squared for r in residuals) / max(sum(r.count for r in residuals), 1)


def _least_squares_step(atlas: Atlas, texels: Texels, residuals: Iterable[_Residual]) -> tuple[Float32, float]:
    """Return the (N, 3) change of the texels that one step of simultaneous reconstruction takes, and the loss before.

    Every texel changes by the mean of the residuals of the pixels that show it, weighted by its part of each pixel
    (SIRT: Gilbert 1972): a descent on the squared difference of renders and photos in which occlusion is exact.
    """
    sums = np.zeros((texels.size, texels.size, 4), np.float32)
    squared, count = 0.0, 0
    for residual in residuals:
        mesh, camera = residual.textured.mesh, residual.photo.camera
        backproject_image(mesh, atlas.uvs, atlas.uv_faces, camera, residual.image, sums, _SUPERSAMPLE)
        squared, count = squared + residual.squared, count + residual.count
    summed = sums.reshape(-1, 4)[texels.index]
    change: Float32 = summed[:, :3] / (summed[:, 3:] + np.float32(_FAINT_WEIGHT))
    return change, squared / max(count, 1)


def _spread(colour: Float32, texels: Texels, *, finished: bool = False) -> Float32:
    """Write texel colours into a texture and continue them: as far as lookups reach, or everywhere when finished."""
    texture = np.zeros((texels.size * texels.size, 3), np.float32)
    filled = np.zeros(texels.size * texels.size, bool)
    texture[texels.index] = colour
    filled[texels.index] = True
    shape = (texels.size, texels.size)
    rings = _FINAL_RINGS if finished else _LOOKUP_RINGS
    return dilate(texture.reshape(*shape, 3), filled.reshape(shape), rings, everywhere=finished)


def _fill_unseen(
    mesh: TriangleMesh,
    texels: Texels,
    face_id: NDArray[np.int32],
    bary: Float32,
    colour: Float32,
    seen: NDArray[np.bool_],
) -> Float32:
    """Continue the seen colours over the unseen surface, harmonic on the mesh's edges; 0.5 grey if nothing is seen.

    Returns:
        (N, 3) float32 a colour for every texel, of use where it is unseen.
    """
    count = len(mesh.vertices)
    faces = mesh.faces[face_id.ravel()[texels.index]]
    first_two = bary.reshape(-1, 2)[texels.index]
    weights = np.stack([first_two[:, 0], first_two[:, 1], 1 - first_two.sum(axis=1)], axis=1)
    sums, mass = np.zeros((count, 3)), np.zeros(count)
    for corner in range(3):
        share = weights[:, corner] * seen
        mass += np.bincount(faces[:, corner], weights=share, minlength=count)
        for channel in range(3):
            sums[:, channel] += np.bincount(faces[:, corner], weights=share * colour[:, channel], minlength=count)
    if not mass.any():
        return np.full((len(texels.index), 3), 0.5, np.float32)
    known = mass > 1e-6
    vertex_colour = np.zeros((count, 3))
    vertex_colour[known] = sums[known] / mass[known, None]
    system = (edge_laplacian(mesh.faces, count) + sparse.diags(np.where(known, 1e3, 1e-6))).tocsr()
    mean = vertex_colour[known].mean(axis=0)
    right = np.where(known[:, None], 1e3 * vertex_colour, 1e-6 * mean)
    channels = [
        conjugate_gradient(system, right[:, c], np.full(count, mean[c]), tolerance=1e-5, max_iterations=400)
        for c in range(3)
    ]
    smooth = np.stack(channels, axis=1).astype(np.float32)
    filled = np.zeros((len(texels.index), 3), np.float32)
    for corner in range(3):
        filled += weights[:, corner : corner + 1].astype(np.float32) * smooth[faces[:, corner]]
    return np.clip(filled, 0, 1)
