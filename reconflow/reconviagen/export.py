"""From what the decoders give to a reconstruction: clean the surface, align it with the views, unwrap and paint it.

The order of these steps lives here; no network runs. What fits the surface to the views is in `refinement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from reconflow.cameras.calibration import Calibration
from reconflow.colour import linear_from_srgb
from reconflow.datasets.dataset import Dataset
from reconflow.errors import ModelConvergenceError
from reconflow.geometry.atlas import Atlas, unwrap
from reconflow.geometry.components import keep_components
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.holes import fill_holes
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.geometry.remesh import decimate, fix_non_manifold
from reconflow.geometry.similarity import Similarity
from reconflow.nvdiffrec.fitting import Painter, observe_views, photos_of, timed
from reconflow.nvdiffrec.photos import Photo
from reconflow.nvdiffrec.texture import Corrections
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.baking import GaussianPictures, bake_texture
from reconflow.reconviagen.inner_walls import face_visibility, remove_inner_walls
from reconflow.reconviagen.registration import Registration, register
from reconflow.reconviagen.sphere_cameras import sphere_cameras

Float32 = NDArray[np.float32]

Y_UP_FROM_Z_UP: Final = Similarity(1.0, np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.zeros(3))
"""(x, y, z) becomes (x, z, -y): the generator's frame turned into glTF's."""
_FEWEST_FACES: Final = 4000
"""Simplification leaves at least so many faces where no upper bound is given."""
LEAST_PIECE: Final = 0.002
"""Pieces of less than this part of the area are dropped."""
_POOR_OVERLAP: Final = 0.8
"""A mesh whose silhouettes overlap less (IoU) than this with the views' is not what they show, or lies elsewhere."""


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
        target_faces: Most faces of the cleaned surface, as far as its shape allows; decides instead of `simplify`.
        visibility_views: From how many sides hidden faces are looked for; 0 keeps them.
        visibility_size: Side of those pictures, pixels.
        texture_size: Side of the texture, texels.
        texture_steps: Correction passes of the texture towards the photos.
        gaussian_views: Pictures of the Gaussians that paint what the photos do not show.
        gaussian_size: Their side, pixels.
        gaussian_engine: "numba" or "gsplat"; see `gaussian_engines`.
        registration_size: Longest side of the pictures that the mesh is aligned with, pixels.
    """

    simplify: float = 0.95
    target_faces: int | None = None
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

    def face_budget(self, raw_faces: int) -> int:
        """Return how many faces simplification leaves of so many."""
        if self.target_faces is not None:
            return self.target_faces
        return max(round((1.0 - self.simplify) * raw_faces), _FEWEST_FACES)


@dataclass(frozen=True, eq=False)
class Placed:
    """A generated object where the cameras see it, not painted.

    Attributes:
        mesh: The cleaned surface in the cameras' world.
        world_from_generator: The transform from the generator's frame.
        found: How well it lies.
        surface: What was done to the surface.
    """

    mesh: TriangleMesh
    world_from_generator: Similarity
    found: Registration
    surface: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return what a reconstruction's statistics say of it."""
        registration = {
            "world_from_mesh": self.world_from_generator.matrix.tolist(),
            "confidence": self.found.confidence,
            "ambiguous": self.found.ambiguous,
            "residuals": self.found.residuals,
        }
        return {"surface": self.surface, "registration": registration, "notes": self.notes()}

    def notes(self) -> list[str]:
        """Return what people are told when it is doubtful that the object lies where the cameras see it."""
        overlap, notes = self.found.residuals["mask_iou"], []
        if overlap < _POOR_OVERLAP:
            notes.append(
                f"The generated mesh fits the views poorly: aligned with them, it overlaps their masks with an IoU of "
                f"{overlap:.2f}."
            )
        if self.found.ambiguous:
            notes.append(
                "The views leave the orientation of the generated mesh open; it lies in one of several that fit about "
                "as well."
            )
        return notes


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
    placed = place(generated, dataset, calibration, settings, part_of(on_progress, 0.0, 0.5), timings)
    with timed(timings, "texture"):
        on_progress(500, 1000, "unwrapping the surface")
        atlas = unwrap(placed.mesh, settings.texture_size)
        paint = gaussian_painter(generated.gaussians, placed.world_from_generator, settings)
        textured, texture = paint(
            placed.mesh,
            atlas,
            photos_of(dataset, calibration, settings.texture_size),
            settings.texture_size,
            settings.texture_steps,
            part_of(on_progress, 0.55, 1.0),
            corrections=Corrections.GUARDED,
        )
    statistics: dict[str, Any] = {
        "losses": {"texture_rgb_mse": texture.pop("rgb_mse")},
        "settings": asdict(settings),
        "texture": texture,
        "atlas": vars(atlas.facts),
        "genus": mesh_facts(placed.mesh).genus,
        **placed.facts(),
    }
    gaussians = generated.gaussians.transformed(placed.world_from_generator)
    return Reconstruction(textured, calibration.cameras, statistics, timings, gaussians)


