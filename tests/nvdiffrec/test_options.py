import pytest
from pydantic import ValidationError

from reconflow.nvdiffrec.options import NvdiffrecOptions, Preset

OVERRIDES = {"steps": 7, "resolution": 200, "texture_size": 300, "target_faces": 1234}


@pytest.mark.parametrize("preset", list(Preset))
def test_what_is_given_replaces_the_presets_number_and_nothing_else(preset: Preset) -> None:
    plain = NvdiffrecOptions(preset=preset).settings().model_dump()
    for name, value in OVERRIDES.items():
        changed = NvdiffrecOptions.model_validate({"preset": preset, name: value}).settings().model_dump()
        assert changed == plain | {name: value}


def test_presets_cost_more_and_more() -> None:
    draft, standard, high = (NvdiffrecOptions(preset=preset).settings() for preset in Preset)
    for name in ("grid_resolution", "steps", "resolution", "texture_size", "target_faces"):
        assert getattr(draft, name) <= getattr(standard, name) <= getattr(high, name)
    assert draft.steps < standard.steps < high.steps
    assert draft.target_faces < standard.target_faces < high.target_faces


def test_standard_is_the_default_and_the_seed_is_kept() -> None:
    assert NvdiffrecOptions().settings() == NvdiffrecOptions(preset=Preset.STANDARD).settings()
    assert NvdiffrecOptions(seed=41).settings().seed == 41


@pytest.mark.parametrize(
    "spoilt",
    [{"steps": -1}, {"resolution": 8}, {"texture_size": 100_000}, {"target_faces": 3}, {"seed": -1}, {"step": 5}],
)
def test_numbers_out_of_range_and_unknown_names_are_refused(spoilt: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        NvdiffrecOptions.model_validate(spoilt)
