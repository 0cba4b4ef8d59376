"""Pictures that were exchanged, mirrored or turned: the error names what happened; good pictures pass in silence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconflow.cameras.calibration import calibrate
from reconflow.datasets.loading import load_dataset
from reconflow.errors import CalibrationContradictedError
from tests.cameras.rendered_objects import random_object, rendered

SAMPLE = Path(__file__).parents[2] / "samples/lantern"
FOV = 0.8


@pytest.fixture(scope="module")
def good():
    return rendered(random_object(4), FOV, 3.0, 96)[0]


def exchanged(dataset, first, second):
    other = {first: second, second: first}
    views = {other.get(view.name, view.name): view for view in dataset.views}
    return replace(dataset, views=tuple(replace(views[view.name], name=view.name) for view in dataset.views))


def with_pictures(dataset, change, *names):
    def changed(view):
        depth = replace(view.depth, values=np.ascontiguousarray(change(view.depth.values)))
        return replace(view, rgb_srgb=change(view.rgb_srgb), alpha=change(view.alpha), depth=depth)

    views = (changed(view) if not names or view.name in names else view for view in dataset.views)
    return replace(dataset, views=tuple(views))


def turned_clockwise(dataset, quarters, *names):
    return with_pictures(dataset, lambda picture: np.rot90(picture, -quarters), *names)


def refused_mixups(dataset, **options):
    with pytest.raises(CalibrationContradictedError) as caught:
        calibrate(dataset, **options)
    assert caught.value.details["violation_without"] < 0.4 * caught.value.details["violation"]
    assert "transforms.json" in caught.value.suggestion
    names = caught.value.details["mixups"]
    assert all(name in caught.value.message for name in names)
    return names


def test_pictures_in_order_raise_neither_error_nor_warning(good):
    assert calibrate(good).warnings == ()


def test_exchanged_left_and_right_and_mirrored_pictures_are_named_together_for_nothing_tells_them_apart(good):
    expected = ["left and right are exchanged", "every picture is mirrored"]
    assert refused_mixups(exchanged(good, "left", "right")) == expected
    assert refused_mixups(with_pictures(good, np.fliplr)) == expected


@pytest.mark.parametrize(
    ("quarters", "words"),
    [
        (1, "top is turned by 90° clockwise"),
        pytest.param(2, "top is turned by 180°", marks=pytest.mark.slow),
        pytest.param(3, "top is turned by 90° anticlockwise", marks=pytest.mark.slow),
    ],
)
def test_a_turned_picture_is_named_with_the_direction_in_which_it_was_turned(good, quarters, words):
    assert refused_mixups(turned_clockwise(good, quarters, "top")) == [words]


def test_a_single_mirrored_picture_is_named_also_when_the_field_of_view_is_told(good):
    assert refused_mixups(with_pictures(good, np.fliplr, "left"), fov_x_rad=FOV) == ["left is mirrored"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("front", "back"), ("top", "bottom"), ("front", "left")])
def test_exchanged_pictures_are_named(good, pair):
    assert f"{pair[0]} and {pair[1]} are exchanged" in refused_mixups(exchanged(good, *pair))


@pytest.mark.slow
def test_two_mistakes_of_one_convention_are_named_together(good):
    mixed = turned_clockwise(exchanged(good, "left", "right"), 2, "top")
    assert refused_mixups(mixed) == ["left and right are exchanged and top is turned by 180°"]


def test_contradictions_that_no_mixup_explains_are_a_warning_with_numbers(good):
    front = good.views[0]
    values = front.depth.values.copy()
    values[:, : int(np.percentile(np.nonzero(values)[1], 8))] = 0
    cut = replace(front, alpha=(values > 0).astype(np.float32), depth=replace(front.depth, values=values))
    found = calibrate(replace(good, views=(cut, *good.views[1:])))
    assert len(found.warnings) == 1
    assert f"{100 * found.residuals['mask_violation']:.1f} %" in found.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda d: exchanged(d, "left", "right"), "left and right are exchanged"),
        (lambda d: with_pictures(d, np.fliplr), "every picture is mirrored"),
        (lambda d: turned_clockwise(d, 2, "top"), "top is turned by 180°"),
        (lambda d: with_pictures(d, np.fliplr, "left"), "left is mirrored"),
    ],
)
def test_mixups_of_the_nearly_symmetric_sample_are_named(mistake, words):
    dataset = replace(load_dataset(SAMPLE), cameras=None)
    assert words in refused_mixups(mistake(dataset))
