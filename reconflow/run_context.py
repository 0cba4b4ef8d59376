"""A run under way: what was asked for, where its files are on this machine, and what its stages have found so far.

Nothing here computes or decides an order; stages are in `reconflow.stages`, their order in `reconflow.pipeline`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel

from reconflow.errors import ReconflowError
from reconflow.outputs.runs import RunLayout
from reconflow.quality.report import QualityThresholds
from reconflow.request import RunRequest
from reconflow.stage_results import (
    CamerasResult,
    DatasetResult,
    InferResult,
    ModelResult,
    PackageResult,
    PreviewResult,
    QualityResult,
    StageResult,
)
from reconflow.storage import Workspace, open_store

Isolation: TypeAlias = Literal["none", "process"]


class RunRef(BaseModel, frozen=True, extra="forbid"):
    """One run: what was asked for, and under which identifier."""

    run_id: str
    request: RunRequest
    thresholds: QualityThresholds = QualityThresholds()
    isolation: Isolation | None = None
    """Whether models run in processes of their own; None leaves it to `reconflow.execution.choose_isolation`."""
    side_by_side: bool = False
    """Whether its models compute at the same time, each on a device of its own (`reconflow.model_order`)."""
    gpus: dict[str, str] = {}
    """Model -> the UUID of its GPU, where the GPUs were chosen for all models together."""


class RunSite(BaseModel, frozen=True, extra="forbid"):
    """A run on this machine: every folder that its stages read and write."""

    run: RunRef
    workspace: Workspace
    fetched_dataset: Path | None = None
    """The dataset's folder where that is known already, so that nobody asks for it again."""

    @property
    def dataset_folder(self) -> Path:
        """The dataset on this machine; it is fetched when it is first asked for.

        Raises:
            StorageUnreachableError, ValidationFailedError: It cannot be had.
        """
        return self.fetched_dataset or _fetch_dataset(self.run.request.dataset)

    def layout(self, model: str | None = None) -> RunLayout:
        """Return the names of the files of one model's result; of the request's first model without one."""
        names = self.run.request.models()
        return RunLayout(self.workspace.root, self.run.run_id, model or names[0], several=len(names) > 1)

    def path_of(self, name: str) -> Path:
        """Return where a stage's file stands that `files_of` named so."""
        place, _, path = name.partition("/")
        return {"work": self.workspace.work, "run": self.workspace.root}[place] / path

    def files_of(self, result: StageResult) -> dict[str, Path]:
        """Return a result's files by names that hold on every machine."""
        names = [f"work/{ref.path}" for ref in result.work_files] + [f"run/{ref.path}" for ref in result.run_files]
        return {name: self.path_of(name) for name in names}


@dataclass
class ModelOutcomes:
    """The results of one model's stages that have run so far, or why there are no more of them."""

    load: ModelResult | None = None
    infer: InferResult | None = None
    quality: QualityResult | None = None
    preview: PreviewResult | None = None
    failure: ReconflowError | None = None

    def done(self) -> list[StageResult]:
        """Return the results that there are, in the order of the stages."""
        return [result for result in (self.load, self.infer, self.quality, self.preview) if result is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all stages of the model have run."""
        return self.preview is not None


@dataclass
class StageOutcomes:
    """The results of the stages that have run so far; None for those that have not."""

    validate: DatasetResult | None = None
    transforms: CamerasResult | None = None
    models: dict[str, ModelOutcomes] = field(default_factory=dict)
    package: PackageResult | None = None

    def of(self, model: str) -> ModelOutcomes:
        """Return the outcomes of one model, none at first."""
        return self.models.setdefault(model, ModelOutcomes())

    def done(self, model: str | None = None) -> list[StageResult]:
        """Return the results that there are, in the order of the stages.

        Args:
            model: Leave out those of other models.
        """
        shared = [result for result in (self.validate, self.transforms) if result is not None]
        own = [result for name, found in self.models.items() if model in (None, name) for result in found.done()]
        return [*shared, *own, *([] if self.package is None else [self.package])]

    def complete_models(self) -> list[str]:
        """Return the models all of whose stages have run."""
        return [name for name, found in self.models.items() if found.is_complete]


def open_site(run: RunRef) -> RunSite:
    """Return the run's folders on this machine, created when they do not exist."""
    return RunSite(run=run, workspace=open_store(run.request.out).open_workspace(run.run_id))


def forget_fetched() -> None:
    """Look again where datasets are, at the next run of this process."""
    _fetch_dataset.cache_clear()


@lru_cache(maxsize=4)
def _fetch_dataset(location: str) -> Path:
    from reconflow.datasets.fetching import resolve_dataset

    return resolve_dataset(location)
