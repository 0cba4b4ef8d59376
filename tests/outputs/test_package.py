"""The package: complete, equal for equal runs, written in the right order, and checked against its manifest."""

import hashlib
import json
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from reconflow.errors import IncompleteResultsError, JobNotReadyError
from reconflow.outputs import package
from reconflow.outputs.files import write_json
from reconflow.outputs.package import RunStatus, read_manifest, verify_package, write_package
from reconflow.outputs.runs import RunLayout
from tests.outputs.finished_run import FACTS, write_run
from tests.outputs.objects import labelled_box


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return write_run(tmp_path, "abcd1234", labelled_box(2), seconds=1.0)


def test_the_manifest_lists_every_file_with_its_hash(layout: RunLayout) -> None:
    write_package(layout, FACTS)
    listed = {entry.path: entry for entry in read_manifest(layout.root).files}
    on_disk = {path.relative_to(layout.root).as_posix() for path in layout.root.rglob("*") if path.is_file()}
    assert set(listed) == on_disk - {"manifest.json"}
    for name, entry in listed.items():
        data = (layout.root / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_manifest_names_the_libraries_that_numbers_depend_on(layout: RunLayout) -> None:
    versions = write_package(layout, FACTS).versions
    assert {name: versions[name] for name in ("numpy", "torch")} == {
        name: metadata.version(name) for name in ("numpy", "torch")
    }


def test_the_zip_holds_the_files_and_a_manifest_that_does_not_name_the_zip(layout: RunLayout) -> None:
    outer = write_package(layout, FACTS)
    with zipfile.ZipFile(layout.archive) as archive:
        assert archive.testzip() is None
        inner = json.loads(archive.read("manifest.json"))
        for name in archive.namelist():
            if name != "manifest.json":
                assert archive.read(name) == (layout.root / name).read_bytes()
                assert not name.startswith("/")
    assert [entry.path for entry in outer.files if entry.path not in {e["path"] for e in inner["files"]}] == [
        "abcd1234.zip"
    ]
    assert "abcd1234" not in json.dumps(inner)


def test_compressed_files_are_stored_and_text_is_deflated(layout: RunLayout) -> None:
    write_package(layout, FACTS)
    with zipfile.ZipFile(layout.archive) as archive:
        kinds = {info.filename: info.compress_type for info in archive.infolist()}
    assert kinds["nvdiffrec/mesh.glb"] == zipfile.ZIP_STORED
    assert kinds["nvdiffrec/mesh.obj"] == zipfile.ZIP_DEFLATED


def test_two_equal_runs_differ_only_where_the_manifest_says_so(tmp_path: Path) -> None:
    manifests = []
    for run_id, seconds in (("aaaa1111", 1.0), ("bbbb2222", 2.0)):
        layout = write_run(tmp_path, run_id, labelled_box(2), seconds)
        write_json(layout.root / "error.json", {"code": "QUALITY_THRESHOLD_FAILED", "run_id": run_id})
        write_package(layout, FACTS)
        with zipfile.ZipFile(layout.archive) as archive:
            manifests.append(json.loads(archive.read("manifest.json")))
    for manifest in manifests:
        varying = {entry["path"] for entry in manifest["files"] if entry["varies"]}
        assert varying == {"run.json", "report.html", "error.json"}
        for entry in manifest["files"]:
            if entry["varies"]:
                entry.pop("sha256"), entry.pop("size")
    assert manifests[0] == manifests[1]


def test_packing_the_same_files_twice_gives_the_same_bytes(layout: RunLayout) -> None:
    write_package(layout, FACTS)
    first = layout.archive.read_bytes(), layout.manifest.read_bytes()
    write_package(layout, FACTS)
    assert (layout.archive.read_bytes(), layout.manifest.read_bytes()) == first


def test_the_manifest_is_written_last_and_an_old_one_goes_first(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(layout, FACTS)

    def no_zip(*args: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(package, "_write_zip", no_zip)
    with pytest.raises(OSError, match="disk is gone"):
        write_package(layout, FACTS)
    with pytest.raises(JobNotReadyError):
        verify_package(layout.root)


def test_an_intact_run_verifies_and_damage_is_listed_in_full(layout: RunLayout) -> None:
    write_package(layout, FACTS)
    assert verify_package(layout.root).status is RunStatus.COMPLETED
    layout.ply.unlink()
    changed = bytearray(layout.glb.read_bytes())
    changed[-1] ^= 1
    layout.glb.write_bytes(changed)
    layout.mtl.write_text("short")
    with pytest.raises(IncompleteResultsError) as caught:
        verify_package(layout.root)
    assert set(caught.value.details["files"]) == {"nvdiffrec/mesh.ply", "nvdiffrec/mesh.glb", "nvdiffrec/mesh.mtl"}
    assert str(layout.root) not in caught.value.message


def test_a_manifest_that_points_outside_of_the_run_is_refused(layout: RunLayout) -> None:
    write_package(layout, FACTS)
    content = json.loads(layout.manifest.read_text())
    content["files"][0]["path"] = "../../etc/passwd"
    layout.manifest.write_text(json.dumps(content))
    with pytest.raises(IncompleteResultsError) as caught:
        verify_package(layout.root)
    assert caught.value.details["files"] == {"../../etc/passwd": "lies outside of the run"}


def test_an_unreadable_manifest_is_refused(layout: RunLayout) -> None:
    layout.manifest.write_text('{"status": ')
    with pytest.raises(IncompleteResultsError):
        read_manifest(layout.root)


def test_a_completed_run_without_its_mesh_is_not_packed(layout: RunLayout) -> None:
    layout.glb.unlink()
    with pytest.raises(IncompleteResultsError) as caught:
        write_package(layout, FACTS)
    assert caught.value.details == {"missing": ["nvdiffrec/mesh.glb"]}
    assert not layout.manifest.exists()


def test_a_failed_run_is_packed_with_what_there_is(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "abcd1234", "abcd1234")
    write_json(layout.error, {"code": "VALIDATION_FAILED"})
    manifest = write_package(layout, None, status=RunStatus.FAILED)
    assert manifest.status is RunStatus.FAILED
    assert [entry.path for entry in verify_package(layout.root).files] == ["error.json", "abcd1234.zip"]


def test_unfinished_files_are_not_packed(layout: RunLayout) -> None:
    (layout.model_dir / ".mesh.glb.x.part").write_bytes(b"half")
    assert not [entry.path for entry in write_package(layout, FACTS).files if "part" in entry.path]
