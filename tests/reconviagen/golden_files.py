"""Golden vectors: which files a folder holds, what they are about, and how values are compared with them.

A golden is a pair `<stem>.json` + `<stem>.safetensors`. Its kind is the longest known kind that its stem starts with,
or else the kind of the class that its JSON names, or else the longest one that occurs in its stem, so that a folder may
hold several goldens of one kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TOLERANCE = 2e-5
"""Of every float32 output on the CPU, times 1 + max|expected|."""
GPU_TOLERANCE = 1e-4
"""The same on CUDA with TF32 off."""

KIND_OF_CLASS: Mapping[str, str] = {
    "DinoVisionTransformer": "dinov2_reg",
    "DPTHead": "vggt_point_head",
    "ModulatedMultiViewCond": "ss_vggt_cond",
    "ModulatedSLATMultiViewCond": "slat_vggt_cond",
    "FlowEulerGuidanceIntervalSampler": "sampler",
    "SparseStructureFlowModel": "ss_flow",
    "SparseStructureDecoder": "ss_decoder",
    "SLatFlowModel": "slat_flow",
    "SLatGaussianDecoder": "slat_gs_decoder",
    "SLatMeshDecoder": "slat_mesh_decoder",
    "SparseFeatures2Mesh": "mesh_extract",
    "VGGT (aggregator + camera_head)": "vggt_aggregator",
}
KINDS = frozenset(KIND_OF_CLASS.values()) | {
    "preprocess",
    "embedders",
    "sampler_multi_image",
    "subm_conv3d",
    "sparse_spatial",
    "window_attention",
    "flexicubes_tables",
    "cameras",
    "pipeline_tiny",
}


@dataclass(frozen=True)
class Golden:
    """One golden; its tensors are read at first use.

    Attributes:
        path: The JSON file.
        kind: What it is about, one of `KINDS`; None when nobody knows.
        facts: The JSON: constructor arguments under `args`, cases, notes.
        is_reference: It lies in the folder that is used by default, for which tighter bounds were measured.
        device: Where its tensors go, and the modules that it is loaded into.
    """

    path: Path
    kind: str | None
    facts: dict[str, Any]
    is_reference: bool
    device: str = "cpu"

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the file under its full name, as stored."""
        stored = load_file(self.path.with_suffix(".safetensors"))
        return {name: tensor.to(self.device) for name, tensor in stored.items()}

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Tensors named `in.<name>`."""
        return self.section("in")

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Tensors named `out.<name>`."""
        return self.section("out")

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of the golden's module, float32."""
        return {name: t.float() if t.is_floating_point() else t for name, t in self.section("weights").items()}

    def section(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names start with a prefix and a dot, without it."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def load(self, module: nn.Module) -> nn.Module:
        """Give a module exactly the golden's weights and make it ready for inference."""
        module.load_state_dict(self.weights, strict=True)
        return module.to(self.device).eval().requires_grad_(requires_grad=False)

    def tolerance(self, reference: float) -> float:
        """The relative bound: the tighter one measured on the reference folder only there."""
        return min(reference, TOLERANCE) if self.is_reference else TOLERANCE


def find_goldens(folder: Path, *, is_reference: bool) -> list[Golden]:
    """List the goldens of a folder and its subfolders, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        if path.with_suffix(".safetensors").is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            found.append(Golden(path, kind_of(path.stem, facts), facts, is_reference))
    return found


def halves_of_goldens(folder: Path) -> list[Path]:
    """List the files of a folder that look like a golden's, but lack the other one of its two files."""
    found = []
    for path in sorted(folder.rglob("*.safetensors")):
        if not path.with_suffix(".json").is_file():
            found.append(path)
    for path in sorted(folder.rglob("*.json")):
        if not path.with_suffix(".safetensors").is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(facts, dict) and ("tensors" in facts or kind_of(path.stem, facts)):
                found.append(path)
    return found


def kind_of(stem: str, facts: Mapping[str, Any]) -> str | None:
    """Tell what a golden is about from its file name, or else from the class that its JSON names."""
    starting = [kind for kind in KINDS if stem.startswith(kind)]
    within = [kind for kind in KINDS if kind in stem]
    named = KIND_OF_CLASS.get(str(facts.get("name")))
    return max(starting, key=len, default=None) or named or max(within, key=len, default=None)


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """max|actual − expected| / (1 + max|expected|), in float64; shapes must agree."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    wanted = expected.double()
    return float((actual.double() - wanted).abs().max() / (1 + wanted.abs().max()))


def assert_matches(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Floats agree within tolerance · (1 + max|expected|), on CUDA a wider one; integers exactly; NaN never agrees."""
    if actual.is_cuda:
        tolerance = max(tolerance, GPU_TOLERANCE)
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), "integers differ"
        return
    error = largest_error(actual, expected)
    assert error <= tolerance, f"off by {error:.2e} · (1 + max|expected|), allowed are {tolerance:.1e}"
