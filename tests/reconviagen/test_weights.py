"""Weights: found in folders as they come, fetched, recorded, verified; and loaded strictly or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from flows import cli
from reconflow.errors import (
    IncompleteResultsError,
    ReconflowError,
    StorageUnreachableError,
    ValidationFailedError,
    WeightsInvalidError,
    WeightsMissingError,
)
from reconflow.reconviagen import checkpoints, networks
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.inference import GenerationSettings, generate
from reconflow.reconviagen.model import identify_weights, recorded_weights
from reconflow.reconviagen.networks import PublishedNetworks, Role
from reconflow.reconviagen.options import ReconviagenOptions
from reconflow.reconviagen.random_networks import IMAGE_SIZE, TINY, tiny_networks
from reconflow.reconviagen.sampling import SamplerSettings
from reconflow.reconviagen.vggt_aggregator import VGGT
from reconflow.reconviagen.weight_sources import fetch_weights, open_source, resolve_weights
from reconflow.reconviagen.weights import (
    DINOV2,
    DINOV2_FILE,
    GENERATOR,
    LOCK_NAME,
    WeightFile,
    WeightsFolder,
    digest_of,
    network_files,
)
from reconflow.reconviagen.weights_record import check_files, folder_state, recorded_digest

STEM = "ckpts/{}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded in the cache of whoever runs these tests."""
    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks that have no configuration file of their own are as small as those of the files below."""
    sizes: dict[str, Any] = {"img_size": IMAGE_SIZE, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0}
    monkeypatch.setattr(networks, "DinoVisionTransformer", partial(DinoVisionTransformer, **sizes, depth=2))
    vggt = partial(VGGT, depth=24, num_heads=2, mlp_ratio=2.0, vit_depth=1, vit_num_heads=2, vit_mlp_ratio=2.0)
    monkeypatch.setattr(networks, "VGGT", vggt)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as published, all networks tiny."""
    root = tmp_path_factory.mktemp("published")
    modules = tiny_networks(0)._modules
    generator = root / "trellis-vggt-v0-2"
    (generator / "ckpts").mkdir(parents=True)
    for role, (name, arguments) in TINY.items():
        stem = generator / STEM.format(role.value)
        save_file(modules[role].state_dict(), stem.with_suffix(".safetensors"))
        official = {"name": f"Elastic{name}", "args": {**arguments, "use_checkpoint": False}}
        stem.with_suffix(".json").write_text(json.dumps(official), "utf-8")
    sampler = {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}, "params": {}}
    models = {role.value: STEM.format(role.value) for role in TINY} | {"slat_decoder_rf": "ckpts/never_read"}
    pipeline = {
        "models": models,
        "sparse_structure_sampler": sampler,
        "slat_sampler": sampler,
        "slat_normalization": {"mean": [0.0] * 8, "std": [1.0] * 8},
        "image_cond_model": "dinov2_vitl14_reg",
    }
    (generator / "pipeline.json").write_text(json.dumps({"name": "X", "args": pipeline}), "utf-8")
    vggt = root / "vggt-object-v0-1"
    vggt.mkdir()
    heads = {name: torch.zeros(2) for name in ("camera_head.a", "point_head.b", "depth_head.c", "track_head.d")}
    save_file({**modules[Role.VGGT].state_dict(), **heads}, vggt / "model.safetensors")
    (vggt / "config.json").write_text(json.dumps({"img_size": IMAGE_SIZE, "embed_dim": 32}), "utf-8")
    (root / "dinov2").mkdir()
    torch.save(modules[Role.DINOV2].state_dict(), root / "dinov2" / DINOV2_FILE.path)
    return root


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """A fetched copy, free to be damaged."""
    fetch_weights([str(published)], tmp_path / "copy", accept_licence=True)
    return tmp_path / "copy"


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
    path = copy / "trellis-vggt-v0-2" / STEM.format("slat_vggt_cond.safetensors")
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

    damage(copy / "trellis-vggt-v0-2" / STEM.format("slat_vggt_cond.safetensors"), change)
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
    path = copy / "trellis-vggt-v0-2" / STEM.format("slat_vggt_cond.safetensors")
    damage(path, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items() if "bias" in name}))
    with (
        pytest.raises(WeightsInvalidError, match="4 tensors are no floating-point numbers") as caught,
        PublishedNetworks(WeightsFolder(copy)).open(Role.LATENT_CONDITION),
    ):
        pass
    assert len(faults_of(caught.value)) == 4


