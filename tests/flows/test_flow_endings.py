"""Flows that cannot do their work end in a failed state that begins with a code and shows no folder of the machine."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import flow_objects
import httpx
import pytest

from reconflow.errors import ErrorCode, ModelError, ServerRefusedError, ServerUnreachableError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def expect_failed(state: Any, code: ErrorCode) -> str:
    """Expect an end with a code and without a path; return what it says."""
    assert state.is_failed()
    message = str(state.message)
    assert message.startswith(f"{code}: ")
    assert not re.search(r"/\w+/\w+", message), message
    return message


def reconstruct_as_asked(params: Any) -> Any:
    """Run the flow in this process with what the server would hand over."""
    from flows.reconstruct import reconstruct

    return reconstruct(params, return_state=True)


def test_results_that_cannot_be_written_below_their_folder_are_told_with_a_code(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / ".work").write_text("a file")
    state = reconstruct_as_asked({"dataset": str(dataset), "out": str(tmp_path)})
    assert ".work is a file" in expect_failed(state, ErrorCode.STORAGE_UNREACHABLE)


def test_a_fault_that_nobody_foresaw_is_told_with_a_code(dataset: Path) -> None:
    state = reconstruct_as_asked({"dataset": str(dataset), "out": "~nobody-of-that-name/results"})
    assert "RuntimeError" in expect_failed(state, ErrorCode.UNKNOWN_ERROR)


def test_an_attempt_that_fails_after_it_was_taken_for_dead_writes_nothing(
    dataset: Path, stand_in: flow_objects.StandInModel, client: SyncPrefectClient, tmp_path: Path
) -> None:
    import prefect.runtime.flow_run
    from prefect.states import Crashed

    def fail(step: int) -> None:
        client.set_flow_run_state(UUID(str(prefect.runtime.flow_run.id)), Crashed(message="Gone."), force=True)
        raise ModelError("What it read was gone.", suggestion="Try again.")

    stand_in.during = fail
    state = reconstruct_as_asked({"dataset": str(dataset), "out": str(tmp_path), "preset": "draft"})
    assert not state.is_failed()
    assert not list(tmp_path.glob("runs/*/*.json"))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"dataset": "boxes", "stepz": 1}, "stepz: Extra inputs are not permitted."),
        ({}, "dataset: Field required."),
        ("boxes", "params: "),
    ],
)
def test_parameters_that_the_server_let_through_are_refused_with_a_code(params: Any, said: str) -> None:
    assert said in expect_failed(reconstruct_as_asked(params), ErrorCode.VALIDATION_FAILED)


@pytest.mark.parametrize("entrypoint", ["cancel", "doctor_flow:doctor", "expire", "recover", "reprocess", "silence"])
def test_every_flow_refuses_unusable_parameters_with_a_code(entrypoint: str) -> None:
    module, _, name = entrypoint.partition(":")
    flow = getattr(import_module(f"flows.{module}"), name or module)
    message = expect_failed(flow({"nope": 1}, return_state=True), ErrorCode.VALIDATION_FAILED)
    assert "nope: Extra inputs are not permitted." in message


def test_a_machine_that_lacks_something_says_so_in_whole_sentences() -> None:
    from flows.doctor_flow import doctor

    state = doctor({"out": "/proc/nothing-below-it", "disk_gb": 1e9}, return_state=True)  # type: ignore[call-overload]
    message = expect_failed(state, ErrorCode.DISK_FULL)
    assert ErrorCode.STORAGE_UNREACHABLE in message
    assert ".." not in message


def test_a_report_that_cannot_be_told_says_why() -> None:
    from flows.notify import notify

    deleted = notify({"flow_run": str(uuid4()), "state": "Failed"}, return_state=True)  # type: ignore[call-overload]
    expect_failed(deleted, ErrorCode.JOB_NOT_FOUND)
    unknown = notify({"flow_run": str(uuid4()), "state": "Exploded"}, return_state=True)  # type: ignore[call-overload]
    assert "state: " in expect_failed(unknown, ErrorCode.VALIDATION_FAILED)


def test_what_the_server_does_is_said_of_the_server(client: SyncPrefectClient) -> None:
    import httpx
    from prefect.exceptions import ObjectNotFound

    from flows.endings import known_error

    with pytest.raises(httpx.ConnectError) as away:
        httpx.get("http://127.0.0.1:9")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.request("GET", "/no-such-route")
    with pytest.raises(ObjectNotFound) as missing:
        client.read_flow_run(uuid4())
    kinds = [type(known_error(caught.value)) for caught in (away, refused, missing)]
    assert kinds == [ServerUnreachableError, ServerRefusedError, ServerRefusedError]


@pytest.mark.parametrize("name", ["cancel", "recover", "silence"])
def test_what_operators_and_automations_start_says_that_the_server_is_gone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module(f"flows.{name}")

    def broken(*_: Any) -> Any:
        raise httpx.ConnectError("[Errno 111] Connection refused: /run/secret/socket")

    monkeypatch.setattr(module, "find_flow_run", broken)
    monkeypatch.setattr(module, "_listen", lambda _: None, raising=False)
    asked = {"run": "abcd1234", **({"by": "ada"} if name == "cancel" else {})}
    expect_failed(getattr(module, name)(asked, return_state=True), ErrorCode.SERVER_UNREACHABLE)
