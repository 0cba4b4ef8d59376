"""Samplers of the flow networks: Euler steps from noise to a latent, guided by a condition. They know no network.

A model is any function (x, t, condition) → velocity; `x` is a plain tensor: dense with the batch first, or the features
[T, C] of sparse voxels, whose rows per batch item `item_lengths` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reconflow.errors import ModelConvergenceError, ValidationFailedError
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.attention import ZeroContext

Velocity = Callable[[Tensor, Tensor, Any], Tensor]
"""Takes x, times [B] from 0 to 1000, and a condition; gives the velocity, shaped like x."""
VelocityPair = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]
"""The same, giving the velocities with the condition and with the negative one, computed together."""

_ROUNDING = 1e-12
"""Times this close to an end of the interval count as inside: how a third is rounded must not matter."""


@dataclass(frozen=True)
class SamplerSettings:
    """How a latent is sampled; the names are those of the official `pipeline.json`.

    Attributes:
        steps: Euler steps.
        cfg_strength: Weight w of the velocity with the condition; 1 − w weighs that of the negative one.
        cfg_interval: Times, both ends included, between which the weight holds; elsewhere it is 1.
        guidance_rescale: 0 to 1, how far the guided prediction's deviation is brought back to the conditional one's.
        rescale_t: Above 1 more of the steps are spent near the noise.
    """

    steps: int = 25
    cfg_strength: float = 5.0
    cfg_interval: tuple[float, float] = (0.5, 1.0)
    guidance_rescale: float = 0.0
    rescale_t: float = 3.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.steps < 1 or self.rescale_t <= 0 or len(self.cfg_interval) != 2 or self.guidance_rescale < 0:
            raise ValidationFailedError(
                f"These sampler settings have no meaning: {self}.",
                suggestion="Use at least one step, a positive rescale_t, an interval of two times, and a "
                "guidance_rescale from 0 to 1.",
            )

    def times(self) -> list[float]:
        """The times from 1 to 0 between which the steps go, `steps` + 1 of them."""
        u = np.linspace(1, 0, self.steps + 1)
        return [float(t) for t in self.rescale_t * u / (1 + (self.rescale_t - 1) * u)]

    def weight(self, t: float) -> float:
        """The weight of the velocity with the condition at a time."""
        return self.cfg_strength if self.guides(t) else 1.0

    def guides(self, t: float) -> bool:
        """Whether a time lies in the interval."""
        start, end = self.cfg_interval
        return start - _ROUNDING <= t <= end + _ROUNDING


@dataclass(frozen=True)
class Step:
    """What one step gave.

    Attributes:
        index: From 0.
        x_t: The sample after the step.
        x_0: Where the velocity at its start points: the prediction of the latent.
    """

    index: int
    x_t: Tensor
    x_0: Tensor


class FlowSampler:
    """Euler steps along predicted velocities.

    Args:
        sigma_min: The noise that is left at time 0.
    """

    def __init__(self, sigma_min: float = 1e-5) -> None:
        self.sigma_min = sigma_min

    def trajectory(
        self,
        model: Velocity,
        noise: Tensor,
        condition: Any,
        settings: SamplerSettings,
        *,
        negative: Any = None,
        pair: VelocityPair | None = None,
        item_lengths: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """Go from noise to a latent step by step.

        Args:
            model: The velocity at a sample, a time and a condition.
            noise: Dense [B, ...], or sparse [T, C] with `item_lengths`.
            condition: What the model takes as such.
            settings: How to sample.
            negative: What the model takes as the negative condition; None for zeros (`ZeroContext`).
            pair: Computes both velocities of a guided step at once, instead of two calls of `model`; zeros are its
                negative condition, so that it goes with `negative` None only.
            item_lengths: Rows of each batch item of a sparse sample.

        Yields:
            Every step.
        """
        return self.stochastic_trajectory(
            model, noise, [condition], settings, negative=negative, pair=pair, item_lengths=item_lengths
        )

    @torch.no_grad()
    def stochastic_trajectory(
        self,
        model: Velocity,
        noise: Tensor,
        views: Sequence[Any],
        settings: SamplerSettings,
        *,
        negative: Any = None,
        pair: VelocityPair | None = None,
        item_lengths: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """Go from noise to a latent, step i guided by view i mod V alone; other arguments as for `trajectory`."""
        assert pair is None or negative is None
        against = ZeroContext() if negative is None else negative
        x = noise
        for index, t, t_next in _steps(settings):
            times, view, weight = _times_of(x, t, item_lengths), views[index % len(views)], settings.weight(t)
            if weight in {0, 1}:
                velocity = model(x, times, view if weight else against)
            else:
                if pair is not None:
                    positive, other = pair(x, times, view)
                else:
                    positive, other = model(x, times, view), model(x, times, against)
                velocity = weight * positive + (1 - weight) * other
                if settings.guidance_rescale:
                    velocity = self._rescaled(x, t, positive, velocity, settings.guidance_rescale, item_lengths)
            step = self._advance(index, x, t, t_next, velocity)
            x = step.x_t
            yield step

    @torch.no_grad()
    def multidiffusion_trajectory(
        self,
        model: Velocity,
        noise: Tensor,
        views: Sequence[Any],
        settings: SamplerSettings,
        *,
        negative: Any = None,
        item_lengths: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """Go from noise to a latent along the mean velocity of all views; other arguments as for `trajectory`.

        Inside the interval the velocity is (1 + w)·mean − w·negative, outside it the mean; nothing is rescaled.

        Raises:
            ValidationFailedError: The settings ask for a rescaled guidance.
        """
        if settings.guidance_rescale:
            raise ValidationFailedError(
                "Multidiffusion does not rescale guidance.", suggestion="Set guidance_rescale to 0."
            )
        against = ZeroContext() if negative is None else negative
        x = noise
        for index, t, t_next in _steps(settings):
            times = _times_of(x, t, item_lengths)
            velocity = torch.stack([model(x, times, view) for view in views]).mean(0)
            if settings.guides(t):
                w = settings.cfg_strength
                velocity = (1 + w) * velocity - w * model(x, times, against)
            step = self._advance(index, x, t, t_next, velocity)
            x = step.x_t
            yield step

    def predict_start(self, x: Tensor, t: float, velocity: Tensor) -> Tensor:
        """The latent to which a velocity at time t points."""
        return (1 - self.sigma_min) * x - self._noise_level(t) * velocity

    def velocity_to(self, x: Tensor, t: float, start: Tensor) -> Tensor:
        """The velocity at time t that points to a latent."""
        return ((1 - self.sigma_min) * x - start) / self._noise_level(t)

    def _noise_level(self, t: float) -> float:
        return self.sigma_min + (1 - self.sigma_min) * t

    def _advance(self, index: int, x: Tensor, t: float, t_next: float, velocity: Tensor) -> Step:
        return Step(index, x - (t - t_next) * velocity, self.predict_start(x, t, velocity))

    def _rescaled(
        self, x: Tensor, t: float, positive: Tensor, velocity: Tensor, share: float, lengths: Sequence[int] | None
    ) -> Tensor:
        """The guided velocity, its prediction's deviation brought back towards that of the conditional one."""
        start = self.predict_start(x, t, velocity)
        ratio = deviation_ratio(self.predict_start(x, t, positive), start, lengths)
        return self.velocity_to(x, t, share * (start * ratio) + (1 - share) * start)


