"""Loading weights: strictly or not at all, stage by stage, whatever is wrong with a file."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from reconflow.errors import ReconflowError, WeightsInvalidError, WeightsMissingError
from reconflow.reconviagen import checkpoints
from reconflow.reconviagen.inference import GenerationSettings, generate
from reconflow.reconviagen.networks import PublishedNetworks, Role
from reconflow.reconviagen.random_networks import IMAGE_SIZE, tiny_networks
from reconflow.reconviagen.sampling import SamplerSettings
from reconflow.reconviagen.weights import DINOV2, WeightsFolder, network_files
from reconflow.reconviagen.weights_record import folder_state


def few() -> GenerationSettings:
    sampler = SamplerSettings(2, 3.0, (0.6, 1.0), 0.5, 3.0)
    return GenerationSettings(sampler, sampler, 1)


def test_networks_loaded_stage_by_stage_generate_what_those_in_memory_generate(published: Path) -> None:
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    provider = PublishedNetworks(WeightsFolder(published))
    provider.facts = tiny_networks(0).facts  # the pictures' size is the published one otherwise
    loaded, given = (generate(images, source, few()) for source in (provider, tiny_networks(0)))
    assert torch.equal(loaded.mesh.faces, given.mesh.faces)
    # where a tensor lies in its file decides in which order some products are summed
    torch.testing.assert_close(loaded.mesh.vertices, given.mesh.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(loaded.gaussians.stored_xyz, given.gaussians.stored_xyz, atol=1e-5, rtol=0)
    assert loaded.notes == ()


def test_a_network_is_gone_when_its_block_ends(published: Path) -> None:
    provider = PublishedNetworks(WeightsFolder(published))
    with provider.open(Role.STRUCTURE_FLOW) as network:
        assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_networks_of_one_generation_are_those_that_were_there_at_its_start(copy: Path, published: Path) -> None:
    provider, name = PublishedNetworks(WeightsFolder(copy)), "trellis-vggt-v0-2/ckpts/slat_vggt_cond.safetensors"
    shutil.copyfile(published / name, copy / name)  # as when a bucket's weights were replaced for another run
    with pytest.raises(WeightsInvalidError, match="replaced while") as caught, provider.open(Role.LATENT_CONDITION):
        pass
    assert "again" in caught.value.suggestion
    with provider.open(Role.STRUCTURE_CONDITION):
        pass


def test_float16_files_become_float32_on_the_cpu(copy: Path) -> None:
    path = copy / "trellis-vggt-v0-2" / "ckpts/slat_vggt_cond.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    with PublishedNetworks(WeightsFolder(copy)).open(Role.LATENT_CONDITION) as network:
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def faults_of(error: ReconflowError) -> list[dict[str, str]]:
    return cast("list[dict[str, str]]", error.details["faults"])


def damage(path: Path, change: Any) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_wrong_tensor_is_listed_before_loading_fails(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["linear_blocks.0.0.bias"]
        tensors["linear_blocks.1.0.bias"] = torch.zeros(3)
        tensors["surplus"] = torch.zeros(1)

    damage(copy / "trellis-vggt-v0-2" / "ckpts/slat_vggt_cond.safetensors", change)
    with (
        pytest.raises(WeightsInvalidError, match="3 tensors differ") as caught,
        PublishedNetworks(WeightsFolder(copy)).open(Role.LATENT_CONDITION),
    ):
        pass
    assert [fault["message"] for fault in faults_of(caught.value)] == [
        "linear_blocks.0.0.bias 32 is missing",
        "linear_blocks.1.0.bias has the shape 3 instead of 32",
        "surplus 1 is unexpected",
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_quantised_numbers_are_refused_and_not_taken_for_weights(copy: Path, dtype: torch.dtype) -> None:
    path = copy / "trellis-vggt-v0-2" / "ckpts/slat_vggt_cond.safetensors"
    damage(path, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items() if "bias" in name}))
    with (
        pytest.raises(WeightsInvalidError, match="4 tensors are no floating-point numbers") as caught,
        PublishedNetworks(WeightsFolder(copy)).open(Role.LATENT_CONDITION),
    ):
        pass
    assert len(faults_of(caught.value)) == 4


@pytest.mark.parametrize("name", ["linear_blocks.0.0.lora_A.weight", "linear_blocks.0.0.base_layer.weight"])
def test_leftovers_of_adapters_are_named_and_never_dropped(copy: Path, name: str) -> None:
    path = copy / "trellis-vggt-v0-2" / "ckpts/slat_vggt_cond.safetensors"
    damage(path, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    with (
        pytest.raises(WeightsInvalidError, match="adapters of a fine-tuning") as caught,
        PublishedNetworks(WeightsFolder(copy)).open(Role.LATENT_CONDITION),
    ):
        pass
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"name": "SLatRadianceFieldDecoder", "args": {}}, "no network 'SLatRadianceFieldDecoder'"),
        ({"name": "ModulatedSLATMultiViewCond", "args": {"channels": 8, "depth": 3}}, "the arguments depth"),
        ({"name": "SLatMeshDecoder", "args": {"resolution": 8}}, "not complete"),
        ({"name": "SLatFlowModel", "args": {"model_channels": -1}}, "other types or values"),
        ({"name": "SLatFlowModel", "args": {"num_io_res_blocks": 0}}, "other types or values"),
        ({"name": "SparseStructureFlowModel", "args": {"patch_size": 0}}, "other types or values"),
        ({"name": "SparseStructureDecoder", "args": {"channels": []}}, "other types or values"),
    ],
)
def test_an_unknown_configuration_is_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightsInvalidError, match=words):
        checkpoints.build_network(facts)


@pytest.mark.parametrize("content", [[], {}, {"name": "SLatMeshDecoder", "args": [1]}, {"name": 3, "args": {}}])
def test_a_configuration_that_is_none_is_refused(copy: Path, content: Any) -> None:
    path = copy / "trellis-vggt-v0-2" / "ckpts/slat_decoder_mesh.json"
    path.write_text(json.dumps(content), "utf-8")
    with (
        pytest.raises(WeightsInvalidError, match="slat_decoder_mesh"),
        PublishedNetworks(WeightsFolder(copy)).open(Role.MESH_DECODER),
    ):
        pass


def test_a_cut_off_file_and_one_with_other_things_than_tensors_are_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / "trellis-vggt-v0-2" / "ckpts/slat_vggt_cond.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsInvalidError, match="damaged, cut off"), checkpoints.opened_safetensors(path, "x"):
        pass
    torch.save({"weights": Path("somewhere")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsInvalidError, match="something else than tensors"):
        checkpoints.read_pth(tmp_path / "evil.pth", "x")
    torch.save({"weights": 3}, tmp_path / "number.pth")
    with pytest.raises(WeightsInvalidError, match="no plain collection"):
        checkpoints.read_pth(tmp_path / "number.pth", "x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, about an odd version of the pickle
@pytest.mark.parametrize("in_a_zip", [True, False])
def test_a_pth_file_with_bytes_missing_or_changed_is_read_or_refused_by_name(tmp_path: Path, in_a_zip: bool) -> None:
    path, draw, refused = tmp_path / "x.pth", random.Random(0), 0
    torch.save({"a": torch.ones(3, 4), "b": torch.zeros(7)}, path, _use_new_zipfile_serialization=in_a_zip)
    whole = path.read_bytes()
    spoilt = [whole[:length] for length in (0, 1, 10, len(whole) // 2, len(whole) - 1)]
    for _ in range(200):
        changed = bytearray(whole)
        changed[draw.randrange(min(len(whole), 400))] = draw.randrange(256)
        spoilt.append(bytes(changed))
    for content in spoilt:
        path.write_bytes(content)
        try:
            checkpoints.read_pth(path, "x")
        except WeightsInvalidError:
            refused += 1
    assert refused > 20


def test_a_stored_table_that_differs_from_its_formula_is_used_and_reported(copy: Path) -> None:
    path = copy / "trellis-vggt-v0-2" / "ckpts/slat_decoder_gs.safetensors"
    damage(path, lambda tensors: tensors["offset_perturbation"].add_(0.5))
    provider = PublishedNetworks(WeightsFolder(copy))
    with provider.open(Role.GAUSSIAN_DECODER) as decoder:
        assert torch.equal(decoder.offset_perturbation, load_file(path)["offset_perturbation"])
    assert provider.notes == (
        "The stored offset_perturbation differs from its formula by 5.0e-01; the stored one was used.",
    )


def test_a_network_may_lie_in_another_repository_but_never_outside() -> None:
    (configuration, weights) = network_files("microsoft/TRELLIS-image-large/ckpts/ss_dec")
    assert (configuration.name, weights.path) == ("TRELLIS-image-large/ckpts/ss_dec.json", "ckpts/ss_dec.safetensors")
    assert weights.bundle.licence == "MIT"
    assert network_files("somebody/weights/ckpts/x")[0].bundle.restricted
    assert network_files("somebody/dinov2/ckpts/x")[0].bundle.name != DINOV2.name
    for stem in ("../../etc/passwd", "/etc/passwd", "ckpts/../../x", "c:/x", "ckpts\\x", ""):
        with pytest.raises(WeightsInvalidError):
            network_files(stem)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda args: args["models"].pop("slat_vggt_cond"), "places no slat_vggt_cond"),
        (lambda args: args.update(models=[]), "no args with models"),
        (lambda args: args.pop("slat_normalization"), "slat_normalization: Field required"),
        (lambda args: args["slat_normalization"].update(std=[1.0] * 7 + [0.0]), "std.7: Input should be greater than"),
        (lambda args: args["slat_normalization"].update(mean="00000000"), "mean: Input should be a valid list"),
        (lambda args: args["slat_normalization"].update(mean=[0.0] * 7 + [float("nan")]), "finite"),
        (lambda args: args.update(image_cond_model="clip"), "image_cond_model: Input should be 'dinov2_vitl14_reg'"),
        (lambda args: args["slat_sampler"].update(name="FlowEulerCfgSampler"), "slat_sampler.name: Input should be"),
        (lambda args: args["slat_sampler"].update(args={"sigma_min": 0.5}), "different amounts of noise"),
        (lambda args: args["slat_sampler"].update(args=[]), "slat_sampler.args: Input should be"),
    ],
)
def test_a_pipeline_of_another_model_is_refused(copy: Path, change: Any, words: str) -> None:
    path = copy / "trellis-vggt-v0-2" / "pipeline.json"
    content = json.loads(path.read_text("utf-8"))
    change(content["args"])
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(WeightsInvalidError, match=words):
        PublishedNetworks(WeightsFolder(copy))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.sampled_from([10**400, -1, 1e-5, "a/" * 9]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
"""Values such as a JSON document may hold."""


@st.composite
def changed_documents(draw: st.DrawFn, original: Any) -> Any:
    """The original with anything else in one place of it, or in place of it all."""
    if not isinstance(original, dict) or not original or draw(st.integers(0, 4)) == 0:
        return draw(JSON)
    name = draw(st.sampled_from(sorted(original)))
    return {**original, name: draw(changed_documents(original[name]))}


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_pipeline_is_used_or_refused_by_name(copy: Path, published: Path, data: st.DataObject) -> None:
    original = json.loads((published / "trellis-vggt-v0-2" / "pipeline.json").read_text("utf-8"))
    content = data.draw(changed_documents(original))
    (copy / "trellis-vggt-v0-2" / "pipeline.json").write_text(json.dumps(content), "utf-8")
    with suppress(WeightsInvalidError, WeightsMissingError):
        facts = PublishedNetworks(WeightsFolder(copy)).facts
        assert len(facts.latent_mean) == len(facts.latent_std) == 8
    with suppress(WeightsInvalidError):
        folder_state(WeightsFolder(copy))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_configuration_of_vggt_is_used_or_refused_by_name(copy: Path, data: st.DataObject) -> None:
    sizes = st.fixed_dictionaries(
        {name: st.integers(-1, 300) | st.just(4096) for name in ("img_size", "patch_size", "embed_dim")}
    )
    content = data.draw(sizes | changed_documents({"img_size": IMAGE_SIZE, "patch_size": 14, "embed_dim": 32}))
    (copy / "vggt-object-v0-1" / "config.json").write_text(json.dumps(content), "utf-8")
    with suppress(ReconflowError), PublishedNetworks(WeightsFolder(copy)).open(Role.VGGT):
        pass
