"""Telling how a run ended, on a real Prefect server, to a real web server: once, however often it is reported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.webhook_receiver import SECRET, WebhookReceiver, receiving_webhooks

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    """A receiver whose block is saved; no other is."""
    from prefect.client.orchestration import get_client

    from blocks.notifications import EmailDestination

    EmailDestination.register_type_and_schema()
    with receiving_webhooks() as listening:
        document = save_webhook("first", listening)
        try:
            yield listening
        finally:
            with get_client(sync_client=True) as client:
                client.delete_block_document(document)


def save_webhook(name: str, receiver: WebhookReceiver, secret: str = SECRET) -> UUID:
    """Save the block of a receiver, which refuses what is signed with another secret."""
    from blocks.notifications import WebhookDestination

    url = receiver.environment()["RECONFLOW_WEBHOOK_URL"]
    saved: UUID = WebhookDestination(url=url, secret=secret).save(name, overwrite=True)
    return saved


def ended_run() -> UUID:
    """Return a run that was cancelled."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    from flows.reconstruct import reconstruct

    with get_client(sync_client=True) as client:
        return client.create_flow_run(reconstruct, state=Cancelled()).id


def report(flow_run: UUID, state: str = "Cancelled") -> Any:
    """Report as the automation does, and return the end of that report's own run."""
    from flows.notify import NotifyRequest, notify

    return notify(NotifyRequest(flow_run=flow_run, state=state), return_state=True)


def test_an_end_that_is_reported_again_is_told_once_and_another_end_as_well(receiver: WebhookReceiver) -> None:
    flow_run = ended_run()
    first, second = report(flow_run), report(flow_run)
    report(flow_run, "Crashed")
    assert first.result() == {"told": 1, "told_before": 0}
    assert second.result() == {"told": 0, "told_before": 1}
    assert [message["state"] for message in receiver.told_of(str(flow_run))] == ["Cancelled", "Crashed"]


def test_reports_at_the_same_time_are_told_once(receiver: WebhookReceiver) -> None:
    flow_run = ended_run()
    reports = [threading.Thread(target=copy_context().run, args=(report, flow_run)) for _ in range(3)]
    for thread in reports:
        thread.start()
    for thread in reports:
        thread.join()
    assert len(receiver.told_of(str(flow_run))) == 1


def test_what_could_not_be_told_is_told_by_the_next_report_and_nobody_else_hears_it_again(
    receiver: WebhookReceiver,
) -> None:
    from prefect.client.orchestration import get_client

    flow_run = ended_run()
    with receiving_webhooks() as other:
        document = save_webhook("second", other, "wrong")
        try:
            assert report(flow_run).is_failed()
            save_webhook("second", other)
            assert report(flow_run).result() == {"told": 1, "told_before": 1}
        finally:
            with get_client(sync_client=True) as client:
                client.delete_block_document(document)
    assert len(receiver.told_of(str(flow_run))) == len(other.told_of(str(flow_run))) == 1


def test_whoever_died_while_telling_is_followed_by_the_next_report(receiver: WebhookReceiver) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed, Running

    from flows.notification_records import begin_telling, telling_name
    from flows.notify import notify

    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(ended_run())
        (document,) = client.read_block_documents_by_type("reconflow-webhook")
        name = telling_name(flow_run, "Cancelled", document.id)
        teller = client.create_flow_run(notify, state=Running())
        assert begin_telling(client, name, teller.id)
        assert report(flow_run.id).result() == {"told": 0, "told_before": 1}
        client.set_flow_run_state(teller.id, Crashed(), force=True)
    assert report(flow_run.id).result() == {"told": 1, "told_before": 0}
    assert len(receiver.told_of(str(flow_run.id))) == 1


def test_who_tells_to_the_end_while_another_takes_it_for_dead_has_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    from flows import notification_records as records

    with get_client(sync_client=True) as client:
        name = records.telling_name(client.read_flow_run(ended_run()), "Cancelled", uuid4())
        first, second = uuid4(), uuid4()
        assert records.begin_telling(client, name, first) == name

        def ends_now(*_: object) -> bool:
            records.end_telling(client, name, first, told=True)
            return True

        monkeypatch.setattr(records, "_is_gone", ends_now)
        assert records.begin_telling(client, name, second) is None


def test_a_run_that_fails_again_after_a_retry_is_told_again(receiver: WebhookReceiver) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Failed, Running

    flow_run = ended_run()
    with get_client(sync_client=True) as client:
        for _ in range(2):
            client.set_flow_run_state(flow_run, Running(), force=True)
            client.set_flow_run_state(flow_run, Failed(), force=True)
            report(flow_run, "Failed")
    assert len(receiver.told_of(str(flow_run))) == 2


def test_old_records_are_swept_and_fresh_ones_stay() -> None:
    from prefect.client.orchestration import get_client

    from flows.notification_records import begin_telling, sweep_tellings, telling_name

    with get_client(sync_client=True) as client:
        sweep_tellings(client, timedelta(0))
        name = telling_name(client.read_flow_run(ended_run()), "Cancelled", uuid4())
        begin_telling(client, name, uuid4())
        assert sweep_tellings(client) == 0
        assert sweep_tellings(client, timedelta(0)) == 1
        assert client.read_variable_by_name(name) is None
