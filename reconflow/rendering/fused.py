"""The optimiser's renderer: losses of a mesh against several views and their gradients, in one call.

It computes what the operators of `ops` with dense losses would, but touches only covered pixels and silhouette pairs,
reuses its buffers and builds no graph. Regularisers, optimisers and schedules live with the model that fits.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.errors import ValidationFailedError
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.rendering import fused_kernels as kernels
from reconflow.rendering.raster import F32, F64, I32, checked_faces, pixel_projection, raster_rows
from reconflow.rendering.silhouette import (
    build_edge_topology,
    crossing_bound,
    face_orientation,
    silhouette_edges,
    walk_silhouette,
)


@dataclass(frozen=True, eq=False)
class ViewTarget:
    """What one view should look like; images have row 0 on top and the camera's resolution.

    Attributes:
        coverage: (H, W) how much of each pixel the object covers, 0 to 1.
        rgb_linear: (H, W, 3) linear light, already composited over `background`; None fits no colour.
        depth: (H, W) along the optical axis, world units; 0, NaN or infinite where unknown; None fits no depth.
        depth_tolerance: Half-width of the zone around the target without penalty, world units; a number or (H, W).
        depth_knee: World units beyond the tolerance where the penalty turns from quadratic to linear.
        background: Linear RGB behind the object.
        rgb_weight: Weight of the colour loss, a number or (H, W).
        silhouette_weight: Weight of the coverage loss, a number or (H, W).
        depth_weight: Weight of the depth loss, a number or (H, W).
    """

    coverage: NDArray[Any]
    rgb_linear: NDArray[Any] | None = None
    depth: NDArray[Any] | None = None
    depth_tolerance: float | NDArray[Any] = 0.0
    depth_knee: float = 0.01
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rgb_weight: float | NDArray[Any] = 1.0
    silhouette_weight: float | NDArray[Any] = 1.0
    depth_weight: float | NDArray[Any] = 1.0

    @cached_property
    def prepared(self) -> PreparedTarget:
        """The target as flat float32 arrays, with the losses of an empty picture."""
        none = np.zeros(0, np.float32)
        colour, shape = self.rgb_linear, self.coverage.shape
        rgb = np.zeros((0, 3), np.float32) if colour is None else _flat(colour, (*shape, 3)).reshape(-1, 3)
        coverage = _flat(self.coverage, shape)
        rgb_weight, silhouette_weight = _flat(self.rgb_weight, shape), _flat(self.silhouette_weight, shape)
        background = np.array(self.background, np.float32)
        off = ((background.astype(np.float64) - rgb) ** 2).sum(axis=1) / 3
        return PreparedTarget(
            rgb=rgb,
            coverage=coverage,
            depth=none if self.depth is None else np.nan_to_num(_flat(self.depth, shape), posinf=0.0),
            tolerance=_flat(self.depth_tolerance, shape),
            rgb_weight=rgb_weight,
            silhouette_weight=silhouette_weight,
            depth_weight=_flat(self.depth_weight, shape),
            background=background,
            empty_rgb=0.0 if colour is None else float((rgb_weight * off).sum()),
            empty_silhouette=float((silhouette_weight * coverage.astype(np.float64) ** 2).sum()),
        )


@dataclass(frozen=True, eq=False)
class PreparedTarget:
    """A `ViewTarget` as the kernels read it: flat float32 arrays, and the losses if nothing were drawn."""

    rgb: F32
    coverage: F32
    depth: F32
    tolerance: F32
    rgb_weight: F32
    silhouette_weight: F32
    depth_weight: F32
    background: F32
    empty_rgb: float
    empty_silhouette: float


@dataclass(frozen=True, eq=False)
class StepResult:
    """Losses and gradients of one call.

    Attributes:
        losses: `rgb`, `silhouette`, `depth`: weighted, averaged over pixels (and channels) and views. The gradients
            are those of their sum.
        grad_vertices: (V, 3) float32.
        grad_colours: Like the colours, float32; None without colours. A texture's gradient is overwritten by the next
            call.
    """

    losses: dict[str, float]
    grad_vertices: F32
    grad_colours: F32 | None


class FusedRenderer:
    """Renders one mesh connectivity into fixed cameras, again and again.

    Args:
        faces: (F, 3) vertex indices.
        cameras: The views.
        uvs: (T, 2) texture coordinates, v up, when colours come as a texture.
        uv_faces: (F, 3) indices into `uvs`; None takes `faces`.
    """

    def __init__(
        self,
        faces: NDArray[Any],
        cameras: Sequence[PinholeCamera],
        uvs: NDArray[Any] | None = None,
        uv_faces: NDArray[Any] | None = None,
    ) -> None:
        self.cameras = tuple(cameras)
        self._faces = checked_faces(faces, np.iinfo(np.int32).max)
        self._vertices_needed = int(self._faces.max(initial=-1)) + 1
        self._topology = build_edge_topology(self._faces)
        self._projections = [pixel_projection(camera) for camera in self.cameras]
        self._has_uvs = uvs is not None
        self._uvs = np.zeros((0, 2), np.float32) if uvs is None else np.ascontiguousarray(uvs, dtype=np.float32)
        self._uv_faces = self._faces
        if uvs is not None:
            self._uv_faces = checked_faces(faces if uv_faces is None else uv_faces, len(self._uvs), "uv_faces")
        if len(self._uv_faces) != len(self._faces):
            raise ValidationFailedError(
                f"There are {len(self._faces)} faces, but {len(self._uv_faces)} rows of `uv_faces`.",
                suggestion="Give every face its row of `uv_faces`.",
            )
        self._spaces: queue.LifoQueue[_Workspace] = queue.LifoQueue()
        self._lookups: list[tuple[I32, F32]] = []
        self._grad_texture = np.zeros((0, 0, 3), np.float32)

    def step(self, vertices: NDArray[Any], colours: NDArray[Any] | None, targets: Sequence[ViewTarget]) -> StepResult:
        """Render every view, compare, and differentiate.

        Losses: mean squared error of the antialiased linear RGB over the background; mean squared error of the
        antialiased coverage; Huber penalty of max(|depth - target| - tolerance, 0) where object and target depth
        overlap, summed there and divided by all pixels. Depth moves vertices in full: it is the depth that the fixed
        pixel sees that is differentiated, not the vertices' own depth alone.

        Args:
            vertices: (V, 3) world units.
            colours: (Ht, Wt, 3) linear texture, row 0 at v = 1 (needs `uvs`), or (V, 3) linear vertex colours, or None.
            targets: One for each camera.

        Raises:
            ValidationFailedError: Shapes that do not belong together.
        """
        vertices = np.ascontiguousarray(vertices, dtype=np.float32)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) < self._vertices_needed:
            raise ValidationFailedError(
                f"`vertices` of shape {vertices.shape} do not fit faces that need {self._vertices_needed} of them.",
                suggestion="Pass (V, 3) vertices of the mesh that the renderer was made for.",
            )
        mode, palette = self._palette(colours, len(vertices))
        self._check(targets)
        views = len(self.cameras)
        grads = np.zeros((views, len(vertices), 3))
        colour_grads = np.zeros((views, len(vertices) if mode == kernels.VERTEX_COLOUR else 0, 3))
        losses = np.zeros((views, 3))
        counts = np.zeros(views, np.int64)
        self._reserve_lookups(views if mode == kernels.TEXTURE else 0)

        def view(n: int) -> None:
            space = self._take_workspace(len(vertices))
            counts[n] = self._view(n, space, vertices, mode, palette, targets[n], losses[n], grads[n], colour_grads[n])
            self._spaces.put(space)

        run_jobs([partial(view, n) for n in range(views)])
        total = losses.sum(axis=0)
        grad_colours: F32 | None = None
        if mode == kernels.TEXTURE:
            grad_colours = self._texture_gradient(palette.shape, counts)
        elif mode == kernels.VERTEX_COLOUR:
            grad_colours = colour_grads.sum(axis=0).astype(np.float32)
        return StepResult(
            losses={"rgb": float(total[0]), "silhouette": float(total[1]), "depth": float(total[2])},
            grad_vertices=grads.sum(axis=0).astype(np.float32),
            grad_colours=grad_colours,
        )

    def _palette(self, colours: NDArray[Any] | None, vertices: int) -> tuple[int, F32]:
        """Return the colour mode and the colours as the kernels read them."""
        if colours is None:
            return kernels.NO_COLOUR, np.zeros((0, 3), np.float32)
        values: F32 = np.ascontiguousarray(colours, dtype=np.float32)
        if values.ndim == 3 and values.shape[2] == 3 and self._has_uvs:
            return kernels.TEXTURE, values
        if values.shape == (vertices, 3):
            return kernels.VERTEX_COLOUR, values
        raise ValidationFailedError(
            f"Colours of shape {values.shape} are neither a texture (with uvs) nor one colour for each of {vertices} "
            "vertices.",
            suggestion="Pass (Ht, Wt, 3) and give the renderer uvs, or pass (V, 3).",
            shape=list(values.shape),
        )

    def _check(self, targets: Sequence[ViewTarget]) -> None:
        """Refuse targets that do not fit the cameras."""
        shapes = [tuple(target.coverage.shape) for target in targets]
        wanted = [camera.image_hw for camera in self.cameras]
        if shapes != wanted:
            raise ValidationFailedError(
                f"Targets of sizes {shapes} do not fit cameras of sizes {wanted}.",
                suggestion="Give one target for each camera, at its resolution.",
                targets=len(shapes),
                cameras=len(wanted),
            )

    def _view(
        self,
        n: int,
        space: _Workspace,
        vertices: F32,
        mode: int,
        palette: F32,
        target: ViewTarget,
        losses: F64,
        grad_vertices: F64,
        grad_colours: F64,
    ) -> int:
        """Do one view's work; returns how many pixels the object covers."""
        height, width = self.cameras[n].image_hw
        size = height * width
        prepared = target.prepared
        if mode == kernels.NO_COLOUR and len(prepared.rgb):
            raise ValidationFailedError(
                "A target has colour, but the mesh has none.", suggestion="Pass colours, or drop the target's RGB."
            )
        key, face_id = space.key[:size].reshape(height, width), space.face_id[:size].reshape(height, width)
        kernels.project_vertices(vertices, self._projections[n], space.homog, space.screen)
        raster_rows(space.homog, space.screen, self._faces, 0, key, face_id)
        pixels, crossing = self._silhouette(space, key)
        covered = kernels.list_covered(space.homog, self._faces, face_id, space.place, space.entry_pixel, space.entries)
        self._shade(space, covered, mode, palette)
        entries = (space.place, space.entry_pixel, space.entries)
        count = kernels.blend_silhouette(pixels, crossing, covered, prepared.background, *entries, space.blended)
        scale = 1.0 / (size * len(self.cameras))
        rgb, silhouette = kernels.image_losses(
            count,
            space.entry_pixel,
            space.blended,
            prepared.background,
            prepared.rgb,
            prepared.coverage,
            prepared.rgb_weight,
            prepared.silhouette_weight,
            scale,
            space.grad_blended,
        )
        space.grad_homog[:] = 0.0
        kernels.silhouette_gradient(
            pixels,
            crossing,
            self._topology.edges,
            space.screen,
            space.homog,
            space.place,
            count,
            space.entries,
            space.grad_blended,
            space.grad_entries,
            space.grad_homog,
        )
        depth = kernels.surface_gradient(
            covered,
            space.homog,
            self._faces,
            space.face_id,
            mode,
            space.entry_pixel,
            space.entries,
            space.grad_entries,
            prepared.depth,
            prepared.tolerance,
            prepared.depth_weight,
            target.depth_knee,
            scale,
            space.grad_homog,
            grad_colours,
        )
        losses[:] = rgb + scale * prepared.empty_rgb, silhouette + scale * prepared.empty_silhouette, depth
        kernels.world_gradient(space.grad_homog, self._projections[n], grad_vertices)
        if mode == kernels.TEXTURE:
            kernels.keep_lookups(covered, space.texels, space.entries, space.grad_entries, *self._lookups[n])
        kernels.forget_places(count, space.entry_pixel, space.place)
        return covered

    def _shade(self, space: _Workspace, covered: int, mode: int, palette: F32) -> None:
        """Colour the covered entries."""
        if mode == kernels.TEXTURE:
            kernels.shade_texture(
                covered,
                space.face_id,
                palette,
                self._uvs,
                self._uv_faces,
                space.entry_pixel,
                space.entries,
                space.texels,
            )
        elif mode == kernels.VERTEX_COLOUR:
            kernels.shade_vertex_colours(covered, self._faces, space.face_id, palette, space.entry_pixel, space.entries)
        else:
            space.entries[:covered, :3] = 0.0

    def _silhouette(self, space: _Workspace, key: F32) -> tuple[I32, F64]:
        """Return the pixel pairs of the view in the workspace; see `silhouette.walk_silhouette`."""
        topology = self._topology
        face_orientation(space.screen, self._faces, space.orientation)
        found = silhouette_edges(space.orientation, topology.edge_faces, topology.edge_turns, space.chosen, space.sides)
        chosen, sides = space.chosen[:found], space.sides[:found]
        space.reserve_pairs(crossing_bound(space.screen, topology.edges, chosen, *key.shape))
        pairs = walk_silhouette(
            space.screen, topology.edges, chosen, sides, key, space.slots, space.pixels, space.crossing
        )
        return space.pixels[:pairs], space.crossing[:pairs]

    def _take_workspace(self, vertices: int) -> _Workspace:
        """Return a free workspace for that many vertices, or make one; a failed view's is never reused."""
        try:
            space = self._spaces.get_nowait()
        except queue.Empty:
            space = None
        if space is None or len(space.homog) != vertices:
            size = max(camera.image_hw[0] * camera.image_hw[1] for camera in self.cameras)
            space = _Workspace(size, vertices, len(self._faces), len(self._topology.edges))
        return space

    def _reserve_lookups(self, views: int) -> None:
        """Make room for what the views' texture lookups leave behind."""
        for camera in self.cameras[len(self._lookups) : views]:
            size = camera.image_hw[0] * camera.image_hw[1]
            self._lookups.append((np.empty(size, np.int32), np.empty((size, 5), np.float32)))

    def _texture_gradient(self, shape: tuple[int, ...], counts: NDArray[np.int64]) -> F32:
        """Sum the views' lookups into the texture, view by view within rows that one job owns."""
        if self._grad_texture.shape != shape:
            self._grad_texture = np.zeros(shape, np.float32)

        def rows(start: int, stop: int) -> None:
            self._grad_texture[start:stop] = 0.0
            for n, (texel, kept) in enumerate(self._lookups):
                kernels.scatter_texture_gradient(counts[n], texel, kept, start, stop, self._grad_texture)

        run_jobs([partial(rows, *band) for band in row_bands(shape[0], thread_count())])
        return self._grad_texture


