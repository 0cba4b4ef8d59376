"""Which pictures were exchanged, mirrored or turned, judged from how six views contradict each other.

Only the search for an explanation; what to do about it is decided in `calibration.py`. A picture that is another view,
mirrored or turned is the same as a camera that stands elsewhere, is mirrored or is turned, so no picture is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.calibration_fit import Fit, Problem, fit, starting_scales
from reconflow.cameras.fit_quality import residual_summary
from reconflow.cameras.six_axis import VIEW_NAMES

FloatArray = NDArray[np.float64]

_TURNS: Final = {"turned by 180°": 2, "turned by 90° clockwise": 1, "turned by 90° anticlockwise": 3}
_ROUGH_BLURS: Final = (0.05, 0.02, 0.005)
_FINE_BLURS: Final = (0.02, 0.005, 0.0)
_COMMON, _REFINED = 4, 8

MAX_LEFT: Final = 0.4
"""A mix-up explains contradictions when undoing it leaves no more than this share of them."""

MORE_OVERLAP: Final = 0.1
"""It also does when so many more of the points, as a share of all, then lie on other views' surfaces: a wrong field of
view can pull views that contradict each other apart until they have little in common."""

SHARED: Final = 0.9
"""An explanation has at least this part of the largest overlap found: with nothing in common nothing contradicts."""

AS_GOOD: Final = 0.004
"""Mix-ups whose violations differ by less explain the pictures equally well; then the commoner one is named."""


@dataclass(frozen=True)
class MixUp:
    """One way in which six pictures may have been mixed up, and how well the views agree with and without it.

    Attributes:
        descriptions: What happened, "left and right are exchanged". Several when no picture can tell them apart: an
            object whose pictures are all mirrored looks like its mirror image with left and right exchanged.
        violation: The larger of mask and front violation (see `residual_summary`) that is left when it is undone.
        violation_as_given: The same for the pictures as they are, fitted in the same way.
        overlap: Share of points on another view's surface when it is undone.
        overlap_as_given: The same for the pictures as they are.
    """

    descriptions: tuple[str, ...]
    violation: float
    violation_as_given: float
    overlap: float
    overlap_as_given: float = 0.0


@dataclass(frozen=True, eq=False)
class _Hypothesis:
    descriptions: tuple[str, ...]
    cam_from_world: FloatArray


@dataclass(frozen=True, eq=False)
class _Trial:
    rank: int
    hypothesis: _Hypothesis
    fit: Fit


def explaining_mixup(rough: Problem, fine: Problem, accepted: float) -> MixUp | None:
    """Return the mix-up that explains why views contradict each other, or None when no single one clearly does.

    Args:
        rough: A six-view problem with few points, on which all mix-ups are compared, at the field of view that was
            found; mixed-up pictures can lead it far astray, so it is fitted again.
        fine: The same with more points, on which the best ones are fitted.
        accepted: Largest violation with which pictures count as free of contradictions.
    """
    as_given = _refined(fine, _tried(rough, 0, _Hypothesis((), fine.cam_from_world)), 1.0)
    poses = dict(zip(fine.views.names, fine.cam_from_world, strict=True))
    trials = [_tried(rough, rank, hypothesis) for rank, hypothesis in enumerate(_hypotheses(poses))]
    best = sorted(trials[_COMMON:], key=lambda trial: trial.fit.net_cost)[:_REFINED]
    in_order = sorted([*trials[:_COMMON], *best], key=lambda trial: trial.rank)
    mixups = [_refined(fine, trial, as_given.violation) for trial in in_order]
    free = [mixup for mixup in mixups if mixup.violation <= accepted]
    if not free:
        return None
    least, most = min(mixup.violation for mixup in free), max(mixup.overlap for mixup in free)
    good = (m for m in free if m.overlap >= SHARED * most and m.violation <= least + AS_GOOD)
    chosen = next(good, None)
    if chosen is None or chosen.overlap < SHARED * as_given.overlap:
        return None
    explains = (
        chosen.violation <= MAX_LEFT * as_given.violation or chosen.overlap >= 2 * as_given.overlap + MORE_OVERLAP
    )
    return replace(chosen, overlap_as_given=as_given.overlap) if explains else None


def _tried(rough: Problem, rank: int, hypothesis: _Hypothesis) -> _Trial:
    problem = replace(rough, cam_from_world=hypothesis.cam_from_world)
    start = starting_scales(problem, 0.0, 2)
    return _Trial(rank, hypothesis, fit(problem, 0.0, start, _ROUGH_BLURS, fit_zoom=True, steps=3))


def _refined(fine: Problem, trial: _Trial, violation_as_given: float) -> MixUp:
    problem = replace(fine, cam_from_world=trial.hypothesis.cam_from_world)
    left = residual_summary(
        problem, fit(problem, trial.fit.zoom, trial.fit.scales, _FINE_BLURS, fit_zoom=True, steps=10)
    )
    violation = max(left["mask_violation"], left["front_violation"])
    return MixUp(trial.hypothesis.descriptions, violation, violation_as_given, left["overlap"])


def _hypotheses(poses: Mapping[str, FloatArray]) -> list[_Hypothesis]:
    """Return every mix-up once, with all its names, those first that are likeliest to happen."""
    as_given = _arrangement(np.array(list(poses.values())))
    found: dict[bytes, _Hypothesis] = {}
    for description, mixed in _mixed_poses(poses):
        stacked = np.array([mixed[name] for name in poses])
        key = _arrangement(stacked)
        if key == as_given:
            continue
        known = found.get(key)
        if known is None:
            found[key] = _Hypothesis((description,), stacked)
        elif description not in known.descriptions:
            found[key] = replace(known, descriptions=(*known.descriptions, description))
    return list(found.values())


def _arrangement(cam_from_world: FloatArray) -> bytes:
    """Return what (6, 4, 4) poses have in common with all others that differ by a turn or reflection of the world."""
    relative = cam_from_world @ np.linalg.inv(cam_from_world[0])
    return (np.round(relative, 6) + 0.0).tobytes()


def _mixed_poses(poses: Mapping[str, FloatArray]) -> Iterator[tuple[str, dict[str, FloatArray]]]:
    """Yield mix-ups with the poses that the six pictures then really have, common ones first."""
    given = dict(poses)
    yield "left and right are exchanged", _exchanged(given, "left", "right")
    yield "every picture is mirrored", {name: _mirrored(pose) for name, pose in given.items()}
    yield "front and back are exchanged", _exchanged(given, "front", "back")
    yield "top and bottom are exchanged", _exchanged(given, "top", "bottom")
    for name, (words, quarters) in product(VIEW_NAMES, _TURNS.items()):
        yield f"{name} is {words}", given | {name: _turned(given[name], quarters)}
    for name in VIEW_NAMES:
        yield f"{name} is mirrored", given | {name: _mirrored(given[name])}
    yield from _turned_caps(given, "")
    yield from _turned_caps(_exchanged(given, "left", "right"), "left and right are exchanged and ")
    yield from _turned_caps(_exchanged(given, "top", "bottom"), "top and bottom are exchanged and ")
    for first, second in combinations(VIEW_NAMES, 2):
        yield f"{first} and {second} are exchanged", _exchanged(given, first, second)
    for name in VIEW_NAMES:
        yield f"{name} is upside down and mirrored", given | {name: _turned(_mirrored(given[name]), 2)}


def _turned_caps(given: dict[str, FloatArray], before: str) -> Iterator[tuple[str, dict[str, FloatArray]]]:
    for name, (words, quarters) in product(("top", "bottom"), _TURNS.items()):
        yield f"{before}{name} is {words}", given | {name: _turned(given[name], quarters)}
    for (top_words, top), (bottom_words, bottom) in product(_TURNS.items(), _TURNS.items()):
        words = (
            f"top and bottom are {top_words}" if top == bottom else f"top is {top_words} and bottom is {bottom_words}"
        )
        turned = {"top": _turned(given["top"], top), "bottom": _turned(given["bottom"], bottom)}
        yield before + words, given | turned


def _exchanged(poses: Mapping[str, FloatArray], first: str, second: str) -> dict[str, FloatArray]:
    return {**poses, first: poses[second], second: poses[first]}


def _mirrored(cam_from_world: FloatArray) -> FloatArray:
    """Return the pose of a picture whose left and right are exchanged: a reflection, no longer a rigid transform."""
    return np.diag([-1.0, 1.0, 1.0, 1.0]) @ cam_from_world


def _turned(cam_from_world: FloatArray, quarters: int) -> FloatArray:
    """Return the pose of a picture that was turned clockwise by quarter turns after it was taken."""
    turn = np.eye(4)
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters % 4]
    turn[:2, :2] = [[cos, sin], [-sin, cos]]
    return turn @ cam_from_world
