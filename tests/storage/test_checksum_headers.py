"""Servers that know S3's checksum headers, and older ones: everything goes there and comes from there all the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import publish_run

from reconflow.errors import JobExpiredError
from reconflow.outputs.package import verify_package
from reconflow.storage import open_store
from reconflow.storage.transfer import PART_BYTES
from tests.support.checksum_servers import NewerServer, OlderServer
from tests.support.faulty_proxy import running_faulty_proxy
from tests.support.s3_server import EXTERNAL, S3Server

RUN = "abcd1234"
LARGE = {"nvdiffrec/mesh.glb": hashlib.shake_128(b"mesh").digest(2 * PART_BYTES + 12345)}


@pytest.fixture(params=[OlderServer, NewerServer])
def uri(
    request: pytest.FixtureRequest, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A place on each kind of server."""
    if EXTERNAL:
        pytest.skip("the server is of one of the kinds itself")
    with running_faulty_proxy(request.param(s3_server.endpoint_url)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        yield f"s3://{bucket}/results"


def test_a_large_file_goes_there_and_comes_back(uri: str, tmp_path: Path) -> None:
    store = open_store(uri)
    publish_run(store, RUN, LARGE)
    verify_package(store.fetch_run(RUN, tmp_path))
    assert (tmp_path / RUN / "nvdiffrec" / "mesh.glb").read_bytes() == LARGE["nvdiffrec/mesh.glb"]


def test_results_are_removed_from_there(uri: str, s3_server: S3Server, bucket: str) -> None:
    store = open_store(uri)
    store.prepare()
    publish_run(store, RUN)
    store.delete_run(RUN, "too old")
    assert s3_server.keys(bucket) == [f"results/expired/{RUN}.json"]
    with pytest.raises(JobExpiredError, match="too old"):
        store.read_manifest(RUN)
