"""Validating and loading a dataset folder: the two entry points, and the order in which things are checked.

Everything cheap is checked first and nothing is decoded before names, links, sizes, headers and totals are known to be
within limits. Faults are collected to the end, and pixels are kept only while there are none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.agreement import ViewTraits, compare_views, view_traits
from reconflow.datasets.dataset import Dataset, DatasetLayout, View
from reconflow.datasets.files import DatasetFolder, dataset_digest, shown
from reconflow.datasets.layout import DatasetPlan, ViewFiles, plan_dataset
from reconflow.datasets.limits import MAX_TOTAL_BYTES, MAX_TOTAL_PIXELS, MEBIBYTE
from reconflow.datasets.report import Fault, ValidationReport, ViewFacts, merged_notes
from reconflow.datasets.view_reading import SurveyedFile, collecting, read_view, survey_file
from reconflow.errors import ErrorCode, InputError


def validate_dataset(root: Path) -> ValidationReport:
    """Check a dataset completely and report every fault at once; raises for none of them.

    Args:
        root: The dataset's folder: a six-view folder or one with a `transforms.json`.
    """
    return _examine(root, keep=False)[0]


def load_dataset(root: Path) -> Dataset:
    """Load a dataset after validating it completely.

    Args:
        root: The dataset's folder: a six-view folder or one with a `transforms.json`.

    Raises:
        InputError: With the code that all faults share, else `ValidationFailedError`; `details["faults"]` lists
            every fault with code, file, message and suggestion.
    """
    report, dataset = _examine(root, keep=True)
    report.raise_faults()
    assert dataset is not None
    return dataset


def has_evident_faults(root: Path) -> bool:
    """Whether names, links, sizes or headers alone rule a dataset out; decodes no picture.

    Args:
        root: As for `validate_dataset`, which then says what is wrong.
    """
    try:
        folder = DatasetFolder.open(root)
        plan = plan_dataset(folder)
    except InputError:
        return True
    _surveyed(folder, plan)
    return bool(plan.faults)


def identify_dataset(root: Path) -> str | None:
    """Return the digest that a loaded dataset has, from its files' content; decodes no picture.

    Args:
        root: As for `load_dataset`.

    Returns:
        The digest; None when names, links, sizes or headers alone rule the dataset out.
    """
    try:
        folder = DatasetFolder.open(root)
        plan = plan_dataset(folder)
    except InputError:
        return None
    _, survey = _surveyed(folder, plan)
    hashes = _hashes(plan, survey)
    return None if plan.faults else dataset_digest(hashes)


def _surveyed(folder: DatasetFolder, plan: DatasetPlan) -> tuple[dict[str, int], dict[str, SurveyedFile]]:
    """Return the files' sizes and headers, as far as the limits allow; faults go to the plan."""
    sizes = _measure(folder, plan)
    return sizes, {} if _is_oversized(plan, sizes) else _survey(folder, plan, sizes)


def _examine(root: Path, *, keep: bool) -> tuple[ValidationReport, Dataset | None]:
    try:
        folder = DatasetFolder.open(root)
        plan = plan_dataset(folder)
    except InputError as error:
        return ValidationReport(shown(root.name), None, faults=(Fault.from_error(error),)), None
    sizes, survey = _surveyed(folder, plan)
    views, facts, traits = [], [], list[ViewTraits]()
    cameras: list[PinholeCamera] = []
    if not _has_too_many_pixels(plan, survey):
        for files in plan.views:
            findings = read_view(folder, files, survey, plan.layout)
            facts.append(findings.facts)
            plan.faults += findings.faults
            plan.warnings += findings.warnings
            cameras += _camera(plan, files, findings.facts)
            if findings.view is not None:
                traits.append(view_traits(findings.view, files.photo, files.depth))
                views.append(findings.view)
            if not keep or plan.faults:
                views.clear()
    _compare(plan, facts, traits)
    report = _report(folder, plan, tuple(facts), _hashes(plan, survey), sum(sizes.values()))
    return report, _dataset(report, plan, views, cameras) if keep and report.ok else None


