"""Which locations are understood, which are allowed, and whose credentials are used for which."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconflow.errors import ReconflowError, ValidationFailedError
from reconflow.storage import StorageAccess, check_allowed, open_store, using_access
from reconflow.storage.access import access_for
from reconflow.storage.locations import ROOTS_VARIABLE, is_inside, parse_s3

PARTS = st.text(alphabet="abz09._-% ", min_size=1, max_size=6).filter(lambda part: part.strip(".") != "")


def is_allowed(location: str) -> bool:
    try:
        check_allowed(location)
    except ValidationFailedError:
        return False
    return True


def test_without_roots_everything_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROOTS_VARIABLE, raising=False)
    assert is_allowed("/etc")
    assert is_allowed("s3://any-bucket/prefix")


def test_an_empty_list_of_roots_allows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ROOTS_VARIABLE, "")
    assert not is_allowed(str(tmp_path))
    assert not is_allowed("s3://bucket")


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("s3://bucket/data", True),
        ("s3://bucket/data/", True),
        ("s3://bucket/data/set/one", True),
        ("s3://bucket/data-evil", False),
        ("s3://bucket/data-evil/x", False),
        ("s3://bucket/dat", False),
        ("s3://bucket", False),
        ("s3://bucket/", False),
        ("s3://bucket-2/data", False),
        ("s3://bucket.evil.org/data", False),
        ("s3://other@bucket/data", False),
        ("s3://bucket:80/data", False),
        ("s3://bucket//data/x", False),
        ("s3://bucket/data/../secret", False),
        ("s3://bucket/data/./x", False),
        ("s3://bucket/data/%2e%2e/secret", False),
        ("s3://bucket/data%2F..%2Fsecret", False),
        ("s3://bucket/data\\..\\secret", False),
        ("s3://bucket/data/x\n", False),
        ("S3://bucket/data/x", True),
        ("s3a://bucket/data/x", False),
        ("file:///etc", False),
        ("block://name", False),
        ("https://bucket/data", False),
        ("s3://whole/anything/at all", True),
    ],
)
def test_only_what_lies_below_a_root_is_allowed(monkeypatch: pytest.MonkeyPatch, location: str, allowed: bool) -> None:
    monkeypatch.setenv(ROOTS_VARIABLE, "s3://bucket/data, s3://whole,/srv/reconflow")
    assert is_allowed(location) is allowed


def test_local_folders_are_compared_after_links_and_dots_are_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, outside = tmp_path / "data", tmp_path / "data-evil"
    for folder in (root / "set", outside):
        folder.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (tmp_path / "entrance").symlink_to(root)
    monkeypatch.setenv(ROOTS_VARIABLE, f"s3://bucket{os.pathsep}{root}" if os.pathsep == ":" else str(root))
    monkeypatch.chdir(root)
    assert all(map(is_allowed, (str(root), f"{root}/set", "set", f"{root}/new/one", f"{tmp_path}/entrance/set")))
    for location in (str(outside), f"{root}/../data-evil", f"{root}/link", f"{root}/link/new", "..", "/", "~", "\0"):
        assert not is_allowed(location), location
    with pytest.raises(ValidationFailedError):
        open_store(outside)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(PARTS, max_size=3), st.lists(st.one_of(PARTS, st.sampled_from(["..", ".", ""])), max_size=5))
def test_whatever_is_allowed_has_the_root_as_its_first_parts(
    monkeypatch: pytest.MonkeyPatch, root: list[str], tail: list[str]
) -> None:
    root = [part for part in root if "," not in part and part.strip() == part]
    monkeypatch.setenv(ROOTS_VARIABLE, "/".join(["s3://bucket", *root]))
    location = "/".join(["s3://bucket", *tail])
    try:
        if not is_allowed(location):
            return
    except ReconflowError:
        return
    key_parts = location.removeprefix("s3://bucket").strip("/").split("/")
    assert key_parts[: len(root)] == root or not root
    assert ".." not in key_parts


@settings(max_examples=200, deadline=None)
@given(st.lists(PARTS.filter(lambda part: part.isprintable()), max_size=4))
def test_a_location_survives_being_written_and_read(parts: list[str]) -> None:
    uri = "/".join(["s3://my.bucket-1", *parts])
    try:
        location = parse_s3(uri)
    except ValidationFailedError:
        assert "%" in uri
        return
    assert parse_s3(location.uri) == location
    assert location.uri == uri
    assert is_inside(location, parse_s3("s3://my.bucket-1"))


def test_a_granted_access_holds_below_its_prefix_only_and_the_longest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    wide, narrow = StorageAccess(key="wide", secret="1"), StorageAccess(key="narrow", secret="2")
    with using_access(narrow, "s3://bucket/data/private"), using_access(wide, "s3://bucket/data"):
        assert access_for("s3://bucket/data/x").key == "wide"
        assert access_for("s3://bucket/data/private/x").key == "narrow"
        assert access_for("s3://bucket/data-evil").key == "from-environment"
        assert access_for("s3://other/data").key == "from-environment"
    assert access_for("s3://bucket/data/x").key == "from-environment"


def test_a_secret_is_not_shown_by_repr() -> None:
    shown = repr(StorageAccess(key="the-key", secret="the-secret", token="the-token", region="eu-west-1"))
    assert "the-" not in shown
    assert "eu-west-1" in shown


def test_a_child_process_gets_the_same_access(monkeypatch: pytest.MonkeyPatch) -> None:
    access = StorageAccess("http://localhost:1", "eu-west-1", "key", "secret", "token")
    script = "from reconflow.storage.access import access_for; a = access_for('s3://bucket'); print(a.secret, a.region)"
    environment = {"PATH": os.environ["PATH"], **access.environment()}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["secret", "eu-west-1"]


@pytest.mark.parametrize("uri", ["gs://bucket/x", "block://name", "http://host/x"])
def test_other_kinds_of_places_are_refused_by_name(uri: str) -> None:
    with pytest.raises(ValidationFailedError, match="cannot be stored"):
        open_store(uri)
