"""The networks on sparse voxels: batches, threads, precision, and what their numbers mean; with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from reconflow.errors import ModelConvergenceError, ModelError, ValidationFailedError
from reconflow.reconviagen.elementwise import elementwise
from reconflow.reconviagen.gaussian_parameters import GaussianConfiguration, GaussianParameters, offset_perturbation
from reconflow.reconviagen.latent_decoders import SLatGaussianDecoder, SLatMeshDecoder
from reconflow.reconviagen.latent_flow import SLatFlowModel
from reconflow.reconviagen.mesh_extraction import extract_mesh, feature_channels
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet
from reconflow.reconviagen.view_sphere import hammersley_views

GAUSSIANS = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 4,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 0.0009,
    "scaling_bias": 0.004,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}


def flow(**changes: object) -> SLatFlowModel:
    torch.manual_seed(0)
    arguments = {
        "resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 24, "cond_channels": 10,
        "num_blocks": 2, "num_heads": 2, "io_block_channels": [8], "qk_rms_norm": True,
    }  # fmt: skip
    return SLatFlowModel(**{**arguments, **changes}).requires_grad_(requires_grad=False)


def gaussian_decoder(**changes: object) -> SLatGaussianDecoder:
    torch.manual_seed(0)
    arguments = {"num_heads": 2, "window_size": 4, "representation_config": GAUSSIANS, **changes}
    return SLatGaussianDecoder(8, 24, 3, 2, **arguments).requires_grad_(requires_grad=False)


def mesh_decoder(**changes: object) -> SLatMeshDecoder:
    torch.manual_seed(0)
    arguments = {"num_heads": 2, "window_size": 4, "mlp_ratio": 1, "representation_config": {"use_color": True}}
    return SLatMeshDecoder(8, 256, 3, 1, **{**arguments, **changes}).requires_grad_(requires_grad=False)


def two_objects() -> SparseTensor:
    torch.manual_seed(1)
    coords = torch.cat(
        [nn.functional.pad(torch.nonzero(torch.rand(8, 8, 8) < share), (1, 0), value=item)
         for item, share in enumerate((0.05, 0.08))]
    )  # fmt: skip
    voxels = VoxelSet(coords)
    return SparseTensor(voxels, torch.randn(len(voxels), 3))


def each_alone(x: SparseTensor) -> list[SparseTensor]:
    alone = []
    for rows in x.voxels.item_slices():
        coords = x.voxels.coords[rows].clone()
        coords[:, 0] = 0
        alone.append(SparseTensor(VoxelSet(coords), x.feats[rows]))
    return alone


@pytest.mark.parametrize("views", [1, 3])
def test_objects_of_a_batch_do_not_see_each_other_in_the_flow(views: int) -> None:
    network, x, t = flow(), two_objects(), torch.tensor([700.0, 300.0])
    condition = [torch.randn(2, 5, 10) for _ in range(views)]
    together = network(x, t, network.prepare(condition))
    for item, (ours, alone) in enumerate(zip(together.item_feats(), each_alone(x), strict=True)):
        one = slice(item, item + 1)
        torch.testing.assert_close(ours, network(alone, t[one], [view[one] for view in condition]).feats)


def test_guided_velocities_are_those_of_two_passes() -> None:
    network, x, t = flow(share_mod=True), two_objects(), torch.tensor([700.0, 300.0])
    condition = torch.randn(2, 5, 10)
    positive, negative = network.predict_guided(x, t, condition)
    torch.testing.assert_close(positive.feats, network(x, t, condition).feats)
    torch.testing.assert_close(negative.feats, network(x, t, torch.zeros(2, 5, 10)).feats)
    assert (positive.feats - negative.feats).abs().max() > 1e-4


@pytest.mark.parametrize("make", [gaussian_decoder, mesh_decoder])
def test_objects_of_a_batch_do_not_see_each_other_in_the_decoders(make: type) -> None:
    network, x = make(), two_objects()
    for ours, alone in zip(network(x).item_feats(), each_alone(x), strict=True):
        torch.testing.assert_close(ours, network(alone).feats, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [flow, gaussian_decoder, mesh_decoder])
def test_a_torso_of_bfloat16_stays_near_float32(make: type) -> None:
    network, x = make(), two_objects()
    more = (torch.tensor([700.0, 300.0]), torch.randn(2, 5, 10)) if make is flow else ()
    expected = network(x, *more).feats
    network.convert_to(torch.bfloat16)
    result = network(x, *more).feats
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() < 0.1 * (1 + expected.abs().max())
    assert not torch.equal(result, expected)


def test_the_official_precision_is_a_half_torso_with_norms_in_float32() -> None:
    tensors = mesh_decoder(use_fp16=True).state_dict()
    assert tensors["upsample.0.out_layers.0.conv.weight"].dtype == torch.float16
    assert tensors["upsample.0.out_layers.1.weight"].dtype == torch.float32
    assert tensors["blocks.0.attn.to_qkv.weight"].dtype == torch.float16
    assert tensors["out_layer.weight"].dtype == torch.float32


def test_inputs_that_do_not_fit_are_refused() -> None:
    x = two_objects()
    with pytest.raises(ValidationFailedError, match="2 items at 1 times"):
        flow()(x, torch.zeros(1), torch.zeros(2, 5, 10))
    far = SparseTensor(VoxelSet(x.voxels.coords + torch.tensor([0, 1, 0, 0])), x.feats)
    with pytest.raises(ValidationFailedError, match="voxels 0 to 8"):
        gaussian_decoder()(far)
    for changes in ({"patch_size": 4}, {"pe_mode": "rope"}, {"io_block_channels": [8, 8]}, {"use_skip_connection": 0}):
        with pytest.raises(ModelError, match="does not have"):
            flow(**changes)
    with pytest.raises(ModelError, match="colour"):
        mesh_decoder(representation_config={"use_color": True, "colour": 1})
    with pytest.raises(ModelError, match=r"lacks entries.*voxel_size"):
        gaussian_decoder(representation_config={k: v for k, v in GAUSSIANS.items() if k != "voxel_size"})


def test_raw_zeros_are_the_gaussians_of_the_biases() -> None:
    configuration = GaussianConfiguration.from_official(8, GAUSSIANS)
    raw, voxels = torch.zeros(2, configuration.channels), torch.tensor([[0, 0, 0], [7, 3, 1]])
    gaussians = GaussianParameters.from_raw(raw, voxels, offset_perturbation(configuration), configuration)
    assert len(gaussians) == 8
    torch.testing.assert_close(gaussians.scales, torch.full((8, 3), (0.004**2 + 0.0009**2) ** 0.5))
    torch.testing.assert_close(gaussians.opacities, torch.full((8, 1), 0.1))
    torch.testing.assert_close(gaussians.rotations, torch.eye(4)[:1].expand(8, 4))
    torch.testing.assert_close(gaussians.colours, torch.full((8, 3), 0.5))
    # the third of four: half along x, 1/4 along y, 2/3 along z of its voxel
    expected = (torch.tensor([7, 3, 1]) + torch.tensor([0.5, 0.25, 2 / 3])) / 8 - 0.5
    torch.testing.assert_close(gaussians.positions[6], expected)
    activated = gaussians.activated()
    assert activated.opacities.shape == (8,)
    torch.testing.assert_close(torch.from_numpy(activated.positions), gaussians.positions)


def test_covariances_have_the_scales_as_axes() -> None:
    configuration = GaussianConfiguration.from_official(8, GAUSSIANS)
    torch.manual_seed(0)
    raw = torch.randn(3, configuration.channels)
    perturbation = offset_perturbation(configuration)
    gaussians = GaussianParameters.from_raw(raw, torch.zeros(3, 3, dtype=torch.int32), perturbation, configuration)
    eigenvalues = torch.linalg.eigvalsh(gaussians.covariances.double())
    torch.testing.assert_close(eigenvalues.sqrt().float(), gaussians.scales.sort(dim=1).values, rtol=1e-4, atol=1e-6)


def test_views_on_a_sphere_look_at_the_origin_with_z_up() -> None:
    views = hammersley_views(20, radius=3.0, fov_deg=90.0)
    rotation, translation = views.extrinsics[:, :3, :3], views.extrinsics[:, :3, 3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20))
    torch.testing.assert_close(translation, torch.tensor([0.0, 0, 3]).expand(20, 3), rtol=1e-5, atol=1e-5)
    assert (rotation[1:, 1, 2] < 0).all()  # up in the world is up in the image
    torch.testing.assert_close(rotation[1:, 0, 2], torch.zeros(19))
    torch.testing.assert_close(views.intrinsics[0], torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]]))
    with pytest.raises(ValidationFailedError):
        hammersley_views(0)


def test_features_without_a_surface_are_refused() -> None:
    coords = torch.tensor([[3, 3, 3]])
    feats = torch.ones(1, feature_channels(use_color=False))
    with pytest.raises(ModelConvergenceError, match="no surface"):
        extract_mesh(feats, coords, 8, use_color=False)
    with pytest.raises(ModelConvergenceError, match="not numbers"):
        extract_mesh(feats * float("nan"), coords, 8, use_color=False)
    with pytest.raises(ValidationFailedError, match="do not fit 1 cubes"):
        extract_mesh(feats, coords, 8)


def test_one_predicted_cube_inside_becomes_a_closed_surface_around_it() -> None:
    feats = torch.zeros(1, feature_channels(use_color=True))
    feats[:, :8] = -1
    mesh = extract_mesh(feats, torch.tensor([[3, 3, 3]]), 8)
    assert len(mesh.vertices) == 26  # of the 27 cubes that touch it all but itself
    assert len(mesh.faces) == 48
    outwards = mesh.vertices - (3.5 / 8 - 0.5)
    assert (mesh.vertex_normals * outwards).sum(1).min() > 0
    assert mesh.attributes is not None
    torch.testing.assert_close(mesh.attributes, torch.full((26, 6), 0.5))


def test_single_numbers_do_not_depend_on_where_threads_divide_them() -> None:
    before = torch.get_num_threads()
    try:
        for numbers in (5, 33 * 3001, 33 * 4445, 70001):
            x, results = torch.randn(numbers), []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                results.append(elementwise(torch.nn.functional.softplus, x))
            assert all(torch.equal(result, results[0]) for result in results)
            assert torch.equal(elementwise(torch.neg, x.view(-1, 1).expand(-1, 3)), -x.view(-1, 1).expand(-1, 3))
    finally:
        torch.set_num_threads(before)


_PROGRAM = """
import hashlib, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
from test_latent_networks import GAUSSIANS
from reconflow.reconviagen.latent_decoders import SLatGaussianDecoder, SLatMeshDecoder
from reconflow.reconviagen.latent_flow import SLatFlowModel
from reconflow.reconviagen.mesh_extraction import extract_mesh
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet
torch.manual_seed(0)
torch.set_grad_enabled(False)
coords = torch.nn.functional.pad(torch.nonzero(torch.rand(14, 14, 14) < 0.37), (1, 0))
x = SparseTensor(VoxelSet(coords), torch.randn(len(coords), 8))
flow = SLatFlowModel(14, model_channels=136, cond_channels=40, num_blocks=1, num_heads=4, io_block_channels=[40])
latent = x.with_feats(flow(x, torch.tensor([617.0]), [torch.randn(1, 57, 40)] * 2).feats)
gaussians = SLatGaussianDecoder(14, 72, 8, 2, 4, window_size=4, representation_config=GAUSSIANS).decode(x)[0]
few = SparseTensor(VoxelSet(coords[:300]), x.feats[:300])
cubes = SLatMeshDecoder(14, 256, 8, 2, 4, mlp_ratio=1, representation_config={"use_color": True})(few)
mesh = extract_mesh(torch.randn_like(cubes.feats), cubes.voxels.coords[:, 1:], 56)
results = [latent.feats, gaussians.positions, gaussians.scales, gaussians.opacities, gaussians.rotations, cubes.feats,
           mesh.vertices, mesh.faces, mesh.attributes, mesh.vertex_normals]
print(*(hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest()[:16] for result in results))
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    answers = [
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, threads],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
        ).stdout
        for threads in ("1", "2")
    ]  # fmt: skip
    assert answers[0] == answers[1]
    assert len(answers[0].split()) == 10
