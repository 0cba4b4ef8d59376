"""How stages hand results to each other: files of arrays and facts (`array_files`), named with their checksums.

Only intermediate files; the formats that users open live in `reconflow.outputs`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from reconflow.array_files import load_arrays, save_arrays
from reconflow.cameras.calibration import Calibration
from reconflow.cameras.camera import PinholeCamera
from reconflow.errors import IncompleteResultsError
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.outputs.files import sha256_of
from reconflow.reconstruction import Reconstruction
from reconflow.stage_results import FileRef


def file_ref(path: Path, folder: Path) -> FileRef:
    """Describe a file that has just been written.

    Args:
        path: The file.
        folder: The folder that the reference is relative to.
    """
    return FileRef(path=path.relative_to(folder).as_posix(), sha256=sha256_of(path), bytes=path.stat().st_size)


def resolve(ref: FileRef, folder: Path) -> Path:
    """Return a referenced file's path after checking that it still is what it was.

    Raises:
        IncompleteResultsError: The file is missing or its content has changed.
    """
    path = folder / ref.path
    if not path.is_file():
        raise _damaged(ref, "is missing")
    if path.stat().st_size != ref.bytes or sha256_of(path) != ref.sha256:
        raise _damaged(ref, "has changed since it was written")
    return path


def camera_to_dict(camera: PinholeCamera) -> dict[str, Any]:
    """Return a camera as a JSON-able object, exactly."""
    return {
        "name": camera.name,
        "focal_px": list(camera.focal_px),
        "centre_px": list(camera.centre_px),
        "cam_from_world": camera.cam_from_world.tolist(),
        "image_hw": list(camera.image_hw),
    }


def camera_from_dict(facts: dict[str, Any]) -> PinholeCamera:
    """Read what `camera_to_dict` returned."""
    return PinholeCamera(
        name=facts["name"],
        focal_px=(facts["focal_px"][0], facts["focal_px"][1]),
        centre_px=(facts["centre_px"][0], facts["centre_px"][1]),
        cam_from_world=np.array(facts["cam_from_world"], np.float64),
        image_hw=(facts["image_hw"][0], facts["image_hw"][1]),
    )


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write the cameras and what is known of them for the stages that follow."""
    facts = {
        name: adapter.dump_python(getattr(calibration, name), mode="json")
        for name, adapter in _calibration_fields().items()
    }
    facts["cameras"] = [camera_to_dict(camera) for camera in calibration.cameras]
    save_arrays(path, {}, facts)


def load_calibration(path: Path) -> Calibration:
    """Read what `save_calibration` wrote."""
    _, facts = load_arrays(path)
    cameras = tuple(camera_from_dict(camera) for camera in facts.pop("cameras"))
    adapters = _calibration_fields()
    return Calibration(cameras=cameras, **{name: adapters[name].validate_python(facts[name]) for name in facts})


def save_reconstruction(path: Path, reconstruction: Reconstruction) -> None:
    """Write a model's result for the stages that follow.

    Not its timings, so that equal results are equal files, and not its Gaussians, which no later stage needs.
    """
    textured = reconstruction.textured
    arrays: dict[str, NDArray[Any]] = {
        "vertices": textured.mesh.vertices,
        "faces": textured.mesh.faces,
        "uvs": textured.uvs,
        "uv_faces": textured.uv_faces,
        "base_colour_srgb": textured.base_colour_srgb,
    }
    facts = {
        "cameras": [camera_to_dict(camera) for camera in reconstruction.cameras],
        "statistics": reconstruction.statistics,
    }
    save_arrays(path, arrays, facts)


def load_reconstruction(path: Path) -> Reconstruction:
    """Read what `save_reconstruction` wrote."""
    arrays, facts = load_arrays(path)
    return Reconstruction(
        textured=TexturedMesh(
            mesh=TriangleMesh(arrays["vertices"], arrays["faces"]),
            uvs=arrays["uvs"],
            uv_faces=arrays["uv_faces"],
            base_colour_srgb=arrays["base_colour_srgb"],
        ),
        cameras=tuple(camera_from_dict(camera) for camera in facts["cameras"]),
        statistics=facts["statistics"],
    )


def _damaged(ref: FileRef, what: str) -> IncompleteResultsError:
    name = Path(ref.path).name
    return IncompleteResultsError(
        f"The intermediate file {name} {what}.", suggestion="Run the reconstruction again.", file=name
    )


def _calibration_fields() -> dict[str, TypeAdapter[Any]]:
    """Return how to store each field of a calibration, other than the cameras, by its declared type."""
    hints = get_type_hints(Calibration)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(Calibration) if field.name != "cameras"}
