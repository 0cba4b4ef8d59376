"""What validation found: faults, warnings and facts, and the one error that stands for them. Reads no files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from reconflow.datasets.dataset import DatasetLayout, DepthEncoding, MaskSource
from reconflow.errors import (
    CalibrationContradictedError,
    ErrorCode,
    FileTooLargeError,
    InputError,
    InvalidFileCountError,
    InvalidFileFormatError,
    ValidationFailedError,
)

_ERROR_TYPES: Final[dict[ErrorCode, type[InputError]]] = {
    error.code: error
    for error in (
        CalibrationContradictedError,
        FileTooLargeError,
        InvalidFileCountError,
        InvalidFileFormatError,
        ValidationFailedError,
    )
}


@dataclass(frozen=True)
class Fault:
    """One reason why a dataset cannot be used.

    Attributes:
        code: The kind of fault.
        file: Path relative to the dataset, or None when it concerns the dataset as a whole.
        message: What is wrong, for a person.
        suggestion: The way out, for a person.
    """

    code: ErrorCode
    file: str | None
    message: str
    suggestion: str

    @classmethod
    def from_error(cls, error: InputError, file: str | None = None) -> Fault:
        """Note an error that concerns one file; the error's own `file` detail outranks the argument."""
        named = error.details.get("file", file)
        return cls(error.code, None if named is None else str(named), error.message, error.suggestion)

    def to_dict(self) -> dict[str, str | None]:
        """Return the fault as a JSON-able object."""
        return {"code": self.code.value, "file": self.file, "message": self.message, "suggestion": self.suggestion}


@dataclass(frozen=True)
class ViewFacts:
    """What is known about one view; None where a fault kept it from being found out.

    Attributes:
        name: The view's name.
        photo_file: Path relative to the dataset.
        photo_hw: (height, width), pixels, after EXIF orientation.
        mask_source: Where the object mask comes from.
        coverage: Share of the picture that the object covers, 0 to 1.
        border_share: Share of the frame's outermost pixels that the object covers, 0 to 1; above 0 it is cut.
        mask_file: Path of the mask file, if there is one.
        depth_file: Path of the depth render, if there is one.
        depth_hw: (height, width) of the depth render, pixels.
        depth_bits: 8 or 16.
        depth_encoding: What its values mean.
    """

    name: str
    photo_file: str
    photo_hw: tuple[int, int] | None = None
    mask_source: MaskSource | None = None
    coverage: float | None = None
    border_share: float | None = None
    mask_file: str | None = None
    depth_file: str | None = None
    depth_hw: tuple[int, int] | None = None
    depth_bits: int | None = None
    depth_encoding: DepthEncoding | None = None


@dataclass(frozen=True)
class ValidationReport:
    """Everything that validation found out; a dataset without faults loads.

    Attributes:
        name: The folder's name.
        layout: The convention followed, or None when none was recognised.
        views: Facts per view, in the dataset's order.
        faults: Every reason against it.
        warnings: What is unusual but usable, sentences for a person.
        cameras_given: Whether a `transforms.json` supplies the cameras.
        world_up: The supplied cameras' up axis, "+y" or "+z".
        total_bytes: Size of the input files together.
        file_hashes: SHA-256 of every input file that could be read, by path relative to the dataset.
        digest: SHA-256 over names and content of all input files; None when one of them could not be read.
    """

    name: str
    layout: DatasetLayout | None
    views: tuple[ViewFacts, ...] = ()
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    cameras_given: bool = False
    world_up: str = "+y"
    total_bytes: int = 0
    file_hashes: dict[str, str] = field(default_factory=dict)
    digest: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the dataset can be used."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able object."""
        return {**asdict(self), "ok": self.ok, "faults": [fault.to_dict() for fault in self.faults]}

    def raise_faults(self) -> None:
        """Raise the faults as one error, or return when there are none.

        Raises:
            InputError: Of the faults' own type when they all share one code, else `ValidationFailedError`;
                `details["faults"]` lists every fault.
        """
        if self.faults:
            raise error_of_faults(self.name, self.faults)


def merged_notes(notes: Iterable[str], views: Iterable[str]) -> tuple[str, ...]:
    """Say once what several views have in common, where it first stood; drop what is said twice.

    Args:
        notes: Sentences; those about one view begin with its name and a colon.
        views: The views' names, in their order.
    """
    views = tuple(views)
    about: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        view, colon, text = note.partition(": ")
        whose = about.setdefault(text, []) if colon and view in views else about.setdefault(note, [])
        if colon and view in views:
            whose.append(view)
    return tuple(_note(text, whose, views) for text, whose in about.items())


def _note(text: str, whose: list[str], views: tuple[str, ...]) -> str:
    if not whose:
        return text
    return f"{'all views' if 1 < len(whose) == len(views) else ', '.join(whose)}: {text}"


def error_of_faults(name: str, faults: Iterable[Fault]) -> InputError:
    """Build the one error that stands for all faults of a dataset.

    Args:
        name: The dataset's name.
        faults: At least one.
    """
    faults = tuple(faults)
    codes = {fault.code for fault in faults}
    error_type = _ERROR_TYPES[codes.pop()] if len(codes) == 1 else ValidationFailedError
    first = faults[0]
    message = first.message
    if len(faults) > 1:
        message = f"The dataset {name} has {len(faults)} faults: " + " ".join(fault.message for fault in faults[:4])
        message += f" (and {len(faults) - 4} more)" if len(faults) > 4 else ""
    suggestions = list(dict.fromkeys(fault.suggestion for fault in faults))
    return error_type(
        message,
        suggestion=" ".join(suggestions[:3]),
        dataset=name,
        faults=[fault.to_dict() for fault in faults],
    )
