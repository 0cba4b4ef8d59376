"""A folder of weights as published, all networks tiny, and a copy of it that may be damaged."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reconflow.reconviagen import networks
from reconflow.reconviagen.dinov2 import DinoVisionTransformer
from reconflow.reconviagen.networks import Role
from reconflow.reconviagen.random_networks import IMAGE_SIZE, TINY, tiny_networks
from reconflow.reconviagen.vggt_aggregator import VGGT
from reconflow.reconviagen.weight_sources import fetch_weights
from reconflow.reconviagen.weights import DINOV2_FILE


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
        stem = generator / f"ckpts/{role.value}"
        save_file(modules[role].state_dict(), stem.with_suffix(".safetensors"))
        official = {"name": f"Elastic{name}", "args": {**arguments, "use_checkpoint": False}}
        stem.with_suffix(".json").write_text(json.dumps(official), "utf-8")
    sampler = {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}, "params": {}}
    models = {role.value: f"ckpts/{role.value}" for role in TINY} | {"slat_decoder_rf": "ckpts/never_read"}
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