@pytest.mark.parametrize("name", ["linear_blocks.0.0.lora_A.weight", "linear_blocks.0.0.base_layer.weight"])
def test_leftovers_of_adapters_are_named_and_never_dropped(copy: Path, name: str) -> None:
    path = copy / "trellis-vggt-v0-2" / STEM.format("slat_vggt_cond.safetensors")
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
    path = copy / "trellis-vggt-v0-2" / STEM.format("slat_decoder_mesh.json")
    path.write_text(json.dumps(content), "utf-8")
    with (
        pytest.raises(WeightsInvalidError, match="slat_decoder_mesh"),
        PublishedNetworks(WeightsFolder(copy)).open(Role.MESH_DECODER),
    ):
        pass


def test_a_cut_off_file_and_one_with_other_things_than_tensors_are_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / "trellis-vggt-v0-2" / STEM.format("slat_vggt_cond.safetensors")
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
    path = copy / "trellis-vggt-v0-2" / STEM.format("slat_decoder_gs.safetensors")
    damage(path, lambda tensors: tensors["offset_perturbation"].add_(0.5))
    provider = PublishedNetworks(WeightsFolder(copy))
    with provider.open(Role.GAUSSIAN_DECODER) as decoder:
        assert torch.equal(decoder.offset_perturbation, load_file(path)["offset_perturbation"])
    assert provider.notes == (
        "The stored offset_perturbation differs from its formula by 5.0e-01; the stored one was used.",
    )


def test_a_licence_that_restricts_use_has_to_be_accepted_and_is_recorded(published: Path, tmp_path: Path) -> None:
    into = tmp_path / "weights"
    with pytest.raises(ValidationFailedError, match="restricts what they may be used for") as caught:
        fetch_weights([str(published)], into)
    assert "vggt-object-v0-1" in caught.value.message
    assert "--accept-licence" in caught.value.suggestion
    assert not (into / "vggt-object-v0-1").exists()
    report = fetch_weights([str(published)], into, accept_licence=True)
    assert report.accepted == ("Stable-X/vggt-object-v0-1",)
    assert fetch_weights([str(published)], into).fetched == ()


def test_checksums_are_recorded_at_the_first_fetch_and_a_changed_file_is_found(copy: Path) -> None:
    recorded = json.loads((copy / LOCK_NAME).read_text("utf-8"))["files"]
    folder = WeightsFolder(copy)
    assert set(recorded) == {file.name for file in folder.files()}
    assert digest_of(check_files(folder)) == digest_of({name: facts["sha256"] for name, facts in recorded.items()})
    path = copy / "dinov2" / DINOV2_FILE.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsInvalidError, match="not what was recorded") as caught:
        check_files(folder, thoroughly=False)
    assert faults_of(caught.value)[0]["file"] == f"dinov2/{DINOV2_FILE.path}"