def _measure(folder: DatasetFolder, plan: DatasetPlan) -> dict[str, int]:
    """Return the sizes in bytes of the files that may be opened; the others become faults."""
    sizes: dict[str, int] = {}
    for file in dict.fromkeys(file for view in plan.views for file in view.files):
        with collecting(plan.faults, shown(file)):
            sizes[file] = folder.size(file)
    if plan.transforms_file is not None:
        sizes[plan.transforms_file] = plan.transforms_bytes
    return sizes


def _is_oversized(plan: DatasetPlan, sizes: dict[str, int]) -> bool:
    total = sum(sizes.values())
    if total <= MAX_TOTAL_BYTES:
        return False
    plan.add_fault(
        ErrorCode.FILE_TOO_LARGE,
        None,
        f"The dataset's files have {total / MEBIBYTE:.0f} MB together; the limit is {MAX_TOTAL_BYTES // MEBIBYTE} MB.",
        "Use fewer or smaller pictures.",
    )
    return True


def _survey(folder: DatasetFolder, plan: DatasetPlan, sizes: dict[str, int]) -> dict[str, SurveyedFile]:
    survey: dict[str, SurveyedFile] = {}
    for view in plan.views:
        for file in view.files:
            if file in sizes and file not in survey:
                with collecting(plan.faults, shown(file)):
                    survey[file] = survey_file(folder, file, plan.layout, is_depth=file == view.depth)
    return survey


def _has_too_many_pixels(plan: DatasetPlan, survey: dict[str, SurveyedFile]) -> bool:
    areas = [h * w for h, w in (survey[v.photo].header.stored_hw for v in plan.views if v.photo in survey)]
    if sum(areas) <= MAX_TOTAL_PIXELS:
        return False
    plan.add_fault(
        ErrorCode.FILE_TOO_LARGE,
        None,
        f"The photos have {sum(areas) / 1e6:.0f} million pixels together; the limit is {MAX_TOTAL_PIXELS / 1e6:.0f}.",
        "Use fewer pictures or scale them down.",
    )
    return True


def _camera(plan: DatasetPlan, files: ViewFiles, facts: ViewFacts) -> list[PinholeCamera]:
    if files.frame is None or facts.photo_hw is None:
        return []
    with collecting(plan.faults, plan.transforms_file):
        return [replace(files.frame.camera(facts.photo_hw), name=files.name)]
    return []


def _compare(plan: DatasetPlan, facts: list[ViewFacts], traits: list[ViewTraits]) -> None:
    faults, warnings = compare_views(traits)
    plan.faults += faults
    plan.warnings += warnings
    sizes = {f.photo_hw for f in facts if f.photo_hw is not None}
    if plan.layout is DatasetLayout.SIX_VIEW and len(sizes) > 1:
        listed = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
        plan.warnings.append(f"The photos have different sizes: {listed} pixels.")


def _hashes(plan: DatasetPlan, survey: dict[str, SurveyedFile]) -> dict[str, str]:
    hashes = {file: surveyed.sha256 for file, surveyed in survey.items()}
    if plan.transforms_file is not None and plan.transforms_sha256 is not None:
        hashes[plan.transforms_file] = plan.transforms_sha256
    return dict(sorted(hashes.items()))


def _report(
    folder: DatasetFolder,
    plan: DatasetPlan,
    facts: tuple[ViewFacts, ...],
    hashes: dict[str, str],
    total_bytes: int,
) -> ValidationReport:
    expected = {file for view in plan.views for file in view.files}
    complete = not plan.faults and expected <= hashes.keys()
    return ValidationReport(
        name=folder.name,
        layout=plan.layout,
        views=facts,
        faults=tuple(dict.fromkeys(plan.faults)),
        warnings=merged_notes(plan.warnings, [view.name for view in plan.views]),
        cameras_given=plan.cameras_given,
        world_up=plan.world_up,
        total_bytes=total_bytes,
        file_hashes=hashes,
        digest=dataset_digest(hashes) if complete else None,
    )


def _dataset(
    report: ValidationReport, plan: DatasetPlan, views: list[View], cameras: list[PinholeCamera]
) -> Dataset | None:
    if report.layout is None or report.digest is None:
        return None
    return Dataset(
        name=report.name,
        layout=report.layout,
        views=tuple(views),
        cameras=tuple(cameras) if plan.cameras_given else None,
        digest=report.digest,
        world_up=report.world_up,
        file_hashes=report.file_hashes,
        warnings=report.warnings,
        extras=plan.extras,
    )
