"""Embeddings of positions and times."""

from __future__ import annotations

import math
import re

import pytest
import torch
from golden_files import Golden, assert_matches

from reconflow.reconviagen.embeddings import (
    TimestepEmbedder,
    absolute_position_embedding,
    grid_position_embedding,
    timestep_frequencies,
)


@pytest.mark.golden("embedders")
def test_embeddings_match_the_golden(golden: Golden) -> None:
    inputs, outputs, tolerance = golden.inputs, golden.outputs, golden.tolerance(5e-7)
    channels = golden.facts["ape_channels"]
    assert_matches(absolute_position_embedding(inputs["coords"], channels), outputs["ape"], tolerance)
    frequencies = timestep_frequencies(inputs["t"], golden.facts["freq_dim"])
    assert_matches(frequencies, outputs["timestep_freq"], tolerance)
    for name, table in outputs.items():
        if dense := re.fullmatch(r"ape_dense(\d+)", name):
            assert_matches(grid_position_embedding(int(dense[1]), channels), table, tolerance)


def test_the_first_frequency_of_every_axis_is_one() -> None:
    embedded = absolute_position_embedding(torch.tensor([[1, 2, 3]]), 20)[0]
    assert embedded[0].item() == pytest.approx(math.sin(1))
    assert embedded[3].item() == pytest.approx(math.cos(1))
    assert embedded[6].item() == pytest.approx(math.sin(2))
    assert embedded[18:].tolist() == [0, 0]


def test_the_last_axis_of_a_grid_varies_fastest() -> None:
    table = grid_position_embedding(3, 12)
    assert torch.equal(table[1], absolute_position_embedding(torch.tensor([0, 0, 1]), 12))
    assert torch.equal(table[9], absolute_position_embedding(torch.tensor([1, 0, 0]), 12))


def test_time_zero_has_cosines_one_and_sines_zero() -> None:
    assert timestep_frequencies(torch.zeros(1), 8).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert TimestepEmbedder(16, 8)(torch.tensor([0.0, 1000.0])).shape == (2, 16)
