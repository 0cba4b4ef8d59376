"""From what the decoders give to a reconstruction: clean the surface, align it with the views, unwrap and paint it.

The order of these steps lives here; no network runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from reconflow.cameras.calibration import Calibration
from reconflow.colour import linear_from_srgb
from reconflow.datasets.dataset import Dataset
from reconflow.errors import ModelConvergenceError
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.components import keep_components
from reconflow.geometry.depth import observe
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.holes import fill_holes
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import decimate, fix_non_manifold
from reconflow.geometry.similarity import Similarity
from reconflow.nvdiffrec.photos import Photo, prepare_photo
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.baking import GaussianPictures, bake_texture
from reconflow.reconviagen.gaussians import Gaussians
from reconflow.reconviagen.inner_walls import face_visibility, remove_inner_walls
from reconflow.reconviagen.registration import register
from reconflow.reconviagen.sphere_cameras import sphere_cameras

Float32 = NDArray[np.float32]

Y_UP_FROM_Z_UP: Final = Similarity(1.0, np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.zeros(3))
"""(x, y, z) becomes (x, z, -y): the generator's frame turned into glTF's."""
_FEWEST_FACES: Final = 4000
"""Simplification leaves at least so many faces."""
_LEAST_PIECE: Final = 0.002
"""Pieces of less than this part of the area are dropped."""


@dataclass(frozen=True, eq=False)
class Generated:
    """What the decoders made of the views, in the generator's frame: the cube [-0.5, 0.5]³, z up.

    Attributes:
        mesh: The raw surface.
        colours_srgb: (V, 3) float32 display colours of its vertices.
        gaussians: The object's appearance.
    """

    mesh: TriangleMesh
    colours_srgb: Float32
    gaussians: Gaussians


@dataclass(frozen=True)
class FinishSettings:
    """How a generated object is finished.

    Attributes:
        simplify: Part of the raw faces that goes, 0 to 1.
        visibility_views: From how many sides hidden faces are looked for; 0 keeps them.
        visibility_size: Side of those pictures, pixels.
        texture_size: Side of the texture, texels.
        texture_steps: Correction passes of the texture towards the photos.
        gaussian_views: Pictures of the Gaussians that paint what the photos do not show.
        gaussian_size: Their side, pixels.
        gaussian_engine: "numba" or "gsplat".
        registration_size: Longest side of the pictures that the mesh is aligned with, pixels.
    """

    simplify: float = 0.95
    visibility_views: int = 200
    visibility_size: int = 512
    texture_size: int = 1024
    texture_steps: int = 4
    gaussian_views: int = 30
    gaussian_size: int = 768
    gaussian_engine: str = "numba"
    registration_size: int = 512

    @property
    def longest_hole(self) -> int:
        """Boundary edges of the longest hole that is filled."""
        return max(3, int(250 * (1.0 - self.simplify) ** 0.5))


def finish(
    generated: Generated,
    dataset: Dataset,
    calibration: Calibration,
    settings: FinishSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Reconstruction:
    """Turn generated geometry and appearance into a textured mesh in the frame of the calibrated cameras.

    Args:
        generated: From the decoders.
        dataset: The views that it was generated from.
        calibration: Their cameras and depth scales.
        settings: How to finish it.
        on_progress: Receiver of progress; may raise `Cancelled`.

    Returns:
        The reconstruction; `statistics["registration"]` tells how well the mesh lies, and whether the views leave its
        orientation open.

    Raises:
        ModelConvergenceError: There is no surface, or it cannot be aligned with the views.
    """
    settings = settings or FinishSettings()
    timings: dict[str, float] = {}
    with _timed(timings, "clean_surface"):
        mesh, colours, surface = clean_surface(generated, settings, part_of(on_progress, 0.0, 0.25))
        upright = Y_UP_FROM_Z_UP.apply_to_mesh(mesh)
    photos = _photos(dataset, calibration, settings.texture_size)
    with _timed(timings, "register"):
        observations = [
            observe(view, camera, scale)
            for view, camera, scale in zip(dataset.views, calibration.cameras, calibration.depth_scales, strict=True)
        ]
        found = register(
            upright,
            observations,
            colours=colours,
            photos=photos,
            longest_side=settings.registration_size,
            on_progress=part_of(on_progress, 0.25, 0.5),
        )
    with _timed(timings, "texture"):
        on_progress(500, 1000, "unwrapping the surface")
        placed = found.world_from_mesh.apply_to_mesh(upright)
        atlas = unwrap(placed, settings.texture_size)
        pictures = GaussianPictures(
            generated.gaussians,
            found.world_from_mesh.after(Y_UP_FROM_Z_UP),
            settings.gaussian_views,
            settings.gaussian_size,
            part_of(on_progress, 0.55, 0.75),
            settings.gaussian_engine,
        )
        textured, texture = bake_texture(
            placed,
            atlas,
            photos,
            pictures,
            settings.texture_size,
            settings.texture_steps,
            part_of(on_progress, 0.75, 1.0),
        )
    statistics: dict[str, Any] = {
        "losses": {"texture_rgb_mse": texture.pop("rgb_mse")},
        "settings": asdict(settings),
        "surface": surface,
        "registration": {
            "world_from_mesh": found.world_from_mesh.after(Y_UP_FROM_Z_UP).matrix.tolist(),
            "confidence": found.confidence,
            "ambiguous": found.ambiguous,
            "residuals": found.residuals,
        },
        "texture": texture,
        "atlas": vars(atlas.facts),
        "genus": mesh_facts(placed).genus,
    }
    return Reconstruction(textured, calibration.cameras, statistics, timings)


def clean_surface(
    generated: Generated, settings: FinishSettings, on_progress: OnProgress = ignore_progress
) -> tuple[TriangleMesh, Float32, dict[str, Any]]:
    """Simplify the raw surface, drop specks and hidden walls, and close small holes.

    Args:
        generated: With the raw surface.
        settings: How far to go.
        on_progress: Receiver of progress.

    Returns:
        mesh: In the generator's frame.
        colours: (V, 3) float32 linear light of its vertices.
        facts: Counts of what was done.

    Raises:
        ModelConvergenceError: There is no surface.
    """
    raw = generated.mesh
    if len(raw.faces) == 0:
        raise ModelConvergenceError(
            "The generated surface is empty.",
            suggestion="Check that the views show one object against a plain background, or try another seed.",
        )
    on_progress(0, 100, "simplifying the surface")
    mesh = keep_components(fix_non_manifold(raw), _LEAST_PIECE)
    budget = max(round((1.0 - settings.simplify) * len(raw.faces)), _FEWEST_FACES)
    mesh = decimate(mesh, budget)
    facts: dict[str, Any] = {"raw_faces": len(raw.faces), "simplified_faces": len(mesh.faces)}
    if settings.visibility_views > 0:
        cameras = sphere_cameras(settings.visibility_views, settings.visibility_size)
        visibility = face_visibility(mesh, cameras, part_of(on_progress, 0.4, 0.8))
        on_progress(80, 100, "cutting away what cannot be seen")
        mesh, walls = remove_inner_walls(mesh, visibility)
        facts["inner_faces_removed"], facts["inner_parts_removed"] = walls.faces, walls.parts
    on_progress(90, 100, "closing holes")
    mesh, filling = fill_holes(fix_non_manifold(mesh), settings.longest_hole)
    facts |= {"holes_filled": filling.holes, "holes_left_open": filling.left_open, "faces": len(mesh.faces)}
    _, nearest = cKDTree(raw.vertices).query(mesh.vertices)
    colours = linear_from_srgb(np.clip(generated.colours_srgb[nearest], 0, 1)).astype(np.float32)
    on_progress(100, 100, "surface cleaned")
    return mesh, colours, facts


def _photos(dataset: Dataset, calibration: Calibration, longest_side: int) -> list[Photo]:
    return [
        prepare_photo(view, camera, longest_side)
        for view, camera in zip(dataset.views, calibration.cameras, strict=True)
    ]


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)