def test_what_is_recorded_names_the_weights_without_reading_them(
    copy: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = identify_weights(ReconviagenOptions(weights=str(copy)))
    monkeypatch.setattr("reconflow.reconviagen.weights_record.sha256_of", refuse_to_read)
    assert recorded_weights(ReconviagenOptions(weights=str(copy))) == used
    assert recorded_weights(ReconviagenOptions(weights=str(published / "dinov2"))) == ""  # not all of them
    path = copy / "dinov2" / DINOV2_FILE.path
    path.write_bytes(path.read_bytes() + b"1")
    assert recorded_weights(ReconviagenOptions(weights=str(copy))) == ""  # nobody knows
    (copy / LOCK_NAME).write_text("{", "utf-8")
    assert recorded_weights(ReconviagenOptions(weights=str(copy))) == ""


@pytest.mark.parametrize("can_be_written", [True, False])
@pytest.mark.parametrize("thoroughly", [True, False])
def test_files_with_other_times_are_read_once_and_recorded_anew(
    copy: Path, monkeypatch: pytest.MonkeyPatch, *, can_be_written: bool, thoroughly: bool
) -> None:
    folder, options = WeightsFolder(copy), ReconviagenOptions(weights=str(copy))
    used = identify_weights(options)
    for file in folder.files():
        os.utime(folder.need(file), (1_600_000_000, 1_600_000_000))
    if not can_be_written:
        refuse_records(copy)
    checked = check_files(folder, thoroughly=thoroughly)
    assert digest_of(checked) == used
    monkeypatch.setattr("reconflow.reconviagen.weights_record.sha256_of", refuse_to_read)
    assert recorded_weights(options) == used
    assert identify_weights(options) == used


def refuse_records(root: Path) -> None:
    """Make it impossible to write the record into a folder, also for the superuser."""
    (root / LOCK_NAME).unlink(missing_ok=True)
    (root / LOCK_NAME / "occupied").mkdir(parents=True)


def test_what_a_machine_recorded_of_a_folder_gives_way_to_what_is_recorded_in_it(copy: Path) -> None:
    folder = WeightsFolder(copy)
    own = (copy / LOCK_NAME).read_text("utf-8")
    refuse_records(copy)
    path = copy / "vggt-object-v0-1" / "config.json"
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    check_files(folder)  # the first of this content, on this machine
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    with pytest.raises(WeightsInvalidError, match="not what was recorded") as caught:
        check_files(folder)
    assert "weights verify --anew" in caught.value.suggestion
    accepted = CliRunner().invoke(cli.app, ["weights", "verify", "--anew", "--into", str(copy)])
    assert accepted.exit_code == 0, accepted.stderr
    assert len(check_files(folder)) == 18
    path.write_text(path.read_text("utf-8").rstrip(), "utf-8")
    (copy / LOCK_NAME / "occupied").rmdir()
    (copy / LOCK_NAME).rmdir()
    (copy / LOCK_NAME).write_text(own, "utf-8")
    assert len(check_files(folder)) == 18


@settings(deadline=None, max_examples=200)
@given(
    entry=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["files", "accepted_licences", "sha256", "size", "mtime_ns", "from"]), inner
            )
        ),
    )
)
def test_any_record_is_used_or_said_to_be_damaged(tmp_path_factory: pytest.TempPathFactory, entry: Any) -> None:
    root = tmp_path_factory.mktemp("record")
    (root / LOCK_NAME).write_text(json.dumps(entry), "utf-8")
    with suppress(WeightsInvalidError):
        recorded_digest(WeightsFolder(root))


def refuse_to_read(path: Path) -> str:
    raise AssertionError(path)


def test_a_folder_that_was_never_fetched_is_recorded_at_its_first_use(published: Path, tmp_path: Path) -> None:
    hub = as_caches(published, tmp_path)
    assert len(check_files(WeightsFolder(hub))) == 18
    assert (hub / LOCK_NAME).is_file()


def as_caches(published: Path, root: Path) -> Path:
    """Lay the files out as the caches of Hugging Face and torch hub do."""
    for bundle, repository in (
        ("trellis-vggt-v0-2", "models--Stable-X--trellis-vggt-v0-2"),
        ("vggt-object-v0-1", "models--Stable-X--vggt-object-v0-1"),
    ):
        snapshots = root / repository / "snapshots"
        snapshots.mkdir(parents=True)
        (snapshots / "0123abc").symlink_to(published / bundle)
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / DINOV2_FILE.path).symlink_to(published / "dinov2" / DINOV2_FILE.path)
    return root


