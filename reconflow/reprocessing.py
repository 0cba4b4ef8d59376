"""Which datasets need another run: decided from listings and run records, without opening a picture. Starts nothing.

For each dataset, by the runs of the same location:

* `up to date`: a run completed with the same content, options and versions;
* `expired`: one did, and its results were removed by the retention policy;
* `failed`: runs with the same content, options and versions failed, fewer than the limit; `given up`: the limit;
* `outdated`: a run completed with the same content, but other options, versions or weights;
* `changed`: there are runs, none of them with this content; `new`: there are none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

import reconflow
from reconflow.datasets.sources import DatasetSource, canonical_location, content_digest, location_mark
from reconflow.models import model_version, recorded_weights
from reconflow.progress import OnProgress, ignore_progress
from reconflow.request import RunRequest
from reconflow.run_records import RunRecord

MAX_ATTEMPTS: Final = 3
_WITHOUT_EFFECT: Final = frozenset({"dataset", "out", "device", "weights"})
"""Fields of a request that say where and on what, not how. Which weights are there is compared by their digest."""
_UNKNOWN: Final = "unknown"
_MAX_NAMED: Final = 3
_DIGEST_SHOWN: Final = 12


class Verdict(StrEnum):
    """What a dataset needs; see the module."""

    NEW = "new"
    CHANGED = "changed"
    FAILED = "failed"
    OUTDATED = "outdated"
    GIVEN_UP = "given up"
    EXPIRED = "expired"
    UP_TO_DATE = "up to date"


@dataclass(frozen=True)
class Wanted:
    """How datasets are to be processed.

    Attributes:
        options: A request without dataset and output.
        versions: Of `reconflow` and the model.
        out: Where the results go.
        weights: By model, a digest of the weights that are installed here, where that is recorded.
    """

    options: dict[str, Any]
    versions: dict[str, str]
    out: str
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What one dataset needs, and why.

    Attributes:
        source: The dataset.
        verdict: What it needs.
        reason: A sentence for a person.
        attempt: How many runs of this content, with these options and versions, have ended before.
        run_id: The run that the verdict rests on, if there is one.
    """

    source: DatasetSource
    verdict: Verdict
    reason: str
    attempt: int = 0
    run_id: str | None = None


def wanted_of(request: RunRequest) -> Wanted:
    """Return how datasets are processed by a request like this one, with the versions and weights installed here.

    No weights are fetched or read: where their digest is not recorded they count as unknown.

    Args:
        request: Its dataset does not matter.
    """
    versions = {"reconflow": reconflow.__version__, **{name: model_version(name) for name in request.models()}}
    weights = {name: recorded_weights(name, request.options(name)) for name in request.models()}
    return Wanted(
        _effective(request.model_dump(mode="json")),
        versions,
        canonical_location(request.out),
        {name: digest for name, digest in weights.items() if digest},
    )


def decide_all(
    sources: Sequence[DatasetSource],
    records: Iterable[RunRecord],
    wanted: Wanted,
    max_attempts: int = MAX_ATTEMPTS,
    on_progress: OnProgress = ignore_progress,
) -> list[Decision]:
    """Decide for every dataset; see `decide`.

    Args:
        sources: The datasets.
        records: Of all runs in the store.
        wanted: How datasets are to be processed.
        max_attempts: So many failures of the same content, options and versions are the last.
        on_progress: Called before each dataset; may raise `Cancelled`.
    """
    by_location: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_location[record.location].append(record)
    decisions = []
    for number, source in enumerate(sources):
        on_progress(number, len(sources), "deciding")
        decisions.append(decide(source, by_location[location_mark(source.location)], wanted, max_attempts))
    return decisions


def decide(
    source: DatasetSource,
    runs: Sequence[RunRecord],
    wanted: Wanted,
    max_attempts: int = MAX_ATTEMPTS,
    read_content: Callable[[str], str | None] = content_digest,
) -> Decision:
    """Decide for one dataset.

    Args:
        source: The dataset as it is now.
        runs: The records of its location.
        wanted: How it is to be processed.
        max_attempts: So many failures of the same content, options and versions are the last.
        read_content: Returns the digest of a dataset's content where reading it is cheap; asked only when the listing
            is not one that a run has seen.
    """
    if not runs:
        return Decision(source, Verdict.NEW, "No run of this dataset is stored.")
    same = _with_same_content(source, runs, read_content)
    if not same:
        return Decision(source, Verdict.CHANGED, _runs_text(runs, "saw another content"), run_id=runs[-1].run_id)
    differences = {run.run_id: _differences(run, wanted) for run in same}
    equal = [run for run in same if not differences[run.run_id]]
    stored = [run for run in equal if run.completed and not run.expired]
    if stored:
        return Decision(
            source,
            Verdict.UP_TO_DATE,
            "A run with this content, these options and versions completed.",
            len(equal),
            stored[-1].run_id,
        )
    return _not_stored(source, same, equal, differences, max_attempts)


