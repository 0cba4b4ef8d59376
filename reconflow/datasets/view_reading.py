"""Turning one view's files into a `View`, with every fault of those files. Knows nothing of the other views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.datasets.dataset import DatasetLayout, DepthEncoding, DepthImage, MaskSource, View
from reconflow.datasets.files import DatasetFolder
from reconflow.datasets.image_decoding import Photo, decode_depth, decode_mask, decode_photo
from reconflow.datasets.image_headers import ImageFormat, ImageHeader, read_header
from reconflow.datasets.layout import ViewFiles
from reconflow.datasets.limits import MIN_DEPTH_PX, MIN_PHOTO_PX
from reconflow.datasets.masks import ObjectMask, border_share, object_mask
from reconflow.datasets.report import Fault, ViewFacts
from reconflow.errors import ErrorCode, InputError, InvalidFileFormatError, ValidationFailedError

EMPTY_BELOW: Final = 0.0005
"""A mask that covers less of the picture than this counts as empty."""

FULL_ABOVE: Final = 0.98
"""A mask that covers more of the picture than this counts as full."""

CUT_ABOVE: Final = 0.02
"""A six-view object that covers more of the frame's outermost pixels than this is cut too much."""

_MILLIMETRES: Final = 0.001


@dataclass(frozen=True)
class SurveyedFile:
    """A picture file whose header has been checked.

    Attributes:
        header: What it says about itself.
        sha256: Hash of its content, hex.
    """

    header: ImageHeader
    sha256: str


@dataclass(eq=False)
class ViewFindings:
    """What reading one view gave.

    Attributes:
        facts: What became known.
        faults: Why it cannot be used.
        warnings: Sentences for a person.
        view: The view; None when there are faults.
    """

    facts: ViewFacts
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    view: View | None = None


class collecting:  # noqa: N801 - reads as a statement, like contextlib's own
    """Context that turns an input error raised inside into a fault of `file`, and goes on after it."""

    def __init__(self, faults: list[Fault], file: str | None) -> None:
        self._faults, self._file = faults, file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, InputError):
            return False
        self._faults.append(Fault.from_error(error, self._file))
        return True


def survey_file(folder: DatasetFolder, file: str, layout: DatasetLayout | None, *, is_depth: bool) -> SurveyedFile:
    """Check one picture file as far as possible without decoding it.

    Args:
        folder: The dataset.
        file: Path relative to the dataset.
        layout: Six-view folders take PNG only.
        is_depth: Whether it is a depth render.

    Raises:
        InputError: When the file cannot be opened or its header is refused.
    """
    content = folder.read(file)
    header = read_header(content, file, MIN_DEPTH_PX if is_depth else MIN_PHOTO_PX)
    if header.format is not ImageFormat.PNG and (is_depth or layout is DatasetLayout.SIX_VIEW):
        raise InvalidFileFormatError(
            f"{file} is a {header.format} file, judged by its content; it has to be a PNG.",
            suggestion="Convert it to PNG with an image program; renaming it is not enough.",
            file=file,
        )
    return SurveyedFile(header, hashlib.sha256(content).hexdigest())


def read_view(
    folder: DatasetFolder, files: ViewFiles, survey: dict[str, SurveyedFile], layout: DatasetLayout | None
) -> ViewFindings:
    """Decode a view's files, choose its mask and check all of it.

    Args:
        folder: The dataset.
        files: The view's files.
        survey: The files whose header was accepted; others already have their fault.
        layout: Six-view folders need square pictures with the whole object inside.
    """
    facts = ViewFacts(files.name, files.photo, mask_file=files.mask, depth_file=files.depth)
    if files.photo in survey:
        facts = replace(facts, photo_hw=survey[files.photo].header.image_hw)
    findings = ViewFindings(facts)
    photo = _read_photo(folder, files, survey, layout, findings)
    depth = _read_depth(folder, files, survey, layout, findings)
    mask = _read_mask(folder, files, survey, findings)
    complete = photo is not None and all(file in survey for file in files.files)
    if photo is None or not complete or findings.faults:
        return findings
    with collecting(findings.faults, files.photo):
        chosen = object_mask(photo, mask, depth, files.name)
        findings.warnings += chosen.notes
        _check_mask(chosen, files, layout, findings)
        if not findings.faults:
            findings.view = View(files.name, photo.rgb_srgb, chosen.alpha, chosen.source, depth)
    return findings


def _content(folder: DatasetFolder, file: str, survey: dict[str, SurveyedFile]) -> bytes:
    content = folder.read(file)
    if hashlib.sha256(content).hexdigest() != survey[file].sha256:
        raise ValidationFailedError(
            f"{file} changed while it was being read.",
            suggestion="Wait until it is complete, then run again.",
            file=file,
        )
    return content


def _read_photo(
    folder: DatasetFolder,
    files: ViewFiles,
    survey: dict[str, SurveyedFile],
    layout: DatasetLayout | None,
    findings: ViewFindings,
) -> Photo | None:
    if files.photo not in survey:
        return None
    header = survey[files.photo].header
    height, width = header.image_hw
    with collecting(findings.faults, files.photo):
        if layout is DatasetLayout.SIX_VIEW and height != width:
            raise ValidationFailedError(
                f"{files.photo} has {width} x {height} pixels; the six views have to be square.",
                suggestion="Render square pictures; cropping or padding would move the principal point.",
                file=files.photo,
            )
        photo = decode_photo(_content(folder, files.photo, survey), header, files.photo)
        findings.warnings += photo.notes
        return photo
    return None


