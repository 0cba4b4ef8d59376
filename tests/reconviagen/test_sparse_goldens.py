"""The sparse networks, the Gaussians and the mesh against the goldens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_files import Golden, assert_matches
from torch import nn

from reconflow.geometry.flexicubes_tables import dual_tables
from reconflow.reconviagen.attention import ZeroContext
from reconflow.reconviagen.latent_decoders import SLatGaussianDecoder, SLatMeshDecoder
from reconflow.reconviagen.latent_flow import SLatFlowModel
from reconflow.reconviagen.mesh_extraction import extract_mesh
from reconflow.reconviagen.sparse_attention import full_attention, window_attention
from reconflow.reconviagen.sparse_conv import PointwiseConv3d, SubmanifoldConv3d
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet
from reconflow.reconviagen.view_sphere import hammersley_views


def sparse_input(golden: Golden) -> SparseTensor:
    return SparseTensor(VoxelSet(golden.inputs["coords"]), golden.inputs["feats"].float())


@pytest.mark.golden("subm_conv3d", gpu=True)
@torch.no_grad()
def test_convolutions_match_the_golden(golden: Golden) -> None:
    x, facts, outputs = sparse_input(golden), golden.facts, golden.outputs
    for size in facts["kernel_sizes"]:
        kind = {1: PointwiseConv3d, 3: SubmanifoldConv3d}[size]
        module = kind(facts["in_channels"], facts["out_channels"]).to(golden.device)
        module.load_state_dict(
            {name.removeprefix(f"k{size}."): w for name, w in golden.weights.items() if name.startswith(f"k{size}.")}
        )
        assert_matches(module(x).feats, outputs[f"k{size}"], golden.tolerance(5e-7))


@pytest.mark.golden("sparse_spatial", gpu=True)
def test_pooling_and_subdivision_match_the_golden(golden: Golden) -> None:
    assert golden.facts["factor"] == 2
    x, outputs, tolerance = sparse_input(golden), golden.outputs, golden.tolerance(2e-7)
    down = x.downsample()
    for name, result in {"down": down, "up": down.upsample(x.voxels), "subdiv": x.subdivide()}.items():
        assert_matches(result.voxels.coords, outputs[f"{name}_coords"])
        assert_matches(result.feats, outputs[f"{name}_feats"], tolerance)


@pytest.mark.golden("window_attention", gpu=True)
def test_sparse_attention_matches_the_golden(golden: Golden) -> None:
    voxels, qkv = VoxelSet(golden.inputs["coords"]), golden.inputs["qkv"].unbind(1)
    size, outputs, tolerance = golden.facts["window_size"], golden.outputs, golden.tolerance(5e-7)
    assert_matches(full_attention(voxels, *qkv).view_as(outputs["full"]), outputs["full"], tolerance)
    for shift in golden.facts["shifts"]:
        expected = outputs[f"shift{shift}"]
        assert_matches(window_attention(voxels, *qkv, size, shift).view_as(expected), expected, tolerance)
        labels = outputs[f"window_id_shift{shift}"]
        together = labels[:, None] == labels
        ours = voxels.window_ids(size, shift)
        assert torch.equal(ours[:, None] == ours, together)


@pytest.mark.golden("slat_flow", gpu=True)
@torch.no_grad()
def test_the_latent_flow_matches_the_golden(golden: Golden) -> None:
    network = golden.load(SLatFlowModel(**golden.facts["args"]))
    x, t, conds, outputs = sparse_input(golden), golden.inputs["t"], golden.inputs["conds"], golden.outputs
    tolerance = golden.tolerance(5e-7)
    zeros = [torch.zeros_like(cond) for cond in conds]
    cases = {"single_cond": conds[0], "multi_cond": list(conds), "zero_cond": zeros}
    for name, condition in cases.items():
        assert_matches(network(x, t, condition).feats, outputs[name], tolerance)
        assert_matches(network(x, t, network.prepare(condition)).feats, outputs[name], tolerance)
    assert_matches(network(x, t, ZeroContext()).feats, outputs["zero_cond"], tolerance)
    positive, negative = network.predict_guided(x, t, network.prepare(list(conds)))
    assert_matches(positive.feats, outputs["multi_cond"], tolerance)
    assert_matches(negative.feats, outputs["zero_cond"], tolerance)


@pytest.mark.golden("slat_gs_decoder", gpu=True)
@torch.no_grad()
def test_the_gaussian_decoder_matches_the_golden(golden: Golden) -> None:
    network = golden.load(SLatGaussianDecoder(**golden.facts["args"]))
    fresh = SLatGaussianDecoder(**golden.facts["args"]).to(golden.device)
    torch.testing.assert_close(fresh.offset_perturbation, network.offset_perturbation, rtol=1e-6, atol=1e-6)
    x, outputs, tolerance = sparse_input(golden), golden.outputs, golden.tolerance(6e-7)
    assert_matches(network(x).feats, outputs["raw"], tolerance)
    decoded = network.decode(x)
    for item, gaussians in enumerate(decoded):
        covariances = gaussians.covariances[:, *torch.triu_indices(3, 3)]
        actual = {
            "_xyz": gaussians.stored_xyz,
            "_features_dc": gaussians.stored_colour,
            "_scaling": gaussians.stored_scaling,
            "_rotation": gaussians.stored_rotation,
            "_opacity": gaussians.stored_opacity,
            "xyz": gaussians.positions,
            "scaling": gaussians.scales,
            "rotation": gaussians.rotations,
            "opacity": gaussians.opacities,
            "color": gaussians.colours.clamp(0, 1),
            "covariance6": covariances,
        }
        for name, value in actual.items():
            assert_matches(value, outputs[f"{item}.{name}"], tolerance)
    assert f"{len(decoded)}._xyz" not in outputs


@pytest.mark.golden("slat_mesh_decoder", gpu=True)
@torch.no_grad()
def test_the_mesh_decoder_matches_the_golden(golden: Golden) -> None:
    network = golden.load(SLatMeshDecoder(**golden.facts["args"]))
    x, outputs = sparse_input(golden), golden.outputs
    tolerance = golden.tolerance(1e-6)
    assert_matches(network.run_trunk(x).feats, outputs["torso"], tolerance)
    cubes = network(x)
    assert_matches(cubes.voxels.coords, outputs["coords"])
    assert_matches(cubes.feats, outputs["feats"], tolerance)
    for item in range(cubes.voxels.batch_size):
        rows = outputs["coords"][:, 0] == item
        mesh = extract_mesh(
            outputs["feats"][rows],
            outputs["coords"][rows, 1:],
            4 * golden.facts["args"]["resolution"],
            use_color=network.use_color,
        )
        assert_matches(mesh.vertices, outputs[f"{item}.vertices"], tolerance)
        assert_matches(mesh.faces, outputs[f"{item}.faces"])
        if f"{item}.vertex_attrs" in outputs:
            assert_matches(mesh.attributes, outputs[f"{item}.vertex_attrs"], tolerance)


@pytest.mark.golden("mesh_extract", gpu=True)
def test_extracted_meshes_match_the_golden(golden: Golden) -> None:
    arguments, outputs, tolerance = golden.facts["args"], golden.outputs, golden.tolerance(1e-6)
    mesh = extract_mesh(
        golden.inputs["feats"].float(),
        golden.inputs["coords"][:, -3:],
        arguments["res"],
        use_color=arguments["use_color"],
    )
    assert_matches(mesh.faces, outputs["faces"])
    assert_matches(mesh.vertices, outputs["vertices"], tolerance)
    if "vertex_attrs" in outputs:
        assert_matches(mesh.attributes, outputs["vertex_attrs"], tolerance)
    assert_matches(mesh.face_normals, outputs["face_normal"])
    assert_matches(mesh.vertex_normals, outputs["vertex_normal"])


@pytest.mark.golden("flexicubes_tables")
def test_derived_tables_match_the_golden(golden: Golden) -> None:
    tables, outputs = dual_tables(), golden.outputs
    assert torch.equal(torch.as_tensor(tables.counts), outputs["num_vd_table"])
    owners = torch.as_tensor(tables.owners)
    for case, duals in enumerate(outputs["dmc_table"]):
        for number, edges in enumerate(duals.tolist()):
            assert torch.nonzero(owners[case] == number).flatten().tolist() == [edge for edge in edges if edge >= 0]
    for case, row in enumerate(outputs["check_table"].tolist()):
        ours = [1, *tables.across[case].tolist(), 255 - case] if tables.problematic[case] else [0] * 5
        assert ours == row


@pytest.mark.golden("cameras")
def test_views_on_a_sphere_match_the_golden(golden: Golden) -> None:
    facts, outputs = golden.facts, golden.outputs
    views = hammersley_views(facts["num_views"], facts["radius"], facts["fov_deg"])
    for name in ("yaw", "pitch", "extrinsics", "intrinsics"):
        assert_matches(getattr(views, name)[1:], outputs[name][1:], golden.tolerance(1e-6))


def shapes_and_dtypes(module: nn.Module) -> dict[str, list[object]]:
    names = {torch.float32: "F32", torch.float16: "F16"}
    return {name: [names[t.dtype], list(t.shape)] for name, t in module.state_dict().items()}


@pytest.mark.parametrize("network", [SLatFlowModel, SLatGaussianDecoder, SLatMeshDecoder])
def test_official_arguments_give_the_official_tensors(network: type[nn.Module], official: dict[str, dict]) -> None:
    manifest = official[network.__name__]
    with torch.device("meta"):
        module = network(**manifest["args"])
    assert shapes_and_dtypes(module) == manifest["tensors"]


@pytest.fixture(scope="module")
def official(manifests: Path) -> dict[str, dict]:
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(manifests.glob("*.json"))]
    return {manifest["class_name"]: manifest for manifest in read}
