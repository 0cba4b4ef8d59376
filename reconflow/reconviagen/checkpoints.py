"""Networks built as their configuration files say and filled with exactly the tensors of their checkpoints.

Nothing is dropped, guessed or broadcast: every tensor that is missing, unexpected or of another shape is listed, then
loading fails. Files are mapped into memory, so that a network takes what it needs and no copy of its file beside it.
"""

from __future__ import annotations

import inspect
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reconflow.errors import WeightsInvalidError
from reconflow.reconviagen.conditioning import ModulatedMultiViewCond, ModulatedSLATMultiViewCond
from reconflow.reconviagen.embeddings import grid_position_embedding
from reconflow.reconviagen.gaussian_parameters import offset_perturbation
from reconflow.reconviagen.latent_decoders import SLatGaussianDecoder, SLatMeshDecoder
from reconflow.reconviagen.latent_flow import SLatFlowModel
from reconflow.reconviagen.structure_decoder import SparseStructureDecoder
from reconflow.reconviagen.structure_flow import SparseStructureFlowModel

CLASSES: Final[Mapping[str, type[nn.Module]]] = {
    kind.__name__: kind
    for kind in (
        ModulatedMultiViewCond,
        ModulatedSLATMultiViewCond,
        SparseStructureFlowModel,
        SparseStructureDecoder,
        SLatFlowModel,
        SLatGaussianDecoder,
        SLatMeshDecoder,
    )
}
"""Networks by the class names of the official configuration files."""
_TRAINING_ONLY: Final = frozenset({"use_checkpoint", "use_bf16"})
_ADAPTER_MARKS: Final = ("lora_", "base_layer")
_BUFFER_TOLERANCE: Final = 1e-4
_STORED_AS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Other types hold quantised numbers, which mean something only with scales that no published file has."""
_DAMAGED_PTH: Final = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    OSError,
)  # fmt: skip
"""What PyTorch raises for files with single bytes missing or changed, found by trying."""
_SHOWN: Final = 8

Read = Callable[[str], Tensor]
"""Gives the tensor of a name."""


def build_network(facts: Mapping[str, Any], *, device: str = "cpu", source: str = "configuration") -> nn.Module:
    """Build a network without memory for its weights (on the meta device).

    Args:
        facts: Of the official configuration: `name` and `args`.
        device: Where it shall run: on the CPU everything is float32, elsewhere torsos have the official precision.
        source: What to call the configuration in errors.

    Raises:
        WeightsInvalidError: The class or an argument is unknown.
    """
    name = str(facts.get("name", "")).removeprefix("Elastic")
    if name not in CLASSES:
        raise _refused(source, f"there is no network {name!r} here; known are {', '.join(sorted(CLASSES))}")
    arguments = {key: value for key, value in dict(facts.get("args", {})).items() if key not in _TRAINING_ONLY}
    unknown = set(arguments) - set(inspect.signature(CLASSES[name].__init__).parameters)
    if unknown:
        raise _refused(source, f"{name} does not know the arguments {', '.join(sorted(unknown))}")
    if device == "cpu":
        arguments.pop("use_fp16", None)
    try:
        with torch.device("meta"):
            return CLASSES[name](**arguments)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise _refused(source, f"the arguments of {name} are not complete, or of other types or values") from error


def fill_network(
    network: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    read: Read,
    *,
    device: str = "cpu",
    source: str = "checkpoint",
    ignored: tuple[str, ...] = (),
) -> None:
    """Give a network the tensors of a checkpoint, each in the network's own precision, and make it ready to infer.

    Args:
        network: Built by `build_network`.
        shapes: Of all tensors in the checkpoint.
        read: Reads one of them.
        device: Where they go.
        source: What to call the checkpoint in errors.
        ignored: Beginnings of names that are left out on purpose.

    Raises:
        WeightsInvalidError: The tensors are not exactly those of the network; all differences are listed.
    """
    wanted = network.state_dict()
    check_tensors({name: tuple(tensor.shape) for name, tensor in wanted.items()}, shapes, source, ignored)
    state, faults = {}, []
    for name, tensor in wanted.items():
        stored = read(name)
        if stored.dtype not in _STORED_AS:
            faults.append(f"{name} is of the type {str(stored.dtype).removeprefix('torch.')}")
        state[name] = stored.to(device=device, dtype=tensor.dtype)
    if faults:
        problem = f"{len(faults)} tensors are no floating-point numbers of 16 bits or more: {faults[0]}"
        raise _refused(source, problem, faults, "Fetch the published files, which are not quantised.")
    network.load_state_dict(state, strict=True, assign=True)
    network.eval().requires_grad_(requires_grad=False)


def check_tensors(
    wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], source: str, ignored: tuple[str, ...] = ()
) -> None:
    """Compare names and shapes of tensors.

    Args:
        wanted: Shapes by name, as the network has them.
        found: Shapes by name, as the checkpoint has them.
        source: What to call the checkpoint in errors.
        ignored: Beginnings of names that are left out on purpose.

    Raises:
        WeightsInvalidError: They differ; `details["faults"]` lists every tensor.
    """
    extra = [name for name in found if name not in wanted and not name.startswith(ignored)]
    adapters = [name for name in extra if any(mark in name for mark in _ADAPTER_MARKS)]
    faults = [f"{name} {_shape(shape)} is missing" for name, shape in wanted.items() if name not in found]
    faults += [
        f"{name} has the shape {_shape(found[name])} instead of {_shape(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    faults += [f"{name} {_shape(found[name])} is unexpected" for name in extra]
    if not faults:
        return
    if adapters:
        raise _refused(
            source,
            f"it holds adapters of a fine-tuning that were not merged into the weights ({adapters[0]} and "
            f"{len(adapters) - 1} more)",
            faults,
            "Merge the adapters into the weights, or fetch the published files, which have none.",
        )
    shown = "; ".join(faults[:_SHOWN]) + f"; and {len(faults) - _SHOWN} more" * (len(faults) > _SHOWN)
    raise _refused(source, f"{len(faults)} tensors differ from the network's: {shown}", faults)


@contextmanager
def opened_safetensors(path: Path, source: str) -> Iterator[tuple[dict[str, tuple[int, ...]], Read]]:
    """Map a safetensors file into memory; gives the shapes of its tensors and a function that reads one.

    Raises:
        WeightsInvalidError: It is no safetensors file, or not all of it is there.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118 - no mapping
            yield shapes, stream.get_tensor
    except SafetensorError as error:
        raise _refused(source, "it is damaged, cut off, or no safetensors file") from error


