"""How long results stay: which runs a set of rules lets expire, and letting them. Never a run unfinished or pinned.

A run's tags are those it was started with, as its `run.json` records them, and always `dataset-<name>` and its model.
Nothing here knows when or by whom it is called; `plan_expiry` alone is the dry run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from reconflow.errors import IncompleteResultsError, JobExpiredError, JobNotFoundError, JobNotReadyError, ReconflowError
from reconflow.progress import OnProgress, ignore_progress
from reconflow.storage import ArtifactStore, PublishedRun, Sweepings

_THREADS: Final = 16
_DAY_S: Final = 86_400.0
_GONE: Final = (JobExpiredError, JobNotFoundError, JobNotReadyError)


class RetentionRules(BaseModel, frozen=True, extra="forbid"):
    """What expires; a rule that is left out lets nothing expire."""

    max_age_days: Annotated[float, Field(gt=0)] | None = Field(
        None, title="Age", description="Runs published longer ago expire, days."
    )
    keep_per_tag: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        title="Newest per tag",
        description="How many of the newest runs with a tag stay; a run that is over the number for any tag expires.",
    )
    keep_per_dataset: Annotated[int, Field(ge=0)] | None = Field(
        None, title="Newest per dataset", description="The same for every tag `dataset-...` that the runs have."
    )
    stages_days: Annotated[float, Field(gt=0)] | None = Field(
        None, title="Stage results", description="Kept stage results made longer ago are removed, days."
    )
    leftovers_days: Annotated[float, Field(gt=0)] | None = Field(
        None, title="Leftovers", description="Unfinished uploads and temporary files older than this are removed, days."
    )


@dataclass(frozen=True)
class ExpiryDecision:
    """What happens to a published run, and why.

    Attributes:
        run_id: The run.
        published_at: When it was.
        expires: Whether it is removed.
        reason: One clause for people; of a run that stays, what protects it, or empty.
        tags: The run's tags; empty when no rule asks for them.
    """

    run_id: str
    published_at: datetime
    expires: bool
    reason: str
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExpiryOutcome:
    """What applying a plan did.

    Attributes:
        expired: The runs that were removed.
        kept: Runs that were to be removed and had become pinned, or had gone, in the meantime.
        failed: Why a run could not be removed, by run.
        swept: What else was removed.
    """

    expired: tuple[str, ...]
    kept: tuple[str, ...]
    failed: Mapping[str, ReconflowError]
    swept: Sweepings


def plan_expiry(store: ArtifactStore, rules: RetentionRules, now: datetime) -> list[ExpiryDecision]:
    """Decide about every published run, oldest first; changes nothing.

    Args:
        store: Where the runs are.
        rules: What expires.
        now: The time that ages are counted from, with a time zone.

    Raises:
        StorageUnreachableError, StorageRefusedError: The store cannot be read.
    """
    runs = sorted(store.published_runs(), key=lambda run: (run.published_at, run.run_id))
    pinned = store.pinned_runs()
    tags = _tags_of(store, runs) if rules.keep_per_tag or rules.keep_per_dataset is not None else {}
    surplus = _surplus(runs, tags, _kept_counts(rules, tags))
    decisions = []
    for run in runs:
        reason = _age_reason(run, rules.max_age_days, now) or surplus.get(run.run_id, "")
        decision = ExpiryDecision(run.run_id, run.published_at, bool(reason), reason, tags.get(run.run_id, frozenset()))
        if reason and run.run_id in pinned:
            decision = replace(decision, expires=False, reason="pinned")
        decisions.append(decision)
    return decisions


def apply_expiry(
    store: ArtifactStore,
    decisions: Sequence[ExpiryDecision],
    rules: RetentionRules,
    on_progress: OnProgress = ignore_progress,
) -> ExpiryOutcome:
    """Remove the runs that a plan lets expire, and what the rules sweep; one that fails does not stop the others.

    Args:
        store: Where the runs are.
        decisions: From `plan_expiry`; pins are looked at again.
        rules: Those of the plan, for stage results and leftovers.
        on_progress: Called before each run, and before the sweep; may raise `Cancelled`.
    """
    pinned = store.pinned_runs()
    expired, kept, failed = list[str](), list[str](), dict[str, ReconflowError]()
    for number, decision in enumerate(decisions):
        if not decision.expires:
            continue
        on_progress(number, len(decisions), f"removing {decision.run_id}")
        if decision.run_id in pinned:
            kept.append(decision.run_id)
            continue
        try:
            store.delete_run(decision.run_id, decision.reason)
            expired.append(decision.run_id)
        except _GONE:
            kept.append(decision.run_id)
        except ReconflowError as error:
            failed[decision.run_id] = error
    on_progress(len(decisions), len(decisions), "sweeping")
    return ExpiryOutcome(tuple(expired), tuple(kept), failed, _sweep(store, rules))


def _sweep(store: ArtifactStore, rules: RetentionRules) -> Sweepings:
    leftovers, stages = Sweepings(), Sweepings()
    if rules.leftovers_days is not None:
        leftovers = store.sweep(rules.leftovers_days * _DAY_S)
    if rules.stages_days is not None:
        stages = store.sweep_stages(rules.stages_days * _DAY_S)
    return replace(leftovers, stages=stages.stages)


def _age_reason(run: PublishedRun, max_age_days: float | None, now: datetime) -> str:
    if max_age_days is None or now - run.published_at <= timedelta(days=max_age_days):
        return ""
    return f"older than {max_age_days:g} days"


def _kept_counts(rules: RetentionRules, tags: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """Return how many runs of each tag stay; what is said of a tag by name wins over what is said of all datasets."""
    if rules.keep_per_dataset is None:
        return rules.keep_per_tag
    datasets = {tag for own in tags.values() for tag in own if tag.startswith("dataset-")}
    return dict.fromkeys(sorted(datasets), rules.keep_per_dataset) | rules.keep_per_tag


def _surplus(
    runs: Sequence[PublishedRun], tags: Mapping[str, frozenset[str]], keep: Mapping[str, int]
) -> dict[str, str]:
    """Return the reason for each run that is not among the newest of a tag; `runs` are oldest first."""
    reasons: dict[str, str] = {}
    for tag, count in keep.items():
        tagged = [run.run_id for run in runs if tag in tags[run.run_id]]
        for run_id in tagged[: max(0, len(tagged) - count)]:
            reasons.setdefault(run_id, f"only the newest {count} runs tagged {tag} are kept")
    return reasons


def _tags_of(store: ArtifactStore, runs: Sequence[PublishedRun]) -> dict[str, frozenset[str]]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="tags") as pool:
        return dict(
            zip((run.run_id for run in runs), pool.map(lambda run: run_tags(store, run.run_id), runs), strict=True)
        )


def run_tags(store: ArtifactStore, run_id: str) -> frozenset[str]:
    """Return a published run's tags; none when its records are damaged or it just went, so that no count touches it.

    Args:
        store: Where it is.
        run_id: The run.
    """
    try:
        facts = store.read_manifest(run_id).facts
        record: Any = json.loads(store.read_file(run_id, "run.json"))
    except (*_GONE, IncompleteResultsError, ValueError):
        return frozenset()
    own = set() if facts is None else {f"dataset-{facts.dataset_name}", facts.model}
    started_with = record.get("orchestration", {}).get("tags", ()) if isinstance(record, dict) else ()
    return frozenset(own | {tag for tag in started_with if isinstance(tag, str)})
