"""A tiny object, a dataset rendered from it, and a stand-in model that knows the answer: the flow is what is tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from reconflow.cameras.calibration import Calibration
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.checkpoints import Checkpoint
from reconflow.datasets.dataset import Dataset
from reconflow.datasets.writing import write_six_view
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.options import NvdiffrecOptions
from reconflow.progress import OnProgress
from reconflow.reconstruction import Reconstruction
from reconflow.rendering.shade import render_textured

FOV_DEG = 45.0
STEPS = 5

_CUBE_FACES = np.array(
    [
        [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
        [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
    ]
)  # fmt: skip
_BOXES = (((0.0, -0.12, 0.0), (0.2, 0.06, 0.14)), ((-0.1, 0.06, 0.03), (0.06, 0.12, 0.08)))


def coloured_boxes(scale: float = 1.0) -> TexturedMesh:
    """Two boxes on each other that no turn or mirror maps onto themselves; every side has its own colour."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    vertices = np.concatenate([np.array(centre) + corners * np.array(half) for centre, half in _BOXES])
    faces = np.concatenate([_CUBE_FACES + 8 * box for box in range(len(_BOXES))])
    texture = np.random.default_rng(7).integers(40, 220, (4, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    side = np.arange(len(faces)) // 2
    centres = np.stack([(side % 4 + 0.5) / 4, 1 - (side // 4 + 0.5) / 4], axis=1)
    spread = np.array([[-0.05, -0.05], [0.05, -0.05], [0.0, 0.05]])
    uvs = (centres[:, None] + spread).reshape(-1, 2)
    return TexturedMesh(
        mesh=TriangleMesh((scale * vertices).astype(np.float32), faces.astype(np.int32)),
        uvs=uvs.astype(np.float32),
        uv_faces=np.arange(3 * len(faces)).reshape(-1, 3).astype(np.int32),
        base_colour_srgb=texture,
    )


def write_dataset(root: Path, size: int = 96) -> Path:
    """Render the boxes into a six-view folder, its cameras at distance 1."""
    cameras = six_axis_rig(math.radians(FOV_DEG), 1.0, (size, size))
    photos, depths = {}, {}
    for camera in cameras:
        render = render_textured(coloured_boxes(), camera)
        alpha = np.round(255 * render.coverage).astype(np.uint8)
        photos[camera.name] = np.dstack([np.round(255 * render.rgb_srgb).astype(np.uint8), alpha])
        depths[camera.name] = np.round(65535 * render.depth / render.depth.max()).astype(np.uint16)
    write_six_view(root, photos, depths, cameras)
    return root


def flatten_onto_white(path: Path) -> None:
    """Replace a picture with transparency by the same one on white, without."""
    with Image.open(path) as image:
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    opaque.convert("RGB").save(path)


class StandInModel:
    """Returns the boxes after a few steps: nothing is computed, everything around it runs.

    Args:
        during: Called at every step, to disturb the run.
        result: What is returned instead of the boxes.
    """

    name = "nvdiffrec"
    version = "stand-in"
    devices = ("cpu",)

    def __init__(self, during: Callable[[int], None] | None = None, result: TexturedMesh | None = None) -> None:
        self.during = during
        self.result = result or coloured_boxes()

    def load(self, device: str) -> None:
        """Nothing to load."""

    def release(self) -> None:
        """Nothing to release."""

    def reconstruct(
        self,
        dataset: Dataset,
        calibration: Calibration,
        options: NvdiffrecOptions,
        on_progress: OnProgress,
        checkpoint: Checkpoint | None = None,
    ) -> Reconstruction:
        """Report `STEPS` steps and return the known answer."""
        for step in range(STEPS):
            on_progress(step, STEPS, f"step {step}")
            if self.during is not None:
                self.during(step)
        losses = {"colour": [[step, 1.0 / (step + 1)] for step in range(STEPS)]}
        return Reconstruction(self.result, calibration.cameras, {"losses": losses}, {"fit": 0.0})
