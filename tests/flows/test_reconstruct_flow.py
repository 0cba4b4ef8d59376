"""The flow on a real Prefect server: states, messages, artifacts and tags of runs that end in every way."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import flow_objects
import pytest

from reconflow.errors import (
    Cancelled,
    QualityThresholdError,
    ReconflowError,
    StorageUnreachableError,
    ValidationFailedError,
)
from reconflow.nvdiffrec.options import Preset
from reconflow.outputs.package import RunStatus, read_manifest, verify_package
from reconflow.request import RunRequest

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def run_flow(dataset: Path, out: Path, **options: Any) -> Any:
    """Run the flow in this process."""
    from flows.in_process import call_flow

    return call_flow(RunRequest(dataset=str(dataset), out=str(out), **options))


def flow_run_of(out: Path) -> Any:
    """Return Prefect's record of the one run in `out`, found by its run id as an operator would."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    (run,) = (out / "runs").iterdir()
    with get_client(sync_client=True) as client:
        tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"run-{run.name}"]))
        (flow_run,) = client.read_flow_runs(flow_run_filter=tagged)
    return flow_run


def artifacts_of(flow_run: Any) -> dict[str, Any]:
    """Return the artifacts of a flow run by key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        return {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=own)}


def task_states_of(flow_run: Any) -> dict[str, str]:
    """Return the states of a flow run's tasks by the task's name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
    return {run.name.rsplit("-", 1)[0]: str(run.state_name) for run in runs}


