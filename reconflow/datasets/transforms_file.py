"""Reading a dataset's `transforms.json`: bytes to checked frames. What a frame means is `reconflow.cameras.formats`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

import numpy as np

from reconflow.cameras.formats import TransformsFile, parse_transforms
from reconflow.datasets.files import DatasetFolder, shown
from reconflow.datasets.limits import MAX_TRANSFORMS_BYTES
from reconflow.errors import InputError, InvalidFileFormatError, ValidationFailedError

TRANSFORMS_NAMES: Final = ("transforms.json", "transforms_train.json")
_WORLD_UP: Final = {"+y": "+y", "y": "+y", "+z": "+z", "z": "+z"}
_JSON_HELP: Final = "Check the file with a JSON validator; numbers must be finite and keys unique."


def find_transforms(folder: DatasetFolder) -> str | None:
    """Return the name of the dataset's camera file, or None."""
    return next((name for name in TRANSFORMS_NAMES if folder.has_file(name)), None)


def read_transforms(folder: DatasetFolder, file: str) -> tuple[TransformsFile, bytes]:
    """Read and check a camera file.

    Args:
        folder: The dataset.
        file: Name of the camera file.

    Returns:
        transforms: The checked cameras.
        content: The bytes they were read from.

    Raises:
        InputError: When it is too large, no strict JSON (NaN, repeated keys, excessive nesting), or its cameras
            cannot be used.
    """
    content = folder.read(file, MAX_TRANSFORMS_BYTES)
    try:
        spec = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError:
        raise _not_json(file, "it is not UTF-8 text") from None
    except RecursionError:
        raise _not_json(file, "it is nested too deeply") from None
    except ValueError as error:
        raise _not_json(file, shown(str(error))) from None
    if not isinstance(spec, dict):
        raise _not_json(file, "it holds no object")
    try:
        return parse_transforms(spec), content
    except InputError as error:
        problems = [
            f"{fault['where']}: {fault['problem']}"
            for fault in _dicts(error.details.get("faults"))
            if {"where", "problem"} <= fault.keys()
        ]
        raise ValidationFailedError(
            shown_long(f"{file}: {'; '.join(problems[:5])}" if problems else error.message),
            suggestion=error.suggestion,
            file=file,
            problems=[shown_long(problem) for problem in problems[:50]],
        ) from None


def world_up_of(transforms: TransformsFile, file: str) -> tuple[str, str | None]:
    """Decide which axis of the file's world points up.

    The file's own `world_up` decides when present; else the axis that the cameras' up directions share.

    Args:
        transforms: The checked file.
        file: Its name, for messages.

    Returns:
        world_up: "+y" or "+z".
        note: A sentence for a person when the axis had to be guessed against the odds, else None.

    Raises:
        ValidationFailedError: When `world_up` is neither.
    """
    stated = transforms.extras.get("world_up")
    if stated is not None:
        if not isinstance(stated, str) or stated not in _WORLD_UP:
            raise ValidationFailedError(
                f"{file}: world_up is {shown(repr(stated))}, not '+y' or '+z'.",
                suggestion="Write world_up as '+y' or '+z', or leave it out.",
                file=file,
            )
        return _WORLD_UP[stated], None
    mean_up = np.mean([frame.world_from_cam[:3, 1] for frame in transforms.frames], axis=0)
    if max(mean_up[1], mean_up[2]) < 0.2 or mean_up[0] > max(mean_up[1], mean_up[2]):
        return "+y", f"{file} does not tell which way is up; +y is assumed. Add world_up ('+y' or '+z') to it."
    return ("+z" if mean_up[2] > mean_up[1] else "+y"), None


def shown_long(text: str) -> str:
    """Return text from a file as it may stand in a message: printable, at most 600 characters."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= 600 else printable[:597] + "..."


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a number JSON knows")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} appears twice in one object")
    return dict(pairs)


def _not_json(file: str, why: str) -> InvalidFileFormatError:
    return InvalidFileFormatError(f"{file} is not valid JSON: {why}.", suggestion=_JSON_HELP, file=file)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