def test_weights_are_taken_from_caches_and_single_snapshots(published: Path, tmp_path: Path) -> None:
    assert WeightsFolder(as_caches(published, tmp_path / "hub")).missing() == []
    snapshots = [str(published / name) for name in ("trellis-vggt-v0-2", "vggt-object-v0-1", "dinov2")]
    report = fetch_weights(snapshots, tmp_path / "into", accept_licence=True)
    assert len(report.fetched) == 18


COMMITS = {"trellis-vggt-v0-2": "a" * 40, "vggt-object-v0-1": "b" * 40}


def add_snapshot(root: Path, published: Path, bundle: str, commit: str, *without: str) -> Path:
    """Add to a cache of Hugging Face a snapshot that is a copy of what is published, but for some files."""
    snapshot = root / f"models--Stable-X--{bundle}" / "snapshots" / commit
    shutil.copytree(published / bundle, snapshot)
    for name in without:
        (snapshot / name).unlink()
    return snapshot


@pytest.fixture
def hub(published: Path, tmp_path: Path) -> Path:
    """A cache of Hugging Face with an older snapshot of each repository, and torch hub's file."""
    root = tmp_path / "hub"
    for bundle, commit in COMMITS.items():
        add_snapshot(root, published, bundle, commit)
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / DINOV2_FILE.path).symlink_to(published / "dinov2" / DINOV2_FILE.path)
    return root


def test_the_snapshot_of_the_revision_meant_is_taken_whatever_else_is_there(hub: Path, published: Path) -> None:
    pinned = add_snapshot(hub, published, "trellis-vggt-v0-2", GENERATOR.revision)
    main = add_snapshot(hub, published, "vggt-object-v0-1", "c" * 40)
    (main.parents[1] / "refs").mkdir()
    (main.parents[1] / "refs" / "main").write_text("c" * 40, "utf-8")
    folder = WeightsFolder(hub)
    places = {folder.need(file).relative_to(hub).parts[2] for file in folder.files() if file.bundle != DINOV2}
    assert places == {pinned.name, main.name}
    assert [row["note"] for row in folder_state(folder)] == [None, None, None]
    assert PublishedNetworks(folder).notes == ()


def test_files_of_two_snapshots_are_never_combined(hub: Path, published: Path, tmp_path: Path) -> None:
    add_snapshot(hub, published, "trellis-vggt-v0-2", GENERATOR.revision, STEM.format("slat_vggt_cond.safetensors"))
    folder = WeightsFolder(hub)
    assert [file.path for file in folder.missing()] == [STEM.format("slat_vggt_cond.safetensors")]
    report = fetch_weights([str(published)], hub, accept_licence=True)  # all of that repository, to one folder
    assert len([name for name in report.fetched if name.startswith("trellis-vggt-v0-2/")]) == 15
    assert len(report.fetched) == 15
    assert folder.missing() == []


def test_another_snapshot_than_the_one_meant_is_noted_and_stays_noted_in_a_copy(hub: Path, tmp_path: Path) -> None:
    folder, into = WeightsFolder(hub), tmp_path / "into"
    notes = PublishedNetworks(folder).notes
    assert f"snapshot {'a' * 40}" in notes[0]
    assert GENERATOR.revision in notes[0]
    assert f"snapshot {'b' * 40}" in notes[1]
    assert [row["note"] for row in folder_state(folder)] == [*notes, None]
    assert fetch_weights([str(hub)], into, accept_licence=True).notes == notes
    assert PublishedNetworks(WeightsFolder(into)).notes == notes
    shown = CliRunner().invoke(cli.app, ["weights", "status", "--into", str(into)], env={"COLUMNS": "400"})
    assert f"Note: {notes[0]}" in shown.stdout


def test_what_is_missing_is_said_with_size_licence_and_source(published: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError) as caught:
        PublishedNetworks(WeightsFolder(tmp_path))
    for words in ("ReconViaGen v0.2 (15 files, about 3.0 GB", "Apache-2.0", "Meta's VGGT licence", "1.2 GB"):
        assert words in caught.value.message
    with pytest.raises(WeightsMissingError, match="1 file,") as caught:
        fetch_weights([str(published / "trellis-vggt-v0-2"), str(published / "dinov2")], tmp_path, accept_licence=True)
    assert "--from" in caught.value.suggestion