def test_a_run_completes_and_shows_what_it_did(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    summary = run_flow(dataset, tmp_path, preset="draft")
    flow_run = flow_run_of(tmp_path)
    assert flow_run.state.is_completed()
    assert flow_run.name == "boxes · nvdiffrec · draft"
    assert set(flow_run.tags) == {f"run-{summary.run_id}", "nvdiffrec", "dataset-boxes", "reconflow"}
    assert task_states_of(flow_run) == dict.fromkeys(
        ["validate", "transforms", "load", "infer", "quality", "preview", "package"], "Completed"
    )
    shown = artifacts_of(flow_run)
    assert {key: artifact.type for key, artifact in shown.items()} == {
        "nvdiffrec-progress": "progress",
        "nvdiffrec-dataset": "table",
        "nvdiffrec-cameras": "markdown",
        "nvdiffrec-quality": "table",
        "nvdiffrec-mesh": "table",
        "nvdiffrec-preview": "image",
        "nvdiffrec-previews": "markdown",
        "nvdiffrec-summary": "markdown",
    }
    assert shown["nvdiffrec-progress"].data == 100.0
    assert str(shown["nvdiffrec-preview"].data).startswith("data:image/")
    assert len(json.loads(shown["nvdiffrec-quality"].data)) == 7
    verify_package(tmp_path / "runs" / summary.run_id)
    stored = json.loads((tmp_path / "runs" / summary.run_id / "run.json").read_text("utf-8"))
    assert stored["orchestration"]["flow_run_id"] == str(flow_run.id)


def test_a_refused_dataset_is_a_failed_state_with_code_and_way_out(
    stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReconflowError) as caught:
        run_flow(tmp_path / "empty", tmp_path / "out")
    flow_run = flow_run_of(tmp_path / "out")
    assert flow_run.state.is_failed()
    assert flow_run.state.message.startswith(f"{caught.value.code}: ")
    assert flow_run.state.message.endswith(caught.value.suggestion)
    assert task_states_of(flow_run) == {"validate": "Failed"}
    assert caught.value.suggestion in artifacts_of(flow_run)["nvdiffrec-failure"].data
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads((run / "error.json").read_text("utf-8"))["code"] == caught.value.code
    assert read_manifest(run).status is RunStatus.FAILED


def test_saved_thresholds_decide_when_a_run_fails(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    from blocks.quality import QualityThresholdsBlock

    strict = QualityThresholdsBlock(normal_psnr_db=99, warning_psnr_db=98)
    strict.save("strict", overwrite=True)
    with pytest.raises(QualityThresholdError):
        run_flow(dataset, tmp_path, quality_thresholds="strict")
    flow_run = flow_run_of(tmp_path)
    assert flow_run.state.message.startswith("QUALITY_THRESHOLD_FAILED: ")
    assert task_states_of(flow_run)["package"] == "Completed"


def test_thresholds_that_nobody_saved_are_refused_by_name(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    with pytest.raises(ValidationFailedError, match="'unheard-of'"):
        run_flow(dataset, tmp_path, quality_thresholds="unheard-of")
    assert flow_run_of(tmp_path).state.is_failed()


def test_a_cancelled_run_is_a_cancelled_state(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    def stop(step: int) -> None:
        raise Cancelled("Enough.", suggestion="Start again.")

    stand_in.during = stop
    with pytest.raises(Cancelled):
        run_flow(dataset, tmp_path)
    flow_run = flow_run_of(tmp_path)
    assert flow_run.state.is_cancelled()
    assert task_states_of(flow_run).keys() == {"validate", "transforms", "load", "infer"}
    shown = artifacts_of(flow_run)
    assert shown["nvdiffrec-progress"].data < 100
    assert shown["nvdiffrec-progress"].description.startswith("**Cancelled** in infer")
    assert "Enough." in shown["nvdiffrec-failure"].data


def test_a_second_attempt_shows_what_it_did_not_have_to_do_again(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    from flows.in_process import call_flow

    def stop(step: int, total: int, message: str) -> None:
        if message.startswith("preview:"):
            raise Cancelled("Enough.", suggestion="Start again.")

    request = RunRequest(dataset=str(dataset), out=str(tmp_path), preset="draft")
    with pytest.raises(Cancelled):
        call_flow(request, stop)
    (first,) = (tmp_path / "runs").iterdir()
    summary = call_flow(request)
    assert summary.cached_stages == ("validate", "transforms", "infer", "quality")
    first.rename(tmp_path / "first")
    assert task_states_of(flow_run_of(tmp_path)) == {
        **dict.fromkeys(["validate", "transforms", "infer", "quality"], "Cached"),
        **dict.fromkeys(["load", "preview", "package"], "Completed"),
    }


@pytest.fixture
def side_by_side(both: dict[str, flow_objects.StandInModel], monkeypatch: pytest.MonkeyPatch) -> threading.Barrier:
    """A machine that has a device for each of both models; they get no further than here alone."""
    from reconflow import pipeline

    monkeypatch.setattr(pipeline, "place_models", lambda run, _dataset: run.model_copy(update={"side_by_side": True}))
    meeting = threading.Barrier(2, timeout=30.0)
    for model in both.values():
        model.during = lambda step: meeting.wait() and None if step == 0 else None
    return meeting


def test_models_side_by_side_are_tasks_of_the_same_run_and_share_one_progress_page(
    side_by_side: threading.Barrier, both: dict[str, flow_objects.StandInModel], dataset: Path, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    summary = run_flow(dataset, tmp_path, preset="draft")
    assert [found.model for found in summary.models] == ["nvdiffrec", "second"]
    flow_run = flow_run_of(tmp_path)
    assert flow_run.state.is_completed()
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
    assert sorted(run.name.rsplit("-", 1)[0] for run in runs) == sorted(
        ["validate", "transforms", "package", *2 * ["load", "infer", "quality", "preview"]]
    )
    assert {run.state_name for run in runs} == {"Completed"}
    progress = artifacts_of(flow_run)["nvdiffrec-progress"]
    assert progress.data == 100.0
    assert progress.description.count("done in") == 3 + 2 * 4


def test_a_model_that_fails_beside_another_is_said_to_have_failed_at_once(
    side_by_side: threading.Barrier, both: dict[str, flow_objects.StandInModel], dataset: Path, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        side_by_side.wait()
        raise ValidationFailedError("Not with me.", suggestion="Ask another one.")

    both["second"].during = fail
    with pytest.raises(ValidationFailedError, match="Not with me"):
        run_flow(dataset, tmp_path, preset="draft")
    shown = artifacts_of(flow_run_of(tmp_path))["nvdiffrec-progress"].description
    assert shown.startswith("**Failed** in package")
    assert "| second infer | 31 % | failed |" in shown
    assert shown.count("done in") == 2 + 4 + 1


def test_cancelling_models_side_by_side_ends_both(
    side_by_side: threading.Barrier, both: dict[str, flow_objects.StandInModel], dataset: Path, tmp_path: Path
) -> None:
    steps: list[int] = []

    def stop(step: int) -> None:
        if step == 0:
            side_by_side.wait()
        if step == 2:
            raise Cancelled("Enough.", suggestion="Start again.")

    def work_on(step: int) -> None:
        if step == 0:
            side_by_side.wait()
        steps.append(step)
        time.sleep(0.5)

    both["nvdiffrec"].during, both["second"].during = stop, work_on
    with pytest.raises(Cancelled, match=r"Enough\."):
        run_flow(dataset, tmp_path, preset="draft")
    assert len(steps) < flow_objects.STEPS
    flow_run = flow_run_of(tmp_path)
    assert flow_run.state.is_cancelled()
    shown = artifacts_of(flow_run)["nvdiffrec-progress"].description
    assert shown.startswith("**Cancelled** in nvdiffrec infer and second infer")


def test_a_run_without_a_place_for_its_results_is_a_failed_state_with_code_and_way_out(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    from flows.reconstruct import reconstruct

    state = reconstruct(RunRequest(dataset=str(dataset), out="block://unheard-of"), return_state=True)
    assert state.is_failed()
    assert state.message.startswith("VALIDATION_FAILED: ")
    assert "'unheard-of'" in state.message


def test_a_saved_block_says_where_results_go(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    from blocks.artifact_store import ArtifactStoreBlock

    ArtifactStoreBlock(uri=str(tmp_path)).save("shelf", overwrite=True)
    summary = run_flow(dataset, "block://shelf/left", preset="draft")  # type: ignore[arg-type]
    verify_package(tmp_path / "left" / "runs" / summary.run_id)


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    from prefect.states import Failed

    from tasks.stages import is_retryable

    passing = StorageUnreachableError("Away.", suggestion="Wait.")
    lasting = ValidationFailedError("Wrong.", suggestion="Correct it.")
    verdicts = [is_retryable(None, None, Failed(data=error)) for error in (passing, lasting, KeyError("x"))]  # type: ignore[arg-type]
    assert verdicts == [True, False, False]


def test_progress_is_sent_at_most_once_a_second() -> None:
    from tasks.reporting import RunReporter

    sent: list[float] = []

    def send(percent: float, page: str, *, insisting: bool = False) -> None:
        sent.append(percent)

    now_s = [0.0]
    heard: list[int] = []
    reporter = RunReporter(send, Preset.DRAFT, lambda step, total, message: heard.append(step), clock=lambda: now_s[0])
    report = reporter.of_stage("infer")
    for step in range(100):
        now_s[0] = 0.05 * step
        report(step, 100, "working")
    report(100, 100, "done")
    reporter.close(None)
    assert sent == [17.0, pytest.approx(29.4), pytest.approx(41.8), pytest.approx(54.2), pytest.approx(66.6), 100.0]
    assert heard == [round(10 * (17 + 0.62 * step)) for step in range(101)]


def test_the_form_is_closed_titled_and_begins_with_the_dataset() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.reconstruct import reconstruct

    schema = parameter_schema(reconstruct)
    (request,) = (part for part in schema.definitions.values() if "dataset" in part.get("properties", {}))
    assert list(request["properties"])[:4] == ["dataset", "out", "model", "preset"]
    assert request["additionalProperties"] is False
    assert all("description" in field for field in request["properties"].values())
    assert all("title" in field or "$ref" in field for field in request["properties"].values())
    assert schema.definitions["Preset"]["enum"] == ["draft", "standard", "high"]


def test_every_deployment_names_a_flow_that_exists() -> None:
    import yaml
    from prefect.flows import load_flow_from_entrypoint

    root = Path(__file__).resolve().parents[2]
    deployments = yaml.safe_load((root / "prefect.yaml").read_text("utf-8"))["deployments"]
    assert {"on-demand", "nvdiffrec"} <= {deployment["name"] for deployment in deployments}
    for deployment in deployments:
        path, function = deployment["entrypoint"].split(":")
        assert callable(load_flow_from_entrypoint(f"{root / path}:{function}"))
        assert deployment["work_pool"]["job_variables"]["stream_output"] is False
