"""Files appear whole or not at all, under names that are safe."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconflow.errors import DiskFullError, JobNotFoundError, ValidationFailedError
from reconflow.outputs.files import replacing, sha256_of, write_bytes, write_json
from reconflow.outputs.runs import RunLayout, check_run_id, new_run_id, safe_name


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail_halfway() -> None:
        with replacing(path) as stream:
            stream.write(b"new, but")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(DiskFullError) as caught:
        write_bytes(tmp_path / "a.bin", b"x")
    assert "a.bin" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_has_sorted_keys_and_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))


def test_run_ids_are_valid_and_differ() -> None:
    ids = {new_run_id() for _ in range(200)}
    assert len(ids) == 200
    for run_id in ids:
        assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("text", ["", "abc", "ABCDEFGH", "../../ab", "abcd1234\n", "abcd12345", "äbcd1234"])
def test_what_is_no_run_id_is_no_run(text: str) -> None:
    with pytest.raises(JobNotFoundError):
        check_run_id(text)


@given(st.text(max_size=40))
def test_any_view_name_becomes_a_plain_file_name(text: str) -> None:
    name = safe_name(text)
    assert name.isascii()
    assert name[0].isalnum()
    assert not set(name) & set("/\\. \0")
    assert safe_name(name) == name


def test_a_model_name_cannot_leave_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailedError):
        RunLayout(tmp_path, "abcd1234", "../x")
