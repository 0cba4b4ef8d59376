"""Fixed embeddings of positions and times as sines and cosines, and the network that reads the time. No attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reconflow.reconviagen.linear import Linear

_MAX_PERIOD = 10000.0


def absolute_position_embedding(coords: Tensor, channels: int) -> Tensor:
    """Embed integer grid coordinates: per axis the sines, then the cosines, zeros at the end.

    Args:
        coords: [..., 3] coordinates, of any number type.
        channels: Width of the embedding; what 6 does not divide is filled with zeros.

    Returns:
        [..., channels] float32.
    """
    count = channels // 3 // 2
    exponents = torch.arange(count, dtype=torch.float32, device=coords.device) / count
    frequencies = 1.0 / _MAX_PERIOD**exponents
    angles = coords.to(torch.float32)[..., None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return nn.functional.pad(waves, (0, channels - waves.shape[-1]))


def grid_position_embedding(resolution: int, channels: int) -> Tensor:
    """Embed every cell of a cubic grid, [resolution³, channels]; the first axis varies slowest."""
    axis = torch.arange(resolution)
    coords = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    return absolute_position_embedding(coords, channels)


def timestep_frequencies(t: Tensor, channels: int) -> Tensor:
    """Embed times as cosines, then sines, of geometrically falling frequencies.

    The frequencies are made on the CPU in float32 whatever the device: at t = 1000 their last bit is visible.

    Args:
        t: [B] times as the networks take them, 0 to 1000.
        channels: Width of the embedding, even.

    Returns:
        [B, channels] float32.
    """
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    frequencies = torch.exp(-math.log(_MAX_PERIOD) * steps / half).to(t.device)
    angles = t.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Time to a vector of the network's width: frequencies, linear, SiLU, linear."""

    def __init__(self, channels: int, frequency_channels: int = 256) -> None:
        super().__init__()
        self.frequency_channels = frequency_channels
        self.mlp = nn.Sequential(Linear(frequency_channels, channels), nn.SiLU(), Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        """Embed [B] times as [B, channels], in float32 like the weights."""
        embedded: Tensor = self.mlp(timestep_frequencies(t, self.frequency_channels))
        return embedded
