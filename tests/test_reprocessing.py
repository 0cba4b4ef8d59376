"""Which datasets need another run: case by case, and random histories against the rules written out plainly."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconflow.datasets.sources import DatasetSource, describe_source, find_datasets, location_mark
from reconflow.reconviagen.options import RandomWeights
from reconflow.reprocessing import Decision, Verdict, Wanted, decide, decide_all, submission_key, wanted_of
from reconflow.request import ModelName, RunRequest
from reconflow.run_records import RunRecord

LOCATION = "s3://bucket/sets/boot"
OPTIONS = wanted_of(RunRequest(dataset="-", out="-")).options
VERSIONS = {"reconflow": "2", "nvdiffrec": "1"}
WANTED = Wanted(OPTIONS, VERSIONS, "s3://bucket/out")
NOW = DatasetSource(location=LOCATION, listing="now")


def run(run_id: str = "aaaaaaaa", **changes: Any) -> RunRecord:
    """A completed run of the dataset as it is, made as wanted, but for the changes."""
    known: dict[str, Any] = {
        "run_id": run_id,
        "completed": True,
        "location": LOCATION,
        "listing": "now",
        "content": "content-now",
        "options": OPTIONS,
        "versions": VERSIONS,
    }
    return RunRecord(**(known | changes))


def decided(*runs: RunRecord, **options: Any) -> Decision:
    """Decide for the dataset, which cannot be read."""
    return decide(NOW, runs, WANTED, read_content=lambda location: None, **options)


def test_a_dataset_without_runs_is_new() -> None:
    assert decided().verdict is Verdict.NEW


def test_a_dataset_whose_run_completed_as_wanted_is_up_to_date() -> None:
    decision = decided(run())
    assert (decision.verdict, decision.run_id) == (Verdict.UP_TO_DATE, "aaaaaaaa")


def test_a_dataset_whose_files_differ_from_those_of_every_run_is_changed() -> None:
    decision = decided(run(listing="before", content="content-before"))
    assert decision.verdict is Verdict.CHANGED
    assert "aaaaaaaa" in decision.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": OPTIONS | {"preset": "high"}}, "preset (high instead of standard)"),
        ({"versions": VERSIONS | {"reconflow": "1"}}, "version of reconflow (1 instead of 2)"),
        ({"versions": VERSIONS | {"nvdiffrec": "0"}}, "version of nvdiffrec (0 instead of 1)"),
    ],
)
def test_other_options_or_versions_make_a_result_outdated_and_are_named(changes: dict[str, Any], said: str) -> None:
    decision = decided(run(**changes))
    assert decision.verdict is Verdict.OUTDATED
    assert said in decision.reason


def test_where_and_on_what_a_run_computed_does_not_make_it_outdated() -> None:
    assert decided(run(options=OPTIONS | {"device": "cuda"})).verdict is Verdict.UP_TO_DATE


@pytest.mark.parametrize(
    ("made_with", "installed", "verdict"),
    [
        ({"reconviagen": "old" * 10}, {"reconviagen": "new" * 10}, Verdict.OUTDATED),
        ({"reconviagen": "new" * 10}, {"reconviagen": "new" * 10}, Verdict.UP_TO_DATE),
        ({}, {"reconviagen": "new" * 10}, Verdict.UP_TO_DATE),
        ({"reconviagen": "old" * 10}, {}, Verdict.UP_TO_DATE),
    ],
)
def test_other_weights_make_a_result_outdated_and_unknown_ones_do_not(
    made_with: dict[str, str], installed: dict[str, str], verdict: Verdict
) -> None:
    decision = decide(NOW, [run(weights=made_with)], replace(WANTED, weights=installed))
    assert decision.verdict is verdict
    assert ("weights of reconviagen (oldoldoldold instead of newnewnewnew)" in decision.reason) is (
        verdict is Verdict.OUTDATED
    )


def test_new_weights_are_new_work_to_submit() -> None:
    decision = decided(run())
    assert submission_key(decision, replace(WANTED, weights={"reconviagen": "new"}), 0) != submission_key(
        decision, WANTED, 0
    )


def test_a_walk_knows_random_weights_by_their_name_and_no_others_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path))
    request = RunRequest(dataset="-", out="-", model=ModelName.RECONVIAGEN)
    assert wanted_of(request).weights == {}
    assert wanted_of(request.model_copy(update={"random_weights": RandomWeights.TINY})).weights == {
        "reconviagen": "random tiny"
    }


def test_an_option_that_an_older_version_did_not_know_counts_with_its_default() -> None:
    older = {name: value for name, value in OPTIONS.items() if name != "fov_deg"}
    assert decided(run(options=older)).verdict is Verdict.UP_TO_DATE


def test_options_that_no_longer_exist_make_a_result_outdated() -> None:
    assert decided(run(options={"flavour": "mint"})).verdict is Verdict.OUTDATED


def test_failures_are_counted_until_the_last_attempt() -> None:
    failures = [run(f"failed{number:02}", completed=False) for number in range(3)]
    first, second, third = (decided(*failures[: number + 1], max_attempts=3) for number in range(3))
    assert (first.verdict, first.attempt) == (Verdict.FAILED, 1)
    assert (second.verdict, second.attempt) == (Verdict.FAILED, 2)
    assert third.verdict is Verdict.GIVEN_UP


def test_a_new_version_gives_a_failed_dataset_new_attempts() -> None:
    failures = [run(f"failed{n:02}", completed=False, versions=VERSIONS | {"reconflow": "1"}) for n in range(9)]
    decision = decided(*failures)
    assert (decision.verdict, decision.attempt) == (Verdict.FAILED, 0)


def test_a_run_that_failed_before_its_model_was_loaded_counts_for_every_version_of_the_model() -> None:
    refused = run(completed=False, content=None, versions={"reconflow": "2"})
    assert decided(refused).attempt == 1


def test_an_expired_result_is_not_made_again_by_itself() -> None:
    assert decided(run(expired=True)).verdict is Verdict.EXPIRED
    assert decided(run(expired=True), run("bbbbbbbb")).verdict is Verdict.UP_TO_DATE


def test_touched_but_equal_files_are_recognised_where_they_can_be_read() -> None:
    touched = run(listing="before", content="same")
    assert decide(NOW, [touched], WANTED, read_content=lambda location: "same").verdict is Verdict.UP_TO_DATE
    assert decide(NOW, [touched], WANTED, read_content=lambda location: "other").verdict is Verdict.CHANGED


def test_nothing_is_read_when_the_listing_decides() -> None:
    def refuse(location: str) -> str:
        raise AssertionError(location)

    assert decide(NOW, [run()], WANTED, read_content=refuse).verdict is Verdict.UP_TO_DATE


def test_runs_of_other_places_do_not_count() -> None:
    decisions = decide_all([NOW], [run(location="s3://bucket/sets/other")], WANTED)
    assert [decision.verdict for decision in decisions] == [Verdict.NEW]


def test_keys_are_equal_for_equal_work_and_for_nothing_else() -> None:
    decision = decided()
    key = submission_key(decision, WANTED, 0)
    assert key == submission_key(decided(), Wanted(dict(reversed(OPTIONS.items())), VERSIONS, WANTED.out), 0)
    other_content = Decision(DatasetSource(location=LOCATION, listing="later"), Verdict.NEW, "")
    others = {
        submission_key(decision, WANTED, 1),
        submission_key(other_content, WANTED, 0),
        submission_key(decision, Wanted(OPTIONS | {"seed": 1}, VERSIONS, WANTED.out), 0),
        submission_key(decision, Wanted(OPTIONS, VERSIONS | {"reconflow": "3"}, WANTED.out), 0),
        submission_key(decision, Wanted(OPTIONS, VERSIONS, "s3://bucket/elsewhere"), 0),
    }
    assert len(others | {key}) == 6


histories = st.lists(
    st.builds(
        lambda completed, expired, seen, seed, version: run(
            completed=completed,
            expired=expired,
            listing=seen,
            content=f"content-{seen}",
            options=OPTIONS | {"seed": seed},
            versions=VERSIONS | {"reconflow": version},
        ),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["now", "before"]),
        st.sampled_from([0, 1]),
        st.sampled_from(["1", "2"]),
    ),
    max_size=6,
)


@given(histories, st.integers(1, 3))
def test_any_history_of_runs_is_decided_by_the_rules(history: list[RunRecord], max_attempts: int) -> None:
    runs = [record.model_copy(update={"run_id": f"run{number:05}"}) for number, record in enumerate(history)]
    decision = decided(*runs, max_attempts=max_attempts)
    seen_now = [record for record in runs if record.listing == "now"]
    as_wanted = [record for record in seen_now if record.options == OPTIONS and record.versions == VERSIONS]
    if not runs:
        expected = Verdict.NEW
    elif not seen_now:
        expected = Verdict.CHANGED
    elif any(record.completed and not record.expired for record in as_wanted):
        expected = Verdict.UP_TO_DATE
    elif any(record.completed for record in as_wanted):
        expected = Verdict.EXPIRED
    elif as_wanted:
        expected = Verdict.FAILED if len(as_wanted) < max_attempts else Verdict.GIVEN_UP
    elif any(record.completed for record in seen_now):
        expected = Verdict.OUTDATED
    else:
        expected = Verdict.FAILED
    assert decision.verdict is expected
    assert decision.attempt == len(as_wanted)


def write_files(root: Path, *names: str) -> None:
    """Write small files that only a listing looks at."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_datasets_are_found_at_any_depth_and_results_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    write_files(
        tmp_path, "boot/multi_views/front.png", "boot/ground_truth/transforms.json", "a/b/posed/transforms.json"
    )
    write_files(tmp_path, "out/runs/abcdefgh/transforms.json", "out/runs/abcdefgh/manifest.json")
    write_files(tmp_path, ".work/x/transforms.json", "notes/readme.txt")
    found = [Path(source.location).relative_to(tmp_path).as_posix() for source in find_datasets(str(tmp_path))]
    assert found == ["a/b/posed", "boot"]
    assert find_datasets(str(tmp_path / "boot")) == [describe_source(str(tmp_path / "boot"))]


def test_a_listing_changes_with_what_a_run_reads_and_with_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "boot"
    write_files(root, "multi_views/front.png", "multi_views/back.png")
    first = describe_source(str(root))
    write_files(root, "notes.txt", "out/runs/abcdefgh/manifest.json", "out/runs/abcdefgh/transforms.json")
    assert describe_source(str(root)) == first
    os.utime(root / "multi_views" / "front.png", ns=(1, 1))
    assert describe_source(str(root)).listing != first.listing
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy2)
    assert describe_source(str(tmp_path / "copy")).listing == describe_source(str(root)).listing
    (root / "multi_views" / "back.png").unlink()
    assert describe_source(str(root)).listing != describe_source(str(tmp_path / "copy")).listing


def test_a_manifest_names_a_folder_without_telling_its_path() -> None:
    assert location_mark("s3://bucket/sets/shoe") == "s3://bucket/sets/shoe"
    marks = {location_mark("/home/someone/shoe"), location_mark("/home/someone/boot")}
    assert len(marks) == 2
    assert not any("someone" in mark for mark in marks)
