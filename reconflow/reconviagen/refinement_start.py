"""What a refinement starts from, and how it is kept beside the state of the fit, so that nothing is generated twice."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow.checkpoints import Checkpoint
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity
from reconflow.reconviagen.export import Placed
from reconflow.reconviagen.registration import Registration

_START: Final = "start."
"""Before the names of the arrays and facts that are not the fit's."""
_TRANSFORMS: Final = ("world_from_mesh", "world_from_generator")


@dataclass(frozen=True, eq=False)
class RefinementStart:
    """A generated object where the cameras see it.

    Attributes:
        placed: Its surface.
        gaussians: Its appearance, in the generator's frame.
        facts: JSON-able; what the result's statistics say of the generation.
    """

    placed: Placed
    gaussians: Gaussians
    facts: dict[str, Any]

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> RefinementStart | None:
        """Return what an earlier attempt has kept, exactly; None when there is none."""
        kept = checkpoint.load()
        if kept is None:
            return None
        arrays = {name.removeprefix(_START): values for name, values in kept[0].items() if name.startswith(_START)}
        facts = kept[1][_START]
        moves = {name: _similarity(arrays[name]) for name in _TRANSFORMS}
        found = Registration(world_from_mesh=moves["world_from_mesh"], **facts["found"])
        mesh = TriangleMesh(arrays["vertices"], arrays["faces"])
        placed = Placed(mesh, moves["world_from_generator"], found, facts["surface"])
        gaussians = Gaussians(**{field.name: arrays[field.name] for field in fields(Gaussians)})
        return cls(placed, gaussians, facts["generation"])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return its arrays by the names that they are kept under."""
        placed = self.placed
        transforms = {
            "world_from_mesh": placed.found.world_from_mesh,
            "world_from_generator": placed.world_from_generator,
        }
        arrays = {
            "vertices": placed.mesh.vertices,
            "faces": placed.mesh.faces,
            **{name: _numbers(move) for name, move in transforms.items()},
            **{field.name: getattr(self.gaussians, field.name) for field in fields(Gaussians)},
        }
        return {_START + name: values for name, values in arrays.items()}

    def to_facts(self) -> dict[str, Any]:
        """Return the rest of it, JSON-able."""
        found = {name: value for name, value in vars(self.placed.found).items() if name != "world_from_mesh"}
        return {_START: {"found": found, "surface": self.placed.surface, "generation": self.facts}}


class WithStart:
    """The checkpoint of a fit that keeps what it started from in the same file.

    Args:
        checkpoint: Where both are kept.
        start: What the fit started from.
    """

    def __init__(self, checkpoint: Checkpoint, start: RefinementStart) -> None:
        self._checkpoint, self._arrays, self._facts = checkpoint, start.to_arrays(), start.to_facts()

    def load(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Return the fit's state that was kept last."""
        kept = self._checkpoint.load()
        if kept is None:
            return None
        arrays, facts = kept
        own = {name: values for name, values in arrays.items() if not name.startswith(_START)}
        return own, {name: value for name, value in facts.items() if name != _START}

    def save(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Keep the fit's state, and the start beside it."""
        self._checkpoint.save(arrays | self._arrays, facts | self._facts)


def _numbers(move: Similarity) -> NDArray[np.float64]:
    return np.concatenate([[move.scale], move.rotation.ravel(), move.translation])


def _similarity(numbers: NDArray[np.float64]) -> Similarity:
    return Similarity(float(numbers[0]), numbers[1:10].reshape(3, 3), numbers[10:])
