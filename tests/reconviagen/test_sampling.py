"""Flow samplers against the goldens' analytic velocity, and by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_files import Golden, assert_matches
from torch import Tensor

from reconflow.errors import Cancelled, ModelConvergenceError, ValidationFailedError
from reconflow.reconviagen.attention import ZeroContext
from reconflow.reconviagen.sampling import FlowSampler, SamplerSettings, run_to_end


def settings_of(case: dict[str, Any]) -> SamplerSettings:
    return SamplerSettings(**{**case, "cfg_interval": tuple(case["cfg_interval"])})


def analytic_velocity(rows_of_item: Tensor | None = None) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The goldens' velocity; a condition is one tensor [B, L, C], or a list of views of it."""

    def velocity(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        s = (t / 1000).to(x.dtype)
        views = [] if isinstance(condition, ZeroContext) else condition if isinstance(condition, list) else [condition]
        m = sum((view.mean((1, 2)) for view in views), torch.zeros_like(s)) / max(len(views), 1)
        if rows_of_item is not None:
            s, m = s[rows_of_item], m[rows_of_item]
        s, m = (value.reshape(-1, *[1] * (x.ndim - 1)) for value in (s, m))
        return 0.7 * x * torch.cos(2 * s) + torch.sin(1.3 * x + s) + m * (1 + 0.5 * x)

    return velocity


@pytest.mark.golden("sampler")
def test_trajectories_match_the_golden(golden: Golden) -> None:
    sampler, inputs, outputs = FlowSampler(**golden.facts["args"]), golden.inputs, golden.outputs
    tolerance = golden.tolerance(2e-6)
    rows = inputs["coords"][:, 0].long()
    views = list(inputs["sparse_conds"])
    for index, case in enumerate(golden.facts["cases"]):
        settings = settings_of(case)
        assert_matches(torch.tensor(settings.times()), outputs[f"t_seq{index}"], 1e-7)
        runs = {
            "dense": sampler.trajectory(analytic_velocity(), inputs["noise"], inputs["cond"], settings),
            "sparse": sampler.trajectory(
                analytic_velocity(rows),
                inputs["sparse_noise"],
                views,
                settings,
                item_lengths=rows.bincount().tolist(),
            ),
        }
        for name, run in runs.items():
            steps = list(run)
            actual = {
                "x_t": torch.stack([step.x_t for step in steps]),
                "x_0": torch.stack([step.x_0 for step in steps]),
                "samples": steps[-1].x_t,
            }
            for key, value in actual.items():
                if f"{name}{index}.{key}" in outputs:
                    assert_matches(value, outputs[f"{name}{index}.{key}"], tolerance)


@pytest.mark.golden("sampler_multi_image")
def test_both_multi_image_modes_match_the_golden(golden: Golden) -> None:
    settings = settings_of(golden.facts["case"])
    views = list(golden.inputs["view_conds"].split(1))
    for mode in golden.outputs:
        walk = getattr(FlowSampler(), f"{mode}_trajectory")
        steps = walk(analytic_velocity(), golden.inputs["noise"], views, settings)
        actual = torch.stack([step.x_t for step in steps])
        assert_matches(actual, golden.outputs[mode], golden.tolerance(2e-6))


def test_a_constant_velocity_is_followed_exactly() -> None:
    noise = torch.randn(2, 3)
    steps = list(FlowSampler(0.0).trajectory(lambda x, t, c: c, noise, torch.ones(2, 3), SamplerSettings(4, 1.0)))
    torch.testing.assert_close(steps[-1].x_t, noise - 1)
    for step in steps:
        torch.testing.assert_close(step.x_0, noise - 1)


@pytest.mark.parametrize(("steps", "rescale_t", "guided"), [(30, 5.0, 24), (12, 3.0, 9)])
def test_the_demo_settings_call_the_network_as_often_as_expected(steps: int, rescale_t: float, guided: int) -> None:
    calls = []

    def model(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        calls.append((t.item(), isinstance(condition, ZeroContext)))
        return x

    settings = SamplerSettings(steps, 7.5, (0.6, 1.0), 0.5, rescale_t)
    list(FlowSampler().trajectory(model, torch.randn(1, 4), torch.zeros(1), settings))
    assert sum(zero for _, zero in calls) == guided
    assert len(calls) == steps + guided
    assert calls[0][0] == 1000


def test_times_near_the_end_of_the_interval_count_as_inside() -> None:
    settings = SamplerSettings(cfg_interval=(0.6, 1.0), cfg_strength=7.5)
    assert [settings.weight(t) for t in (0.6, 0.6000000000000001, 0.5999999999999999, 0.599, 1.0)] == [
        7.5, 7.5, 7.5, 1.0, 7.5,
    ]  # fmt: skip


def test_strength_zero_asks_the_negative_condition_only() -> None:
    asked = []
    settings = SamplerSettings(2, 0.0, (0.0, 1.0))
    list(
        FlowSampler().trajectory(
            lambda x, t, c: asked.append(c) or x, torch.randn(1, 4), "yes", settings, negative="no"
        )
    )
    assert asked == ["no", "no"]


def test_a_pair_is_asked_instead_of_two_calls() -> None:
    velocity, noise, condition = analytic_velocity(), torch.randn(2, 3, 2), torch.randn(2, 5, 6)
    settings = SamplerSettings(5, 3.0, (0.6, 1.0), 0.5)

    def pair(x: Tensor, t: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        return velocity(x, t, given), velocity(x, t, ZeroContext())

    both = [list(FlowSampler().trajectory(velocity, noise, condition, settings, pair=p)) for p in (None, pair)]
    assert torch.equal(both[0][-1].x_t, both[1][-1].x_t)


def test_full_rescaling_restores_the_deviation_of_the_conditional_prediction_per_item() -> None:
    sampler, noise = FlowSampler(), torch.randn(7, 4)
    lengths = [3, 4]
    settings = SamplerSettings(1, 5.0, (0.0, 1.0), 1.0)

    def model(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return x.sin() if isinstance(condition, ZeroContext) else x.cos()

    guided = next(sampler.trajectory(model, noise, torch.ones(1), settings, item_lengths=lengths)).x_0
    alone = sampler.predict_start(noise, 1.0, noise.cos())
    for rows in (slice(0, 3), slice(3, 7)):
        torch.testing.assert_close(guided[rows].std(correction=0), alone[rows].std(correction=0))


def test_progress_is_told_after_every_step_and_may_cancel() -> None:
    told: list[tuple[int, int, str]] = []

    def on_progress(step: int, total: int, message: str) -> None:
        told.append((step, total, message))
        if step == 2:
            raise Cancelled("Enough.", suggestion="Start again.")

    walk = FlowSampler().trajectory(lambda x, t, c: x, torch.randn(1, 2), None, SamplerSettings(4, 1.0))
    with pytest.raises(Cancelled):
        run_to_end(walk, 4, on_progress, "Structure")
    assert told == [(0, 4, "Structure"), (1, 4, "Structure"), (2, 4, "Structure")]


def test_values_that_are_no_numbers_end_the_sampling_with_the_step() -> None:
    walk = FlowSampler().trajectory(lambda x, t, c: x / (t < 900), torch.ones(1, 2), None, SamplerSettings(4, 1.0))
    with pytest.raises(ModelConvergenceError, match="Sampling: step 1 of 4"):
        run_to_end(walk, 4)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"rescale_t": 0.0}, {"cfg_interval": (1.0,)}, {"guidance_rescale": -1}]
)
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailedError, match=re.escape(next(iter(wrong)))):
        SamplerSettings(**wrong)


def test_multidiffusion_refuses_to_rescale() -> None:
    settings = SamplerSettings(2, guidance_rescale=0.5)
    walk = FlowSampler().multidiffusion_trajectory(lambda x, t, c: x, torch.ones(1, 2), [None], settings)
    with pytest.raises(ValidationFailedError, match="rescale"):
        next(walk)