def run_to_end(
    trajectory: Iterator[Step], steps: int, on_progress: OnProgress = ignore_progress, message: str = "Sampling"
) -> Tensor:
    """Walk a trajectory to its end.

    Args:
        trajectory: Of a `FlowSampler`.
        steps: How many it has.
        on_progress: Called before the first and after every step; may raise `Cancelled`.
        message: What it is told.

    Returns:
        The latent, shaped like the noise.

    Raises:
        ModelConvergenceError: A step gave values that are not numbers.
    """
    on_progress(0, steps, message)
    for step in trajectory:
        latent = step.x_t
        if not bool(torch.isfinite(latent).all()):
            raise ModelConvergenceError(
                f"{message}: step {step.index + 1} of {steps} gave values that are not numbers.",
                suggestion="Run the model in float32 or with a lower cfg_strength.",
                step=step.index + 1,
            )
        on_progress(step.index + 1, steps, message)
    return latent


def deviation_ratio(numerator: Tensor, denominator: Tensor, item_lengths: Sequence[int] | None) -> Tensor:
    """Standard deviation of one sample over that of another, per batch item, to be multiplied with the samples.

    Args:
        numerator: Dense [B, ...], or sparse [T, C].
        denominator: Like it.
        item_lengths: Rows of each batch item of sparse samples.

    Returns:
        [B, 1, ...], or [T, 1] for sparse samples.
    """
    if item_lengths is None:
        dims = tuple(range(1, numerator.ndim))
        return numerator.std(dims, keepdim=True) / denominator.std(dims, keepdim=True)
    ratios = [
        above.std(correction=0) / below.std(correction=0)
        for above, below in zip(_items(numerator, item_lengths), _items(denominator, item_lengths), strict=True)
    ]
    lengths = torch.tensor(list(item_lengths), device=numerator.device)
    return torch.repeat_interleave(torch.stack(ratios), lengths)[:, None]


def _items(x: Tensor, item_lengths: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.split(x, list(item_lengths))


def _steps(settings: SamplerSettings) -> Iterator[tuple[int, float, float]]:
    times = settings.times()
    for index in range(settings.steps):
        yield index, times[index], times[index + 1]


def _times_of(x: Tensor, t: float, item_lengths: Sequence[int] | None) -> Tensor:
    """The time as the networks take it, one for each batch item."""
    items = len(x) if item_lengths is None else len(item_lengths)
    return torch.full((items,), 1000 * t, dtype=torch.float32, device=x.device)
