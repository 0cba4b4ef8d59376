"""One private Prefect server for all tests that need one, and the stand-in model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import flow_objects
import pytest

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

# Nothing of the user's Prefect may be read, whichever test imports Prefect first.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="reconflow-tests-")
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.pop("PREFECT_API_URL", None)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's client talks to an embedded server of this session."""
    from flows.embedded import EmbeddedServer

    with EmbeddedServer(tmp_path_factory.mktemp("prefect")) as server:
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        updates = {
            PREFECT_API_URL: os.environ["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: os.environ["PREFECT_API_AUTH_STRING"],
        }
        server.wait()
        with temporary_settings(updates=updates):
            yield


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    """A client of the session's server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-view folder of the boxes, 96 px."""
    return flow_objects.write_dataset(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> flow_objects.StandInModel:
    """The model that every run in the test gets, and a turntable of two pictures."""
    from reconflow import models, stages
    from reconflow.outputs.previews import write_turntable

    model = flow_objects.StandInModel()
    monkeypatch.setitem(models._ready, ("nvdiffrec", "cpu"), model)
    monkeypatch.setattr(stages, "write_turntable", partial(write_turntable, frames=2, size=64))
    return model


class Second(flow_objects.StandInModel):
    """Another model."""

    name = "second"


@pytest.fixture
def both(stand_in: flow_objects.StandInModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, flow_objects.StandInModel]:
    """A version that has two models, and a request that asks for both."""
    from reconflow import models
    from reconflow.request import RunRequest

    made = {"nvdiffrec": stand_in, "second": Second()}
    monkeypatch.setattr(RunRequest, "models", lambda _request: tuple(made))
    monkeypatch.setattr(models, "make_model", lambda name: made[name])
    return made