def _read_depth(
    folder: DatasetFolder,
    files: ViewFiles,
    survey: dict[str, SurveyedFile],
    layout: DatasetLayout | None,
    findings: ViewFindings,
) -> DepthImage | None:
    if files.depth is None or files.depth not in survey:
        return None
    header = survey[files.depth].header
    height, width = header.image_hw
    facts = replace(
        findings.facts, depth_hw=(height, width), depth_bits=header.bits, depth_encoding=files.depth_encoding
    )
    findings.facts = facts
    with collecting(findings.faults, files.depth):
        values = decode_depth(_content(folder, files.depth, survey), header, files.depth)
        _check_frame(files, facts, layout)
        findings.warnings += _check_depth(values, header.bits, files)
        unit = _MILLIMETRES if files.depth_encoding is DepthEncoding.METRIC_Z else None
        return DepthImage(values, 2**header.bits - 1, files.depth_encoding, unit)
    return None


def _check_frame(files: ViewFiles, facts: ViewFacts, layout: DatasetLayout | None) -> None:
    """Raise when a depth render cannot have the photo's frame: not square in a six-view folder, or another aspect."""
    assert facts.depth_hw is not None
    height, width = facts.depth_hw
    if layout is DatasetLayout.SIX_VIEW:
        wanted, agrees = "square", height == width
    elif facts.photo_hw is not None:
        wanted = f"in the proportions of {files.photo} ({facts.photo_hw[1]} x {facts.photo_hw[0]})"
        agrees = abs(width * facts.photo_hw[0] / (height * facts.photo_hw[1]) - 1) <= 0.02
    else:
        return
    if not agrees:
        raise ValidationFailedError(
            f"{files.depth} has {width} x {height} pixels; it has to be {wanted}.",
            suggestion="Render photo and depth with one camera; their resolutions may differ, not their frame.",
            file=files.depth,
        )


def _check_depth(values: NDArray[np.uint16], bits: int, files: ViewFiles) -> list[str]:
    """Return warnings about a depth render's values, or raise when they cannot be depths."""
    metric = files.depth_encoding is DepthEncoding.METRIC_Z
    known = values > 0
    if metric and bits != 16:
        raise InvalidFileFormatError(
            f"{files.depth} has {bits} bits; depth in millimetres needs 16.",
            suggestion="Write millimetres as 16-bit grey PNG, or put relative depth into depth_renders.",
            file=files.depth,
        )
    if known.mean() < EMPTY_BELOW:
        raise ValidationFailedError(
            f"{files.depth} is empty: (almost) all of it is 0.",
            suggestion="Render the depth again; 0 means background, the object's pixels must be above it.",
            file=files.depth,
        )
    lowest, highest = int(values[known].min()), int(values.max())
    if not metric and known.mean() > FULL_ABOVE:
        what = "is constant" if lowest == highest else "has no background: (almost) none of it is 0"
        raise ValidationFailedError(
            f"{files.depth} {what}.",
            suggestion="Set the background to 0 (not to white) and leave a margin around the object.",
            file=files.depth,
        )
    warnings = []
    if lowest == highest:
        warnings.append(f"{files.depth} is flat: every object pixel is {lowest}. A mask is not a depth render.")
    if bits == 16 and highest <= 255 and not metric:
        warnings.append(f"{files.depth} has 16 bits but only uses values up to {highest}.")
    return warnings


def _read_mask(
    folder: DatasetFolder, files: ViewFiles, survey: dict[str, SurveyedFile], findings: ViewFindings
) -> NDArray[np.uint8] | None:
    if files.mask is None or files.mask not in survey:
        return None
    header = survey[files.mask].header
    photo_hw = findings.facts.photo_hw
    with collecting(findings.faults, files.mask):
        if photo_hw is not None and header.image_hw != photo_hw:
            raise ValidationFailedError(
                f"{files.mask} has {header.image_hw[1]} x {header.image_hw[0]} pixels, its photo "
                f"{photo_hw[1]} x {photo_hw[0]}.",
                suggestion="Save the mask at the photo's size.",
                file=files.mask,
            )
        return decode_mask(_content(folder, files.mask, survey), header, files.mask)
    return None


def _check_mask(chosen: ObjectMask, files: ViewFiles, layout: DatasetLayout | None, findings: ViewFindings) -> None:
    inside = chosen.alpha >= 0.5
    coverage, cut = float(inside.mean()), border_share(inside)
    findings.facts = replace(
        findings.facts, mask_source=chosen.source, coverage=round(coverage, 6), border_share=round(cut, 6)
    )
    source = {
        MaskSource.ALPHA: files.photo,
        MaskSource.FILE: files.mask or files.photo,
        MaskSource.DEPTH: files.depth or files.photo,
        MaskSource.BACKGROUND: files.photo,
    }[chosen.source]
    if coverage < EMPTY_BELOW or coverage > FULL_ABOVE:
        extent = "empty" if coverage < EMPTY_BELOW else "full"
        raise ValidationFailedError(
            f"The mask of {files.name} (from {source}, {chosen.source}) is {extent}: "
            f"it covers {coverage:.1%} of the picture.",
            suggestion="Mark the object's pixels, and only those, in alpha, mask file or depth render.",
            file=source,
            coverage=coverage,
        )
    if cut > CUT_ABOVE and layout is DatasetLayout.SIX_VIEW:
        findings.faults.append(
            Fault(
                ErrorCode.VALIDATION_FAILED,
                source,
                f"The object is cut by the frame of {files.name}: it covers {cut:.1%} of the outermost pixels.",
                "Render it smaller so that a margin stays free on all sides.",
            )
        )
    elif cut > 0:
        findings.warnings.append(f"{files.name}: the object touches the frame ({cut:.1%} of the outermost pixels).")
