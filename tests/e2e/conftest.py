"""The installation that the suite's cases share, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.case_table import CaseTable

if TYPE_CHECKING:
    from tests.support.installation import Api, Installation
    from tests.support.network_guard import NetworkGuard
    from tests.support.webhook_receiver import WebhookReceiver

TABLE = CaseTable("tests/e2e/")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TABLE.add(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    TABLE.show(terminalreporter)


@pytest.fixture(scope="session")
def figures() -> list[str]:
    """Takes sentences for below the table."""
    return TABLE.figures


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-view folder, 128 px."""
    from tests.flows.flow_objects import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data") / "boxes", 128)


@pytest.fixture(scope="session")
def guard() -> Iterator[NetworkGuard]:
    from tests.support.network_guard import guarding_network

    with guarding_network() as guard:
        yield guard


@pytest.fixture(scope="session")
def receiver() -> Iterator[WebhookReceiver]:
    from tests.support.webhook_receiver import receiving_webhooks

    with receiving_webhooks() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def installation(
    tmp_path_factory: pytest.TempPathFactory, guard: NetworkGuard, receiver: WebhookReceiver
) -> Iterator[Installation]:
    """Server, object store and workers of a machine without a GPU, everything deployed."""
    from tests.support.installation import Installation
    from tests.support.s3_server import running_s3_server

    with running_s3_server() as s3:
        extra = {**guard.environment(), **receiver.environment()}
        with Installation(tmp_path_factory.mktemp("installation"), s3, extra) as installation:
            installation.apply()
            workers = installation.start_workers(limit=2)
            yield installation
            installation.stop_process(workers)
            assert not installation.workers_alive()


@pytest.fixture(scope="session")
def api(installation: Installation) -> Iterator[Api]:
    from tests.support.installation import Api

    with Api(installation) as api:
        yield api


@pytest.fixture(scope="session")
def dataset(installation: Installation, boxes: Path) -> str:
    """The boxes in the object store."""
    return installation.upload_dataset(boxes, "datasets/boxes")
