"""`transforms.json` in the NeRF and nerfstudio conventions: dictionaries to cameras and back. Opens no file.

Both store camera-to-world matrices in OpenGL axes (x right, y up, looking along -z), which are ours. NeRF gives one
`camera_angle_x` for all frames; nerfstudio gives `fl_x fl_y cx cy w h` once or per frame, with pixel centres at
half-integers, which are ours too. COLMAP lives in `colmap.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera, rigid_inverse
from reconflow.cameras.pose_checks import MAX_COORDINATE, Fault, claim, number, raise_faults, rigid_transform
from reconflow.errors import InvalidFileFormatError, ValidationFailedError

FILE: Final = "transforms.json"
_INTRINSICS: Final = ("camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h")
_DISTORTION: Final = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLE_MODELS: Final = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV")
_FRAME_KEYS: Final = ("file_path", "transform_matrix", "mask_path", "depth_file_path")
_IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr")
_UNDISTORT: Final = (
    "Undistort the pictures first (for example `colmap image_undistorter`, or OpenCV's cv2.undistort) and write the "
    "cameras of the undistorted pictures."
)


@dataclass(frozen=True, eq=False)
class TransformsFrame:
    """One frame of a `transforms.json`, checked.

    Attributes:
        name: The view's name: the file's stem, or its whole path without suffix where stems repeat.
        file_path: As written in the file.
        world_from_cam: (4, 4) rigid transform, OpenGL camera axes.
        intrinsics: Those of `camera_angle_x camera_angle_y fl_x fl_y cx cy w h` that hold for this frame.
        mask_path: The frame's mask file, if named.
        depth_file_path: The frame's depth file, if named.
        extras: The frame's other fields.
    """

    name: str
    file_path: str
    world_from_cam: NDArray[np.float64]
    intrinsics: dict[str, float]
    mask_path: str | None = None
    depth_file_path: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def camera(self, image_hw: tuple[int, int]) -> PinholeCamera:
        """Return the camera at the picture's size; a file written for another size is scaled to it.

        Args:
            image_hw: (height, width) of the picture, pixels.

        Raises:
            ValidationFailedError: When the file's `w` and `h` have another aspect ratio than the picture.
        """
        written_hw = (round(self.intrinsics.get("h", image_hw[0])), round(self.intrinsics.get("w", image_hw[1])))
        sy, sx = image_hw[0] / written_hw[0], image_hw[1] / written_hw[1]
        if abs(sy / sx - 1) > 0.01:
            raise ValidationFailedError(
                f"{FILE}: frame {self.file_path}: w x h is {written_hw[1]} x {written_hw[0]}, "
                f"but the picture has {image_hw[1]} x {image_hw[0]} pixels.",
                suggestion="Write w and h of the pictures that are in the dataset.",
                frame=self.file_path,
            )
        focal, centre = _focal_and_centre(self.intrinsics, written_hw)
        cam_from_world = rigid_inverse(self.world_from_cam)
        return PinholeCamera(self.name, focal, centre, cam_from_world, written_hw).resized(image_hw)


@dataclass(frozen=True, eq=False)
class TransformsFile:
    """A checked `transforms.json`.

    Attributes:
        frames: In the file's order.
        extras: Top-level fields that are not cameras, such as `applied_transform` and `aabb_scale`.
    """

    frames: tuple[TransformsFrame, ...]
    extras: dict[str, Any]

    def cameras(self, image_hw: Sequence[tuple[int, int]]) -> tuple[PinholeCamera, ...]:
        """Return the frames' cameras at their pictures' sizes, given as (height, width) in the frames' order."""
        return tuple(frame.camera(hw) for frame, hw in zip(self.frames, image_hw, strict=True))


