"""The order in which a surface is fitted: shape alone, then shape and colours in turn, from coarse to fine pictures.

A photo can only pull on the surface once the surface is painted, and the paint is only right once the surface is. So
both are fitted in turn; small pictures first, because a colour edge pulls no farther than it is blurred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reconflow.cameras.camera import PinholeCamera
from reconflow.checkpoints import Checkpoint
from reconflow.datasets.dataset import View
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.mesh import TriangleMesh
from reconflow.nvdiffrec.geometry_fit import AGREEING, FitWeights, fit_geometry, view_targets
from reconflow.nvdiffrec.photos import prepare_photo
from reconflow.nvdiffrec.texture import Corrections, fit_texture
from reconflow.progress import OnProgress, ignore_progress, part_of

_SHAPE_SHARE = 0.15
"""Part of the steps that fit silhouettes and depth alone."""
_SHAPE_SIDE = 512
"""Longest side of the pictures in that part, pixels."""
_LEVELS = ((0.25, 0.4), (0.5, 0.7), (1.0, 1.0))
"""Per level of the part with colours: share of the longest side, share of all steps done at its end."""
_STEPS_PER_ROUND = 100
"""After so many steps the surface is painted anew."""
_TEXTURE_SIDE = 1024
"""Side of the provisional texture, texels."""


@dataclass(frozen=True)
class SurfaceSchedule:
    """How long a surface is fitted, at which resolution, and what decides.

    Attributes:
        steps: Iterations in all.
        longest_side: Longest side of the largest pictures fitted to, pixels.
        weights: How strongly each term pulls once colours take part.
        paint: How the provisional colours are corrected.
    """

    steps: int
    longest_side: int
    weights: FitWeights = AGREEING
    paint: Corrections = Corrections.GUARDED


@dataclass(frozen=True)
class FitLevel:
    """A stretch of the fit whose loss values can be compared: equal pictures, equal terms.

    Attributes:
        from_step: Its first step.
        longest_side: Of its pictures, pixels.
        with_colour: Whether the photos' colours take part.
    """

    from_step: int
    longest_side: int
    with_colour: bool


@dataclass(frozen=True)
class FitRound:
    """Steps between two paintings of the surface; every round starts a fresh optimiser.

    Attributes:
        steps: Iterations.
        longest_side: Of its pictures, pixels.
        with_colour: Whether the photos' colours take part.
    """

    steps: int
    longest_side: int
    with_colour: bool


@dataclass
class FitState:
    """Everything that a fit has come to between two rounds.

    Attributes:
        mesh: The surface.
        losses: Per term a list of [step, value].
        levels: Where the levels begin.
        done: Steps done.
    """

    mesh: TriangleMesh
    losses: dict[str, list[list[float]]] = field(default_factory=dict)
    levels: list[FitLevel] = field(default_factory=list)
    done: int = 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep the state."""
        checkpoint.save(
            {"vertices": self.mesh.vertices, "faces": self.mesh.faces},
            {"losses": self.losses, "levels": [asdict(level) for level in self.levels], "done": self.done},
        )

    @staticmethod
    def load(checkpoint: Checkpoint) -> FitState | None:
        """Return the state that was kept last, exactly; None when there is none."""
        kept = checkpoint.load()
        if kept is None:
            return None
        arrays, facts = kept
        mesh = TriangleMesh(arrays["vertices"], arrays["faces"])
        return FitState(mesh, facts["losses"], [FitLevel(**level) for level in facts["levels"]], facts["done"])


def fit_surface(
    start: TriangleMesh | FitState,
    observations: Sequence[SurfaceObservation],
    views: Sequence[tuple[View, PinholeCamera]],
    schedule: SurfaceSchedule,
    on_progress: OnProgress = ignore_progress,
    checkpoint: Checkpoint | None = None,
) -> tuple[TriangleMesh, dict[str, list[list[float]]], list[dict[str, Any]]]:
    """Fit a surface to all views.

    Args:
        start: Where to start: a surface, or what an earlier attempt had come to.
        observations: What each view knows of the surface.
        views: The views with their cameras, at the photos' resolution.
        schedule: How long and how fine.
        on_progress: Receiver of progress.
        checkpoint: Given the state after every round.

    Returns:
        mesh: The fitted surface, connected like `start`.
        losses: Per term a list of [step, value]. Values of different levels are of different pictures.
        levels: Where the levels begin: the fields of `FitLevel`, by ascending step.
    """
    state = start if isinstance(start, FitState) else FitState(start)
    planned = 0
    for fit_round in _plan(schedule):
        planned += fit_round.steps
        if planned <= state.done:
            continue
        part = part_of(on_progress, state.done / schedule.steps, planned / schedule.steps)
        _run_round(state, fit_round, observations, views, schedule, part)
        if checkpoint is not None:
            state.save(checkpoint)
    return state.mesh, state.losses, [asdict(level) for level in state.levels]


def _run_round(
    state: FitState,
    fit_round: FitRound,
    observations: Sequence[SurfaceObservation],
    views: Sequence[tuple[View, PinholeCamera]],
    schedule: SurfaceSchedule,
    on_progress: OnProgress,
) -> None:
    """Paint the surface when colours take part, then fit it; the state moves on by the round."""
    longest_side, with_colour = fit_round.longest_side, fit_round.with_colour
    if not state.levels or (state.levels[-1].longest_side, state.levels[-1].with_colour) != (longest_side, with_colour):
        state.levels.append(FitLevel(state.done, longest_side, with_colour))
    photos = [prepare_photo(view, camera, longest_side) for view, camera in views]
    weights = schedule.weights if with_colour else AGREEING
    painted = None
    if with_colour:
        size = min(_TEXTURE_SIDE, 2 * longest_side)
        on_progress(0, fit_round.steps, "painting the surface")
        atlas = unwrap(state.mesh, size)
        on_progress(0, fit_round.steps, "painting the surface")
        painted, _ = fit_texture(state.mesh, atlas, photos, size, 1, corrections=schedule.paint)
        on_progress(0, fit_round.steps, "fitting the surface")
    fit = fit_geometry(
        state.mesh,
        view_targets(observations, photos, weights, with_colour=with_colour),
        photos,
        fit_round.steps,
        painted=painted,
        weights=weights,
        on_progress=on_progress,
    )
    for name, curve in fit.losses.items():
        state.losses.setdefault(name, []).extend([step + state.done, value] for step, value in curve)
    state.mesh, state.done = fit.mesh, state.done + fit_round.steps


def _plan(schedule: SurfaceSchedule) -> list[FitRound]:
    """Return the rounds of a whole fit; none of them is empty."""
    shape_steps = round(_SHAPE_SHARE * schedule.steps)
    plan = [FitRound(shape_steps, min(_SHAPE_SIDE, schedule.longest_side), with_colour=False)]
    for side_share, share_until in _LEVELS:
        longest_side = max(64, round(side_share * schedule.longest_side))
        until = round(share_until * schedule.steps)
        rounds = _rounds(until - sum(fit_round.steps for fit_round in plan))
        plan += [FitRound(steps, longest_side, with_colour=True) for steps in rounds]
    return [fit_round for fit_round in plan if fit_round.steps > 0]


def _rounds(steps: int) -> list[int]:
    """Split a number of steps into nearly equal rounds."""
    count = max(1, round(steps / _STEPS_PER_ROUND))
    return [steps * (k + 1) // count - steps * k // count for k in range(count)]