def _not_stored(
    source: DatasetSource,
    same: Sequence[RunRecord],
    equal: Sequence[RunRecord],
    differences: dict[str, list[str]],
    max_attempts: int,
) -> Decision:
    """Decide for content that runs have seen, none of which stored what is wanted."""
    expired = [run for run in equal if run.completed]
    if expired:
        return Decision(source, Verdict.EXPIRED, "Its results have expired.", len(equal), expired[-1].run_id)
    if equal:
        verdict = Verdict.FAILED if len(equal) < max_attempts else Verdict.GIVEN_UP
        return Decision(source, verdict, _runs_text(equal, "failed"), len(equal), equal[-1].run_id)
    completed = [run for run in same if run.completed]
    nearest = min(completed or same, key=lambda run: (len(differences[run.run_id]), run.run_id))
    verdict = Verdict.OUTDATED if completed else Verdict.FAILED
    reason = f"{'Made' if completed else 'Failed'} with another {'; '.join(differences[nearest.run_id])}."
    return Decision(source, verdict, reason, run_id=nearest.run_id)


def submission_key(decision: Decision, wanted: Wanted, attempt: int) -> str:
    """Return the idempotency key of a run: equal for equal work, whoever asks, however often.

    Args:
        decision: For the dataset.
        wanted: How it is processed.
        attempt: Which try of this work it is, from 0.
    """
    work: list[Any] = [decision.source.location, decision.source.listing, wanted.out, wanted.options, wanted.versions]
    if wanted.weights:
        work.append(wanted.weights)
    digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode("utf-8")).hexdigest()
    return f"reprocess-{digest[:32]}-{attempt}"


def count_verdicts(decisions: Iterable[Decision]) -> dict[str, int]:
    """Return how many datasets got each verdict, all verdicts named."""
    counted = Counter(decision.verdict for decision in decisions)
    return {verdict.value: counted[verdict] for verdict in Verdict}


def _with_same_content(
    source: DatasetSource, runs: Sequence[RunRecord], read_content: Callable[[str], str | None]
) -> list[RunRecord]:
    """Return the runs of the dataset as it is now: by its listing, else by its content where that can be read."""
    known = {run.content for run in runs if run.content is not None and run.listing == source.listing}
    if not any(run.listing == source.listing for run in runs):
        content = read_content(source.location)
        known = set() if content is None else {content}
    return [run for run in runs if run.listing == source.listing or run.content in known]


def _differences(run: RunRecord, wanted: Wanted) -> list[str]:
    """Say what a run was made with that is not what is wanted; what it, or this machine, does not know is none."""
    try:
        stored = _effective(RunRequest(dataset="-", out="-", **run.options).model_dump(mode="json"))
    except (ValidationError, TypeError):
        stored = run.options
    options = [
        f"{name} ({stored.get(name, _UNKNOWN)} instead of {value})"
        for name, value in wanted.options.items()
        if stored.get(name, _UNKNOWN) != value
    ]
    versions = [
        f"version of {name} ({run.versions[name]} instead of {version})"
        for name, version in wanted.versions.items()
        if run.versions.get(name, version) != version
    ]
    weights = [
        f"weights of {name} ({run.weights[name][:_DIGEST_SHOWN]} instead of {digest[:_DIGEST_SHOWN]})"
        for name, digest in wanted.weights.items()
        if run.weights.get(name, digest) != digest
    ]
    return options + versions + weights


def _effective(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}


def _runs_text(runs: Sequence[RunRecord], what: str) -> str:
    named = ", ".join(run.run_id for run in runs[-_MAX_NAMED:])
    return (
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} {what}: {named}{' ...' if len(runs) > _MAX_NAMED else ''}."
    )