def parse_transforms(source: str | Mapping[str, Any]) -> TransformsFile:
    """Check a `transforms.json` of the NeRF or the nerfstudio convention.

    Args:
        source: The file's text, or the object it holds.

    Raises:
        InvalidFileFormatError: When the text is not a JSON object.
        ValidationFailedError: When anything in it cannot be used; names every frame at fault.
    """
    spec = _decoded(source) if isinstance(source, str) else source
    listed = spec.get("frames")
    if not isinstance(listed, list | tuple) or not listed:
        raise_faults(FILE, [Fault("frames", "there is no list of frames in the file")])
        return TransformsFile((), {})
    frames, faults, seen = [], [], set[str]()
    for index, entry in enumerate(listed):
        try:
            frame = _frame(entry, spec, f"frame {index}")
            claim(_stem(frame.file_path), seen, f"frame {frame.file_path}", "the same file_path appears twice")
            frames.append(frame)
        except Fault as fault:
            faults.append(fault)
    raise_faults(FILE, faults)
    extras = {k: v for k, v in spec.items() if k not in (*_INTRINSICS, *_DISTORTION, "camera_model", "frames")}
    return TransformsFile(_named_apart(frames), extras)


def format_nerf(
    cameras: Sequence[PinholeCamera], *, folder: str = "./multi_views", extras: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return cameras as a NeRF `transforms.json`, readable by anything that knows `camera_angle_x`.

    Args:
        cameras: Views with one field of view, square pixels and a centred principal point.
        folder: What precedes each view's name in `file_path`.
        extras: Further top-level fields.

    Raises:
        ValidationFailedError: When a camera cannot be said in this convention.
    """
    faults = []
    for camera in cameras:
        (fx, fy), (cx, cy), (height, width) = camera.focal_px, camera.centre_px, camera.image_hw
        if abs(fx / fy - 1) > 1e-9 or abs(cx - width / 2) > 1e-6 * width or abs(cy - height / 2) > 1e-6 * height:
            faults.append(Fault(f"view {camera.name}", "pixels are not square or the principal point is not centred"))
        elif abs(camera.fov_x_rad - cameras[0].fov_x_rad) > 1e-9:
            faults.append(Fault(f"view {camera.name}", "has another field of view than the first view"))
    if not cameras:
        faults.append(Fault("frames", "there are no cameras to write"))
    for fault in faults:
        fault.suggestion = "Write these cameras in the nerfstudio convention, which has per-frame intrinsics."
    raise_faults(FILE, faults)
    frames = [_written_frame(camera, f"{folder}/{camera.name}") for camera in cameras]
    return {**(extras or {}), "camera_angle_x": cameras[0].fov_x_rad, "frames": frames}


def format_nerfstudio(
    cameras: Sequence[PinholeCamera], *, folder: str = "images", suffix: str = ".png", **extras: Any
) -> dict[str, Any]:
    """Return cameras as a nerfstudio `transforms.json` with the intrinsics in every frame.

    Args:
        cameras: Any pinhole views.
        folder: What precedes each view's name in `file_path`.
        suffix: What follows it.
        **extras: Further top-level fields, such as `applied_transform`.
    """
    frames = []
    for camera in cameras:
        (fx, fy), (cx, cy), (height, width) = camera.focal_px, camera.centre_px, camera.image_hw
        intrinsics = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": width, "h": height}
        frames.append({**_written_frame(camera, f"{folder}/{camera.name}{suffix}"), **intrinsics})
    return {"camera_model": "PINHOLE", **extras, "frames": frames}


def _decoded(text: str) -> dict[str, Any]:
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFileFormatError(
            f"{FILE} is not valid JSON: {type(error).__name__} {str(error)[:120]}",
            suggestion="Check the file with a JSON validator.",
            file=FILE,
        ) from None
    if not isinstance(spec, dict):
        raise InvalidFileFormatError(
            f"{FILE} holds no JSON object.", suggestion="It must be an object with a list called frames.", file=FILE
        )
    return spec


def _frame(entry: Any, spec: Mapping[str, Any], where: str) -> TransformsFrame:
    if not isinstance(entry, Mapping):
        raise Fault(where, "is not an object")
    file_path = entry.get("file_path")
    if not isinstance(file_path, str) or not PurePosixPath(file_path).name:
        raise Fault(where, "has no file_path")
    where = f"frame {file_path}"
    _refuse_distortion(entry, spec, where)
    if "transform_matrix" not in entry:
        raise Fault(where, "has no transform_matrix")
    return TransformsFrame(
        name=PurePosixPath(_stem(file_path)).name,
        file_path=file_path,
        world_from_cam=rigid_transform(entry["transform_matrix"], where, "transform_matrix"),
        intrinsics=_intrinsics(entry, spec, where),
        mask_path=_optional_path(entry, "mask_path", where),
        depth_file_path=_optional_path(entry, "depth_file_path", where),
        extras={k: v for k, v in entry.items() if k not in (*_FRAME_KEYS, *_INTRINSICS, *_DISTORTION, "camera_model")},
    )


def _intrinsics(entry: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> dict[str, float]:
    # A frame's own values outrank the shared ones; a shared angle must not outrank a frame's focal length.
    found: dict[str, float] = {}
    for name in _INTRINSICS:
        if name not in entry and name not in spec:
            continue
        value = entry.get(name, spec.get(name))
        if name.startswith("camera_angle"):
            try:
                found[name] = number(value, where, name, above=0, below=math.pi)
            except Fault as fault:
                fault.suggestion = "Angles are radians, above 0 and below pi."
                raise
        else:
            floor = -MAX_COORDINATE if name in ("cx", "cy") else 0
            found[name] = number(value, where, name, above=floor, below=MAX_COORDINATE)
    for name in ("w", "h"):
        if name in found and (found[name] != round(found[name]) or found[name] > 1e5):
            raise Fault(where, f"{name} = {found[name]:g} is not a picture's size in pixels")
    if ("w" in found) != ("h" in found):
        raise Fault(where, "only one of w and h is given")
    if "fl_x" not in found and "camera_angle_x" not in found:
        raise Fault(where, "has neither fl_x nor camera_angle_x", "Give the field of view as camera_angle_x (radians).")
    return found


def _focal_and_centre(
    intrinsics: Mapping[str, float], image_hw: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    height, width = image_hw
    fx = intrinsics["fl_x"] if "fl_x" in intrinsics else 0.5 * width / math.tan(0.5 * intrinsics["camera_angle_x"])
    if "fl_y" in intrinsics:
        fy = intrinsics["fl_y"]
    elif "fl_x" not in intrinsics and "camera_angle_y" in intrinsics:
        fy = 0.5 * height / math.tan(0.5 * intrinsics["camera_angle_y"])
    else:
        fy = fx
    return (fx, fy), (intrinsics.get("cx", 0.5 * width), intrinsics.get("cy", 0.5 * height))


def _refuse_distortion(entry: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> None:
    model = entry.get("camera_model", spec.get("camera_model", "PINHOLE"))
    if model not in _PINHOLE_MODELS:
        raise Fault(where, f"the camera model {model!r} is not a pinhole camera", _UNDISTORT)
    for name in _DISTORTION:
        value = entry.get(name, spec.get(name, 0.0))
        if number(value, where, name) != 0.0:
            raise Fault(where, f"the lens distortion {name} = {value:g} is not zero", _UNDISTORT)


def _optional_path(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise Fault(where, f"{key} is not a path")
    return value


def _stem(file_path: str) -> str:
    path = PurePosixPath(file_path.replace("\\", "/"))
    return str(path.with_suffix("")) if path.suffix.lower() in _IMAGE_SUFFIXES else str(path)


def _named_apart(frames: Sequence[TransformsFrame]) -> tuple[TransformsFrame, ...]:
    stems = [frame.name for frame in frames]
    if len(set(stems)) == len(stems):
        return tuple(frames)
    return tuple(TransformsFrame(**{**vars(frame), "name": _stem(frame.file_path)}) for frame in frames)


def _written_frame(camera: PinholeCamera, file_path: str) -> dict[str, Any]:
    return {"file_path": file_path, "transform_matrix": camera.world_from_cam.tolist()}
