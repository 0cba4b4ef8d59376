"""The registry of reconstruction models and the interface they share. Adding one is a folder and a line here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from reconflow.errors import ModelUnavailableError
from reconflow.progress import OnProgress

if TYPE_CHECKING:
    from reconflow.cameras.calibration import Calibration
    from reconflow.checkpoints import Checkpoint
    from reconflow.datasets.dataset import Dataset
    from reconflow.reconstruction import Reconstruction


class ReconstructionModel(Protocol):
    """A model that turns calibrated views into a textured mesh."""

    name: str
    version: str
    devices: tuple[str, ...]
    """What it can compute on in this version."""

    def load(self, device: str) -> None:
        """Make ready to reconstruct: weights, compiled kernels."""

    def reconstruct(
        self,
        dataset: Dataset,
        calibration: Calibration,
        options: Any,
        on_progress: OnProgress,
        checkpoint: Checkpoint | None = None,
    ) -> Reconstruction:
        """Reconstruct the object; may be called again.

        With a checkpoint of an earlier attempt at the same work it goes on from there, to the same result.
        """

    def release(self) -> None:
        """Give the memory back."""


MODELS: Final[dict[str, str]] = {
    "nvdiffrec": "reconflow.nvdiffrec.model:NvdiffrecModel",
    "reconviagen": "reconflow.reconviagen.model:ReconvGenModel",
}
"""Model name -> where its class is; imported when the model is first asked for."""
WEIGHTS: Final[dict[str, str]] = {"reconviagen": "reconflow.reconviagen.model"}
"""Model name -> where `identify_weights` and `recorded_weights` of it are; models without weights have none."""

_ready: dict[tuple[str, str], ReconstructionModel] = {}


def make_model(name: str) -> ReconstructionModel:
    """Return a model that is not loaded, to be asked what it is.

    Args:
        name: A key of `MODELS`.

    Raises:
        ModelUnavailableError: This version has no such model.
    """
    if name not in MODELS:
        raise ModelUnavailableError(
            f"There is no model named {name!r}.", suggestion=f"Choose one of: {', '.join(sorted(MODELS))}.", model=name
        )
    module, attribute = MODELS[name].split(":")
    return cast("ReconstructionModel", getattr(importlib.import_module(module), attribute)())


def identify_weights(name: str, options: Any, on_progress: OnProgress) -> str:
    """Return a name for the content of a model's weights, after making sure that they are on this machine.

    Args:
        name: A key of `MODELS`.
        options: Of that model.
        on_progress: Hears of what is fetched and checked.

    Returns:
        Empty for a model that has no weights.

    Raises:
        WeightsMissingError, WeightsInvalidError: They cannot be used.
    """
    if name not in WEIGHTS:
        return ""
    return str(importlib.import_module(WEIGHTS[name]).identify_weights(options, on_progress))


def recorded_weights(name: str, options: Any) -> str:
    """Return the name of a model's weights by what is recorded of them here, at once: nothing is fetched or read.

    Args:
        name: A key of `MODELS`.
        options: Of that model.

    Returns:
        As `identify_weights`; empty as well when nothing certain is recorded.
    """
    return str(importlib.import_module(WEIGHTS[name]).recorded_weights(options)) if name in WEIGHTS else ""


def known_model(name: str, device: str) -> ReconstructionModel:
    """Return a model to be asked what it is: the one that is loaded for the device, else one that is not loaded.

    Raises:
        ModelUnavailableError: This version has no such model.
    """
    return _ready.get((name, device)) or make_model(name)


def ready_model(name: str, device: str) -> ReconstructionModel:
    """Return a loaded model, loading it unless this process has done so.

    Args:
        name: A key of `MODELS`.
        device: `cpu` or `cuda`.

    Raises:
        ModelUnavailableError: This version has no such model.
    """
    if (name, device) not in _ready:
        model = make_model(name)
        model.load(device)
        _ready[name, device] = model
    return _ready[name, device]


def model_version(name: str) -> str:
    """Return the version that a model's results carry, without loading it.

    Args:
        name: A key of `MODELS`.

    Raises:
        ModelUnavailableError: This version has no such model.
    """
    ready = next((model for (known, _), model in _ready.items() if known == name), None)
    return (ready or make_model(name)).version


def release_models() -> None:
    """Release every loaded model."""
    while _ready:
        _ready.popitem()[1].release()
