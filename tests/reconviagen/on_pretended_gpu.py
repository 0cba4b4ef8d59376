"""Generations on a GPU that is not there; `test_device_placement` runs this file, with `--pretend-gpu`.

What passes here makes and leaves every tensor on the device where it is needed, and in a precision that is.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from test_inference import FEW
from torch import Tensor

from reconflow.datasets.loading import load_dataset
from reconflow.nvdiffrec.options import Preset
from reconflow.progress import ignore_progress
from reconflow.reconviagen.checkpoints import build_network, fill_network
from reconflow.reconviagen.inference import Generation, generate
from reconflow.reconviagen.model import ReconvGenModel
from reconflow.reconviagen.networks import GivenNetworks
from reconflow.reconviagen.options import RandomWeights, ReconviagenOptions
from reconflow.reconviagen.random_networks import IMAGE_SIZE, TINY, tiny_networks
from tests.flows.flow_objects import write_dataset
from tests.support.pretended_gpu import DEVICE, PretendedTensor


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def on_cpu(images: Tensor) -> Generation:
    return generate(images, tiny_networks(0), FEW)


def test_a_tensor_that_was_left_behind_is_found() -> None:
    there = torch.arange(3.0, device=DEVICE)
    with pytest.raises(RuntimeError, match="some on the CPU"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError):
        there.numpy()
    with pytest.raises(RuntimeError, match="some on the CPU"):
        torch.arange(3.0)[there.long()]
    with pytest.raises(RuntimeError, match="some on the CPU"):
        there[torch.tensor([0, 1])] = torch.ones(2)
    assert there[torch.tensor([2, 1])].tolist() == [2.0, 1.0]  # as on CUDA, like the next
    assert (there + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0]


def test_a_generation_there_is_the_one_on_the_cpu(images: Tensor, on_cpu: Generation) -> None:
    found = generate(images, tiny_networks(0, DEVICE), FEW)
    assert isinstance(found.mesh.vertices, PretendedTensor)
    assert found.voxels == on_cpu.voxels
    assert torch.equal(found.mesh.faces.cpu(), on_cpu.mesh.faces)
    torch.testing.assert_close(found.mesh.vertices.cpu(), on_cpu.mesh.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.gaussians.positions.cpu(), on_cpu.gaussians.positions, atol=1e-5, rtol=0)


def test_networks_that_are_loaded_there_have_torsos_of_half_precision_and_come_near(
    images: Tensor, on_cpu: Generation
) -> None:
    networks, there = tiny_networks(0), tiny_networks(0, DEVICE)
    modules = dict(there._modules)
    for role, (name, arguments) in TINY.items():
        with networks.open(role) as network:
            state = network.state_dict()
        modules[role] = build_network({"name": name, "args": {**arguments, "use_fp16": True}}, device=DEVICE)
        fill_network(
            modules[role], {key: value.shape for key, value in state.items()}, state.__getitem__, device=DEVICE
        )
        assert any(value.dtype == torch.float16 for value in modules[role].state_dict().values()), role
    found = generate(images, GivenNetworks(modules, there.facts, DEVICE), FEW)
    assert found.voxels == on_cpu.voxels
    torch.testing.assert_close(found.gaussians.positions.cpu(), on_cpu.gaussians.positions, atol=5e-3, rtol=0)


def test_what_was_generated_there_comes_back_as_arrays(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path / "boxes"))
    options = ReconviagenOptions(
        random_weights=RandomWeights.TINY, preset=Preset.DRAFT, structure_steps=2, latent_steps=2
    )
    model = ReconvGenModel()
    with patch.object(torch.cuda, "is_available", return_value=True):
        model.load(DEVICE)
    generated, facts, _ = model._generate(dataset, options, ignore_progress)
    assert len(generated.mesh.faces) == facts["raw_faces"]
    assert all(isinstance(values, np.ndarray) for values in vars(generated.gaussians).values())
