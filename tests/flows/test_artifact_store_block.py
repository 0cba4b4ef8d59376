"""A place as a block: its secret stays masked, and `block://NAME` means its location with its access."""

from __future__ import annotations

import os

import httpx
import pytest
from pydantic import SecretStr

from blocks.artifact_store import ArtifactStoreBlock, resolve_location, using_locations
from reconflow.errors import ValidationFailedError
from reconflow.storage.access import access_for

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module", autouse=True)
def _saved(prefect_server: None) -> None:
    ArtifactStoreBlock(
        uri="s3://team-bucket/results/",
        endpoint_url="http://storage.example:9000",
        region="eu-west-1",
        access_key_id="the-key",
        secret_access_key=SecretStr("the-secret"),
    ).save("team", overwrite=True)
    ArtifactStoreBlock(uri="s3://open-bucket").save("by-role", overwrite=True)
    ArtifactStoreBlock(uri="/srv/results").save("folder", overwrite=True)


def test_the_secret_is_masked_by_the_api_and_comes_back_to_the_flow() -> None:
    user, _, password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    answer = httpx.get(
        f"{os.environ['PREFECT_API_URL']}/block_types/slug/reconflow-artifact-store/block_documents/name/team",
        auth=(user, password),
    )
    answer.raise_for_status()
    assert "the-secret" not in answer.text
    assert answer.json()["data"]["uri"] == "s3://team-bucket/results/"
    access = resolve_location("block://team").access
    assert access is not None
    assert (access.key, access.secret, access.region) == ("the-key", "the-secret", "eu-west-1")
    assert "the-secret" not in repr(access)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("block://team", "s3://team-bucket/results"),
        ("block://team/", "s3://team-bucket/results"),
        ("block://team/sets/mug", "s3://team-bucket/results/sets/mug"),
        ("block://by-role/x", "s3://open-bucket/x"),
        ("block://folder/x", "/srv/results/x"),
        ("s3://any/where", "s3://any/where"),
        ("out", "out"),
    ],
)
def test_a_location_means_what_its_block_says(text: str, uri: str) -> None:
    assert resolve_location(text).uri == uri


@pytest.mark.parametrize(
    "text", ["block://", "block://nobody", "block://Team", "block://team/../other", "block://a/b:/"]
)
def test_unknown_blocks_and_paths_that_leave_them_are_refused(text: str) -> None:
    with pytest.raises(ValidationFailedError):
        resolve_location(text)


def test_the_access_of_a_block_holds_for_its_place_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    with using_locations("block://team/sets", "block://by-role", "out") as locations:
        assert locations == ("s3://team-bucket/results/sets", "s3://open-bucket", "out")
        assert access_for("s3://team-bucket/results/sets/mug").key == "the-key"
        assert access_for("s3://team-bucket/other").key == "from-environment"
        assert access_for("s3://open-bucket/x").key == "from-environment"
    assert access_for("s3://team-bucket/results/sets/mug").key == "from-environment"
