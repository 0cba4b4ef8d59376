"""`reconflow link` and `reconflow fetch` against a folder and a bucket."""

from __future__ import annotations

import json
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_runs import FILES, publish_run
from typer.testing import CliRunner, Result

from flows.cli import app
from reconflow.outputs.package import verify_package
from reconflow.storage import ArtifactStore

RUN = "abcd1234"


def reconflow(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def published(store: ArtifactStore) -> str:
    publish_run(store, RUN)
    return store.uri


def test_a_link_reads_the_file_and_says_when_it_ends(published: str) -> None:
    done = reconflow("link", RUN, "--out", published, "--file", "run.json", "--minutes", "5", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    with urllib.request.urlopen(answer["url"]) as stream:
        assert stream.read() == FILES["run.json"]
    if published.startswith("s3://"):
        left_s = (
            datetime.strptime(answer["ends_at"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC) - datetime.now(UTC)
        ).seconds
        assert 200 < left_s <= 300
        assert "X-Amz-Expires=300" in answer["url"]
    else:
        assert answer["ends_at"] is None


def test_without_a_file_the_link_is_to_the_archive(published: str) -> None:
    done = reconflow("link", RUN, "--out", published)
    assert done.exit_code == 0
    assert f"{RUN}.zip" in done.stdout
    assert ("Whoever has this link" in done.stderr) is published.startswith("s3://")


def test_a_fetched_run_is_whole(published: str, tmp_path: Path) -> None:
    done = reconflow("fetch", RUN, "--out", published, "--to", str(tmp_path / "here"))
    assert done.exit_code == 0, done.output
    verify_package(tmp_path / "here" / RUN)


@pytest.mark.parametrize("command", ["link", "fetch"])
def test_unknown_runs_are_told_apart_from_wrong_ids(published: str, command: str) -> None:
    for run, said in (("zzzz9999", "There is no run"), ("Abc", "is not a run id")):
        done = reconflow(command, run, "--out", published, "--json")
        assert done.exit_code == 1
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "JOB_NOT_FOUND"
        assert said in error["message"]
