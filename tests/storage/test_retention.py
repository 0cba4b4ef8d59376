"""What expires under which rule, and that nothing unfinished or pinned ever does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import publish_run, write_run, written

from reconflow.errors import ErrorCode, JobExpiredError
from reconflow.retention import ExpiryDecision, RetentionRules, apply_expiry, plan_expiry
from reconflow.storage import ArtifactStore, LocalStore, PublishedRun, open_store

NOW = datetime(2030, 6, 1, tzinfo=UTC)


class AgedStore(LocalStore):
    """A local store whose runs were published a given number of days before NOW."""

    def published_runs(self) -> list[PublishedRun]:
        ages = json.loads((self.folder / "ages.json").read_text())
        return [replace(run, published_at=NOW - timedelta(days=ages[run.run_id])) for run in super().published_runs()]


def aged_store(folder: Path, ages: dict[str, float], tags: dict[str, list[str]] | None = None) -> AgedStore:
    store = AgedStore(folder)
    for run_id in ages:
        record = {"orchestration": {"tags": (tags or {}).get(run_id, [])}}
        publish_run(store, run_id, {"run.json": json.dumps(record).encode()})
    (folder / "ages.json").write_text(json.dumps(ages))
    return store


def expiring(decisions: list[ExpiryDecision]) -> dict[str, str]:
    return {decision.run_id: decision.reason for decision in decisions if decision.expires}


def test_without_rules_nothing_expires(tmp_path: Path) -> None:
    store = aged_store(tmp_path, {"aaaaaaaa": 9999})
    assert not expiring(plan_expiry(store, RetentionRules(), NOW))


def test_runs_expire_by_age_with_a_reason_and_only_when_applied(tmp_path: Path) -> None:
    store = aged_store(tmp_path, {"aaaaaaaa": 31, "bbbbbbbb": 29, "cccccccc": 400})
    rules = RetentionRules(max_age_days=30)
    plan = plan_expiry(store, rules, NOW)
    assert [decision.run_id for decision in plan] == ["cccccccc", "aaaaaaaa", "bbbbbbbb"]
    assert expiring(plan) == dict.fromkeys(("aaaaaaaa", "cccccccc"), "older than 30 days")
    assert len(store.run_ids()) == 3
    outcome = apply_expiry(store, plan, rules)
    assert set(outcome.expired) == {"aaaaaaaa", "cccccccc"}
    assert store.run_ids() == ["bbbbbbbb"]
    with pytest.raises(JobExpiredError, match="older than 30 days"):
        store.read_manifest("aaaaaaaa")


def test_the_newest_of_each_tag_stay(tmp_path: Path) -> None:
    tags = {"aaaaaaaa": ["nightly"], "bbbbbbbb": ["nightly", "draft"], "cccccccc": ["nightly"], "dddddddd": ["draft"]}
    store = aged_store(tmp_path, {"aaaaaaaa": 4, "bbbbbbbb": 3, "cccccccc": 2, "dddddddd": 1, "eeeeeeee": 9}, tags)
    assert expiring(plan_expiry(store, RetentionRules(keep_per_tag={"nightly": 1}), NOW)).keys() == {
        "aaaaaaaa",
        "bbbbbbbb",
    }
    assert expiring(plan_expiry(store, RetentionRules(keep_per_tag={"nightly": 2, "draft": 1}), NOW)) == {
        "aaaaaaaa": "only the newest 2 runs tagged nightly are kept",
        "bbbbbbbb": "only the newest 1 runs tagged draft are kept",
    }


def test_pinned_and_unfinished_runs_stay_however_old(tmp_path: Path) -> None:
    store = aged_store(tmp_path, {"aaaaaaaa": 500, "bbbbbbbb": 500})
    unfinished = write_run(store, "cccccccc")
    (unfinished.root / "manifest.json").unlink()
    store.pin("aaaaaaaa")
    rules = RetentionRules(max_age_days=1)
    plan = plan_expiry(store, rules, NOW)
    assert {decision.run_id: decision.expires for decision in plan} == {"aaaaaaaa": False, "bbbbbbbb": True}
    store.pin("bbbbbbbb")
    assert apply_expiry(store, plan, rules).kept == ("bbbbbbbb",)
    assert store.run_ids() == ["aaaaaaaa", "bbbbbbbb"]
    assert (unfinished.root / "run.json").exists()


def test_one_run_that_cannot_be_removed_does_not_stop_the_others(tmp_path: Path) -> None:
    store = aged_store(tmp_path, {"aaaaaaaa": 500, "bbbbbbbb": 500})
    (tmp_path / "runs" / "aaaaaaaa" / "manifest.json").write_text("{")
    rules = RetentionRules(max_age_days=1)
    outcome = apply_expiry(store, plan_expiry(store, rules, NOW), rules)
    assert outcome.expired == ("bbbbbbbb",)
    assert set(outcome.failed) == {"aaaaaaaa"}


def test_one_run_that_the_system_does_not_let_go_does_not_stop_the_others(tmp_path: Path) -> None:
    store = aged_store(tmp_path, {"aaaaaaaa": 500, "bbbbbbbb": 500})
    (tmp_path / "expired" / "aaaaaaaa.json").mkdir(parents=True)
    rules = RetentionRules(max_age_days=1)
    outcome = apply_expiry(store, plan_expiry(store, rules, NOW), rules)
    assert outcome.expired == ("bbbbbbbb",)
    assert outcome.failed["aaaaaaaa"].code is ErrorCode.STORAGE_UNREACHABLE
    assert str(tmp_path) not in str(outcome.failed["aaaaaaaa"])


def test_a_plan_is_applied_to_a_bucket_and_old_stage_results_go(bucket: str, tmp_path: Path) -> None:
    store: ArtifactStore = open_store(f"s3://{bucket}/results")
    for run_id in ("aaaaaaaa", "bbbbbbbb"):
        publish_run(store, run_id, {"run.json": b'{"orchestration": {"tags": ["nightly"]}}'})
    store.save_stage("infer", "key", {}, written(tmp_path, state=b"x"))
    rules = RetentionRules(keep_per_tag={"nightly": 1}, stages_days=30, leftovers_days=2)
    outcome = apply_expiry(store, plan_expiry(store, rules, datetime.now(UTC)), rules)
    assert len(outcome.expired) == len(store.run_ids()) == 1
    assert outcome.swept.stages == 0
    assert store.find_stage("infer", "key", {}) is not None


class ListedStore:
    """Runs in a list; enough for planning."""

    def __init__(self, ages: list[float], pinned: set[int]) -> None:
        self.runs = [PublishedRun(f"{n:08d}", NOW - timedelta(days=age)) for n, age in enumerate(ages)]
        self.pinned = frozenset(f"{n:08d}" for n in pinned)

    def published_runs(self) -> list[PublishedRun]:
        return self.runs

    def pinned_runs(self) -> frozenset[str]:
        return self.pinned


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 100), max_size=20), st.sets(st.integers(0, 19)), st.floats(0.1, 90))
def test_exactly_the_old_unpinned_runs_expire(ages: list[float], pinned: set[int], limit: float) -> None:
    plan = plan_expiry(ListedStore(ages, pinned), RetentionRules(max_age_days=limit), NOW)  # type: ignore[arg-type]
    wanted = {n for n, age in enumerate(ages) if timedelta(days=age) > timedelta(days=limit) and n not in pinned}
    assert {int(decision.run_id) for decision in plan if decision.expires} == wanted
    assert [d.published_at for d in plan] == sorted(d.published_at for d in plan)