class _Workspace:
    """The buffers of one view in work; as many exist as views are worked on at once. Untouched pages cost nothing."""

    def __init__(self, size: int, vertices: int, faces: int, edges: int) -> None:
        self.key = np.empty(size, np.float32)
        self.face_id = np.empty(size, np.int32)
        self.place = np.full(size, -1, np.int32)
        self.slots = np.full(4 * size, -1, np.int32)
        self.entry_pixel = np.empty(size, np.int32)
        self.texels = np.empty(size, np.int32)
        self.entries = np.empty((size, kernels.ENTRY_COLUMNS), np.float32)
        self.blended = np.empty((size, 4), np.float32)
        self.grad_blended = np.empty((size, 4), np.float32)
        self.grad_entries = np.empty((size, 4), np.float32)
        self.homog = np.empty((vertices, 4))
        self.screen = np.empty((vertices, 4))
        self.grad_homog = np.empty((vertices, 3))
        self.orientation = np.empty(faces, np.int8)
        self.chosen = np.empty(edges, np.int32)
        self.sides = np.empty(edges, np.int8)
        self.pixels = np.empty((0, 4), np.int32)
        self.crossing = np.empty((0, 3))

    def reserve_pairs(self, count: int) -> None:
        """Make room for that many silhouette pairs."""
        if len(self.pixels) < count:
            self.pixels = np.empty((2 * count, 4), np.int32)
            self.crossing = np.empty((2 * count, 3))


def _flat(values: float | NDArray[Any], shape: tuple[int, ...]) -> F32:
    """Return a number as (1,), an image of that shape flattened; contiguous float32."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if np.ndim(values) and array.shape != shape:
        raise ValidationFailedError(
            f"A target's arrays disagree: {array.shape} beside coverage of {shape[:2]}.",
            suggestion="Give all images of one target the same height and width.",
        )
    return array.reshape(-1)
