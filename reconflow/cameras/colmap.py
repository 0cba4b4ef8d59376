"""COLMAP's text model (`cameras.txt`, `images.txt`): strings to cameras and back. Opens no file, reads no points.

COLMAP stores world-to-camera as quaternion (w, x, y, z) and translation in OpenCV axes (x right, y down, looking along
+z), with the top-left pixel's centre at (0.5, 0.5): its pixels are ours, its camera axes are ours with y and z negated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.pose_checks import MAX_COORDINATE, Fault, claim, number, raise_faults

_GL_FROM_CV: Final = np.diag([1.0, -1.0, -1.0])
_PARAMETERS: Final = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4}
_QUATERNION_TOLERANCE: Final = 1e-2

_Intrinsics = tuple[tuple[float, float], tuple[float, float], tuple[int, int]]


def parse_colmap_text(cameras_txt: str, images_txt: str) -> tuple[PinholeCamera, ...]:
    """Check a COLMAP text model and return one camera per image, in the order of `images.txt`.

    Args:
        cameras_txt: Content of `cameras.txt`.
        images_txt: Content of `images.txt`.

    Returns:
        Cameras named after the images' file stems (whole paths without suffix where stems repeat).

    Raises:
        ValidationFailedError: When anything cannot be used; names every line or image at fault.
    """
    intrinsics = _parse_cameras(cameras_txt)
    found: list[tuple[str, PinholeCamera]] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for where, words in _image_lines(images_txt, faults):
        try:
            path, camera = _parse_image(words, intrinsics, where)
            claim(path, seen, f"image {path}", "appears twice")
            found.append((path, camera))
        except Fault as fault:
            faults.append(fault)
    if not found and not faults:
        faults.append(Fault("images", "there are no images in the file"))
    raise_faults("images.txt", faults)
    stems = [PurePosixPath(path).stem for path, _ in found]
    names = stems if len(set(stems)) == len(stems) else [str(PurePosixPath(path).with_suffix("")) for path, _ in found]
    return tuple(
        PinholeCamera(name, c.focal_px, c.centre_px, c.cam_from_world, c.image_hw)
        for name, (_, c) in zip(names, found, strict=True)
    )


def format_colmap_text(cameras: Sequence[PinholeCamera], *, suffix: str = ".png") -> tuple[str, str]:
    """Return (`cameras.txt`, `images.txt`) with one PINHOLE camera per view and no points.

    Args:
        cameras: The views.
        suffix: What follows a view's name in the image's file name.
    """
    camera_lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    image_lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    for number_, camera in enumerate(cameras, start=1):
        (fx, fy), (cx, cy), (height, width) = camera.focal_px, camera.centre_px, camera.image_hw
        camera_lines.append(f"{number_} PINHOLE {width} {height} {fx!r} {fy!r} {cx!r} {cy!r}")
        quaternion = Rotation.from_matrix(_GL_FROM_CV @ camera.cam_from_world[:3, :3]).as_quat(
            canonical=True, scalar_first=True
        )
        translation = _GL_FROM_CV @ camera.cam_from_world[:3, 3]
        pose = " ".join(repr(float(x)) for x in (*quaternion, *translation))
        image_lines += [f"{number_} {pose} {number_} {camera.name}{suffix}", ""]
    return "\n".join(camera_lines) + "\n", "\n".join(image_lines) + "\n"


def _parse_cameras(text: str) -> dict[str, _Intrinsics]:
    intrinsics: dict[str, _Intrinsics] = {}
    faults: list[Fault] = []
    seen: set[str] = set()
    for index, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            claim(words[0], seen, f"line {index}", f"camera {words[0]} appears twice")
            intrinsics[words[0]] = _parse_camera(words, f"line {index}")
        except Fault as fault:
            faults.append(fault)
    if not intrinsics and not faults:
        faults.append(Fault("cameras", "there are no cameras in the file"))
    raise_faults("cameras.txt", faults)
    return intrinsics


def _parse_camera(words: list[str], where: str) -> _Intrinsics:
    model = words[1] if len(words) > 1 else ""
    if model not in _PARAMETERS:
        raise Fault(
            where,
            f"the camera model {model!r} is not supported (PINHOLE and SIMPLE_PINHOLE are)",
            "Undistort the pictures with `colmap image_undistorter`; it writes PINHOLE cameras.",
        )
    if len(words) != 4 + _PARAMETERS[model]:
        raise Fault(where, f"{model} needs {_PARAMETERS[model]} parameters")
    if not (words[2].isdecimal() and words[3].isdecimal() and 0 < int(words[2]) <= 1e5 and 0 < int(words[3]) <= 1e5):
        raise Fault(where, f"{words[2]} x {words[3]} is not a picture's size in pixels")
    parameters = [_float(word, where, "parameter") for word in words[4:]]
    focal, centre = parameters[:-2], parameters[-2:]
    for value in focal:
        number(value, where, "focal length", above=0, below=MAX_COORDINATE)
    return (focal[0], focal[-1]), (centre[0], centre[1]), (int(words[3]), int(words[2]))


def _image_lines(text: str, faults: list[Fault]) -> list[tuple[str, list[str]]]:
    """Return the first line of each image's two; the second holds points, may be empty, and is only counted."""
    lines, points_expected = [], False
    for index, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words and words[0].startswith("#"):
            continue
        if points_expected:
            if len(words) % 3 != 0:
                faults.append(Fault(f"line {index}", "expected the image's points (groups of three, or an empty line)"))
            points_expected = False
        elif words:
            lines.append((f"line {index}", words))
            points_expected = True
    return lines


def _parse_image(words: list[str], intrinsics: dict[str, _Intrinsics], where: str) -> tuple[str, PinholeCamera]:
    if len(words) < 10:
        raise Fault(where, "an image needs ten fields")
    path = " ".join(words[9:])
    where = f"image {path}"
    quaternion = np.array([_float(word, where, "quaternion") for word in words[1:5]])
    translation = np.array([_float(word, where, "translation") for word in words[5:8]])
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1) > _QUATERNION_TOLERANCE:
        raise Fault(where, f"the quaternion's length is {norm:.4g}, not 1")
    if words[8] not in intrinsics:
        raise Fault(where, f"camera {words[8]} is not in cameras.txt")
    cam_from_world = np.eye(4)
    cam_from_world[:3, :3] = _GL_FROM_CV @ Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
    cam_from_world[:3, 3] = _GL_FROM_CV @ translation
    focal, centre, image_hw = intrinsics[words[8]]
    return path, PinholeCamera(path, focal, centre, cam_from_world, image_hw)


def _float(word: str, where: str, name: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise Fault(where, f"{name} {word!r} is not a number") from None
    return number(value, where, name, above=-MAX_COORDINATE, below=MAX_COORDINATE)