def read_pth(path: Path, source: str) -> dict[str, Tensor]:
    """Read a plain state dict that PyTorch has written; nothing but tensors is ever unpickled.

    Raises:
        WeightsInvalidError: It is damaged, or holds other things.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except _DAMAGED_PTH as error:
        raise _refused(source, "it is damaged, or holds something else than tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _refused(source, "it is no plain collection of tensors")
    return state


def unusual_buffers(network: nn.Module) -> list[str]:
    """Say which stored tables differ from their formulas; the stored ones are used all the same."""
    expected: dict[str, tuple[Tensor, Tensor]] = {}
    if isinstance(network, SparseStructureFlowModel):
        side = network.resolution // network.patch_size
        expected["pos_emb"] = network.pos_emb, grid_position_embedding(side, network.pos_emb.shape[-1])
    elif isinstance(network, SLatGaussianDecoder):
        expected["offset_perturbation"] = network.offset_perturbation, offset_perturbation(network.configuration)
    return [
        f"The stored {name} differs from its formula by {difference:.1e}; the stored one was used."
        for name, (stored, formula) in expected.items()
        if (difference := float((stored.cpu().float() - formula).abs().max())) > _BUFFER_TOLERANCE
    ]


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _refused(
    source: str, problem: str, faults: Sequence[str] = (), suggestion: str = "Fetch this file again."
) -> WeightsInvalidError:
    return WeightsInvalidError(
        f"{source} cannot be used: {problem}.",
        suggestion=suggestion,
        faults=[{"file": source, "message": fault} for fault in faults or [problem]],
    )