def place(
    generated: Generated,
    dataset: Dataset,
    calibration: Calibration,
    settings: FinishSettings,
    on_progress: OnProgress,
    timings: dict[str, float],
) -> Placed:
    """Clean the generated surface and lay it where the cameras see it.

    Args:
        generated: From the decoders.
        dataset: The views that it was generated from.
        calibration: Their cameras and depth scales.
        settings: How to finish it.
        on_progress: Receiver of progress; may raise `Cancelled`.
        timings: Takes the seconds of both steps.

    Raises:
        ModelConvergenceError: There is no surface, or it cannot be aligned with the views.
    """
    with timed(timings, "clean_surface"):
        mesh, colours, surface = clean_surface(generated, settings, part_of(on_progress, 0.0, 0.5))
        upright = Y_UP_FROM_Z_UP.apply_to_mesh(mesh)
    with timed(timings, "register"):
        found = register(
            upright,
            observe_views(dataset, calibration),
            colours=colours,
            photos=photos_of(dataset, calibration, settings.texture_size),
            longest_side=settings.registration_size,
            on_progress=part_of(on_progress, 0.5, 1.0),
        )
    return Placed(
        found.world_from_mesh.apply_to_mesh(upright), found.world_from_mesh.after(Y_UP_FROM_Z_UP), found, surface
    )


def gaussian_painter(gaussians: Gaussians, world_from_generator: Similarity, settings: FinishSettings) -> Painter:
    """Return who paints a mesh in the cameras' world from the photos and, where they see nothing, the Gaussians.

    Args:
        gaussians: In the generator's frame.
        world_from_generator: Where that lies.
        settings: How the Gaussians are pictured.
    """

    def paint(
        mesh: TriangleMesh,
        atlas: Atlas,
        photos: Sequence[Photo],
        size: int,
        steps: int,
        on_progress: OnProgress,
        *,
        corrections: Corrections,
    ) -> tuple[TexturedMesh, dict[str, Any]]:
        pictures = GaussianPictures(
            gaussians,
            world_from_generator,
            settings.gaussian_views,
            settings.gaussian_size,
            part_of(on_progress, 0.0, 0.45),
            settings.gaussian_engine,
        )
        painting = part_of(on_progress, 0.45, 1.0)
        return bake_texture(mesh, atlas, photos, pictures, size, steps, painting, corrections=corrections)

    return paint


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
    mesh = keep_components(fix_non_manifold(raw), LEAST_PIECE)
    mesh = decimate(mesh, settings.face_budget(len(raw.faces)))
    facts: dict[str, Any] = {"raw_faces": len(raw.faces), "simplified_faces": len(mesh.faces)}
    if settings.visibility_views > 0:
        cameras = sphere_cameras(settings.visibility_views, settings.visibility_size)
        visibility = face_visibility(mesh, cameras, part_of(on_progress, 0.4, 0.8))
        on_progress(80, 100, "cutting away what cannot be seen")
        mesh, walls = remove_inner_walls(mesh, visibility)
        facts["inner_faces_removed"], facts["inner_parts_removed"] = walls.faces, walls.parts
    on_progress(90, 100, "closing holes")
    mesh, filling = fill_holes(fix_non_manifold(mesh), settings.longest_hole)
    if settings.target_faces is not None:  # which what fills the holes may have exceeded
        mesh = decimate(mesh, settings.target_faces)
    facts |= {"holes_filled": filling.holes, "holes_left_open": filling.left_open, "faces": len(mesh.faces)}
    _, nearest = cKDTree(raw.vertices).query(mesh.vertices)
    colours = linear_from_srgb(np.clip(generated.colours_srgb[nearest], 0, 1)).astype(np.float32)
    on_progress(100, 100, "surface cleaned")
    return mesh, colours, facts
