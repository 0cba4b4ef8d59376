"""What a walk over many datasets is asked for, and which it picks: the form behind `reprocess`. Imports no Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reconflow.errors import ValidationFailedError
from reconflow.nvdiffrec.options import Preset
from reconflow.reprocessing import MAX_ATTEMPTS, Decision, Verdict
from reconflow.request import ModelName, RunRequest, make_request

MAX_IN_FLIGHT: Final = 200
_FIXED: Final = frozenset({"dataset", "out", "model", "preset"})


class ReprocessRequest(BaseModel):
    """Bring the results of all datasets below a place up to date."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Reprocessing")

    datasets: str = Field(
        min_length=1,
        title="Datasets",
        description="Folder, s3:// address or block://NAME below which the datasets lie.",
        examples=["s3://bucket/datasets"],
    )
    out: str = Field(
        "out",
        min_length=1,
        title="Results",
        description="The store that is compared with them, and where new results go.",
    )
    dry_run: bool = Field(default=False, title="Dry run", description="Decide and report only; start nothing.")
    model: ModelName = Field(ModelName.NVDIFFREC, title="Model", description="Which reconstruction model runs.")
    preset: Preset = Field(Preset.STANDARD, title="Preset", description="How much work to spend on each dataset.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        title="Further options",
        description='Any other field of a reconstruction, as JSON: {"fov_deg": 60, "texture_size": 2048}.',
    )
    redo_new: bool = Field(default=True, title="New", description="Run datasets that have no run yet.")
    redo_changed: bool = Field(default=True, title="Changed", description="Run datasets whose files have changed.")
    redo_failed: bool = Field(default=True, title="Failed", description="Run datasets again that failed.")
    redo_outdated: bool = Field(
        default=True, title="Outdated", description="Run datasets again that were made with other options or versions."
    )
    redo_expired: bool = Field(
        default=False, title="Expired", description="Run datasets again whose results the retention policy removed."
    )
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        MAX_ATTEMPTS,
        title="Attempts",
        description="Failures of the same content, options and versions before giving up.",
    )
    limit: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, title="Runs per walk", description="Start at most so many; the next walk goes on. All when left out."
    )
    in_flight: Annotated[int, Field(ge=1, le=MAX_IN_FLIGHT)] = Field(
        4, title="Runs at once", description="So many submitted runs may be unfinished at any time."
    )
    wait_hours: Annotated[float, Field(gt=0, le=168)] = Field(
        12.0, title="Hours to wait", description="The walk ends after so long; what it submitted goes on."
    )
    deployment: str = Field(
        "reconstruct/on-demand",
        pattern=r"^[^/]+/[^/]+$",
        title="Deployment",
        description="Which deployment runs the reconstructions, as flow/deployment.",
    )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        """Refuse options that no reconstruction has, before anything is walked."""
        taken = _FIXED & self.options.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} has a field of its own.")
        try:
            self.request_for("-")
        except ValidationFailedError as error:
            raise ValueError(error.message) from None
        return self

    def request_for(self, dataset: str) -> RunRequest:
        """Return the reconstruction of one dataset.

        Args:
            dataset: Its location.

        Raises:
            ValidationFailedError: The options are not usable.
        """
        return make_request(dataset=dataset, out=self.out, model=self.model, preset=self.preset, **self.options)

    def verdicts(self) -> frozenset[Verdict]:
        """Return what gets a run."""
        switches = {
            Verdict.NEW: self.redo_new,
            Verdict.CHANGED: self.redo_changed,
            Verdict.FAILED: self.redo_failed,
            Verdict.OUTDATED: self.redo_outdated,
            Verdict.EXPIRED: self.redo_expired,
        }
        return frozenset(verdict for verdict, on in switches.items() if on)

    def choose(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Return the datasets that get a run in this walk: new ones first, outdated and expired ones last."""
        order, wanted = list(Verdict), self.verdicts()
        chosen = [decision for decision in decisions if decision.verdict in wanted]
        chosen.sort(key=lambda decision: (order.index(decision.verdict), decision.source.location))
        return chosen[: self.limit]