def test_no_size_is_stated_that_nobody_knows_exactly(copy: Path) -> None:
    assert [file.name for file in WeightsFolder(copy).files() if file.size is not None or file.sha256 is not None] == []


@pytest.mark.parametrize("stated", [{"size": 3}, {"sha256": "0" * 64}])
def test_a_size_or_checksum_that_a_source_states_is_compared(
    published: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: dict[str, Any]
) -> None:
    known = WeightFile(DINOV2, DINOV2_FILE.path, 3, **stated)
    monkeypatch.setattr("reconflow.reconviagen.weights.DINOV2_FILE", known)
    with pytest.raises(WeightsInvalidError, match="dinov2"):
        check_files(WeightsFolder(copy))
    with pytest.raises(WeightsInvalidError, match="not the published ones"):
        fetch_weights([str(published)], tmp_path / "into", accept_licence=True)


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


@pytest.fixture
def web(published: Path) -> Iterator[str]:
    """A web server with the files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_fetched_from_the_web_when_that_is_asked_for(web: str, published: Path, tmp_path: Path) -> None:
    fetch_weights([web], tmp_path, accept_licence=True)
    wanted, found = (digest_of(check_files(WeightsFolder(root))) for root in (published, tmp_path))
    assert found == wanted
    (published / LOCK_NAME).unlink()
    with pytest.raises(WeightsMissingError):
        fetch_weights([f"{web}/nowhere"], tmp_path / "other")


def test_a_web_server_that_is_not_there_is_unreachable_and_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreachableError):
        fetch_weights(["http://127.0.0.1:9"], tmp_path)
    for place in ("http://example.com/weights", "ftp://example.com"):
        with pytest.raises(ValidationFailedError):
            open_source(place)
    with pytest.raises(ValidationFailedError):
        resolve_weights("https://example.com/weights")


def test_the_commands_fetch_verify_and_show(published: Path, tmp_path: Path) -> None:
    into, runner = str(tmp_path / "weights"), CliRunner()
    refused = runner.invoke(cli.app, ["weights", "fetch", "--from", str(published), "--into", into])
    assert refused.exit_code == 1
    assert "--accept-licence" in refused.stderr
    fetched = runner.invoke(cli.app, ["weights", "fetch", "--from", str(published), "--into", into, "--accept-licence"])
    assert fetched.exit_code == 0, fetched.stderr
    assert "Meta's VGGT licence" in fetched.stderr
    verified = runner.invoke(cli.app, ["weights", "verify", "--into", into, "--json"])
    assert len(json.loads(verified.stdout)["files"]) == 18
    status = runner.invoke(cli.app, ["weights", "status", "--into", into, "--json"])
    rows = json.loads(status.stdout)["bundles"]
    assert [row["missing"] for row in rows] == [[], [], []]
    assert [row["accepted"] for row in rows] == [False, True, False]
    assert runner.invoke(cli.app, ["weights", "status", "--into", into]).exit_code == 0
    empty = runner.invoke(cli.app, ["weights", "verify", "--into", str(tmp_path / "empty")])
    assert empty.exit_code == 1
    assert "WEIGHTS_MISSING" in empty.stderr


def test_the_state_of_an_empty_folder_names_every_file(tmp_path: Path) -> None:
    rows = folder_state(WeightsFolder(tmp_path))
    assert sum(len(row["missing"]) for row in rows) == 18
    assert [row["restricted"] for row in rows] == [False, True, False]


def test_errors_of_weights_have_codes_of_their_own() -> None:
    assert {WeightsMissingError.code, WeightsInvalidError.code} == {"WEIGHTS_MISSING", "WEIGHTS_INVALID"}
    assert not issubclass(WeightsMissingError, IncompleteResultsError)
    assert issubclass(WeightsMissingError, ReconflowError)
