"""What `doctor` and `worker` find out about the places of runs and weights, by writing and reading there."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.doctor import Finding, Needs, examine_machine
from reconflow.request import ModelName
from reconflow.storage import StorageAccess, using_access
from tests.support.s3_server import EXTERNAL, S3Server

WRITER = ("s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:ListBucketMultipartUploads")
Usage = namedtuple("Usage", ["total", "used", "free"])


def examine(**needs: object) -> dict[str, Finding]:
    """Return what is found, by what was looked at; memory and disk are none of these tests' business."""
    chosen = {"memory_gb": 0, "disk_gb": 0, **needs}
    return {finding.what: finding for finding in examine_machine(Needs(**chosen))}  # type: ignore[arg-type]


@pytest.fixture
def writer(s3_server: S3Server, bucket: str) -> Iterator[StorageAccess]:
    """Access of somebody who may write and remove, and not read, to a server that checks who asks."""
    if EXTERNAL:
        pytest.skip("makes the user through moto's IAM")
    import boto3

    session = boto3.session.Session(s3_server.key, s3_server.secret, region_name="us-east-1")
    iam = session.client("iam", endpoint_url=s3_server.endpoint_url)
    statement = {"Effect": "Allow", "Action": list(WRITER), "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.create_user(UserName=bucket)
    iam.put_user_policy(UserName=bucket, PolicyName="writes", PolicyDocument=policy)
    made = iam.create_access_key(UserName=bucket)["AccessKey"]
    with s3_server.checking_who_asks():
        yield StorageAccess(s3_server.endpoint_url, "us-east-1", made["AccessKeyId"], made["SecretAccessKey"])


def test_a_place_is_written_read_and_cleared(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    assert examine(out=f"s3://{bucket}/x")["place for results"].ok
    assert s3_server.keys(bucket) == []
    assert examine(out=str(tmp_path / "out"))["place for results"].ok
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_place_that_can_be_written_and_not_read_is_refused(bucket: str, writer: StorageAccess) -> None:
    with using_access(writer, f"s3://{bucket}"):
        found = examine(out=f"s3://{bucket}/x")["place for results"]
    assert found.code == "STORAGE_REFUSED"


def test_for_an_object_store_the_disk_with_the_cache_has_to_have_the_room(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Usage:
        return Usage(1 << 40, 0, 0 if Path(path).is_relative_to(tmp_path / "cache") else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert examine(out=f"s3://{bucket}/x", disk_gb=1.0)["free disk"].code == "DISK_FULL"
    assert examine(out=str(tmp_path / "out"), disk_gb=1.0)["free disk"].ok


def test_for_an_object_store_the_cache_folder_has_to_be_writable(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "file" / "cache"))
    found = examine(out=f"s3://{bucket}/x")
    assert found["cache folder"].code == "STORAGE_UNREACHABLE"
    assert found["cache folder"].suggestion is not None
    assert "RECONFLOW_CACHE" in found["cache folder"].suggestion
    assert "cache folder" not in examine(out=str(tmp_path / "out"))


def test_weights_are_insisted_on_for_the_models_that_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reconflow.reconviagen.weight_sources import default_folder
    from reconflow.reconviagen.weights import PIPELINE_FILE, PIPELINE_ROLES, WeightsFolder

    monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "cache"))

    def codes() -> list[str | None]:
        return [examine(out=str(tmp_path), model=model)["weights"].code for model in ModelName]

    assert list(ModelName) == [ModelName.NVDIFFREC, ModelName.RECONVIAGEN, ModelName.BOTH]
    assert codes() == [None, "WEIGHTS_MISSING", "WEIGHTS_MISSING"]
    folder = WeightsFolder(default_folder())
    pipeline = folder.root / PIPELINE_FILE.name
    pipeline.parent.mkdir(parents=True)
    pipeline.write_text("damaged")
    assert codes() == [None, "WEIGHTS_INVALID", "WEIGHTS_INVALID"]
    pipeline.write_text(json.dumps({"args": {"models": {role: f"ckpts/{role}" for role in PIPELINE_ROLES}}}))
    for file in folder.missing():
        (folder.root / file.name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / file.name).touch()
    assert codes() == [None, None, None]
