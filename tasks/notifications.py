"""What is told about a run that has ended, read from Prefect and from the results. Sends nothing.

The message is made of the run's id, its request, its state, and what its manifest, measures or error file say. It
never fails for want of results: a crashed run may have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from prefect.client.schemas.objects import FlowRun

from blocks.notifications import Delivery
from reconflow.errors import ErrorCode, JobExpiredError, JobNotFoundError, JobNotReadyError, ReconflowError
from reconflow.outputs.package import Manifest
from reconflow.request import ModelName
from reconflow.storage import ArtifactStore

VERSION: Final = 1
"""Of the message's layout; raised when a field changes its meaning or goes away."""
RUN_TAG: Final = "run-"
_CODE: Final = re.compile(r"([A-Z][A-Z_]+): (.*)", re.DOTALL)
_MEASURES: Final = ("psnr_db", "ssim", "mask_iou")


def make_payload(flow_run: FlowRun, flow_name: str, state: str, store: ArtifactStore | None) -> dict[str, Any]:
    """Return the message about a run.

    Args:
        flow_run: The run as it is now.
        flow_name: Of its flow.
        state: The state that the message is about; the run may have left it.
        store: Where its results are; None when the flow has none.
    """
    request = dict((flow_run.parameters or {}).get("params") or {})
    run_id = next((tag.removeprefix(RUN_TAG) for tag in flow_run.tags if tag.startswith(RUN_TAG)), None)
    dataset = request.get("dataset")
    payload: dict[str, Any] = {
        "version": VERSION,
        "event": f"{flow_name}.{state.lower()}",
        "flow": flow_name,
        "state": state,
        "run_id": run_id,
        "flow_run_id": str(flow_run.id),
        "flow_run_name": flow_run.name,
        "dataset": PurePosixPath(dataset.rstrip("/")).name if dataset else None,
        "models": [str(model) for model in ModelName if model in flow_run.tags],
        "preset": request.get("preset"),
        "started_at": _text(flow_run.start_time),
        "ended_at": _text(flow_run.end_time),
        "duration_s": round(flow_run.total_run_time.total_seconds(), 1),
        "error": _error_of(flow_run, state),
        "results": {},
    }
    if run_id is not None and store is not None:
        payload |= _stored_facts(store, run_id, payload)
    return payload


def make_delivery(payload: Mapping[str, Any]) -> Delivery:
    """Return the message as it is delivered: JSON for programs, a subject and some lines for people."""
    models = ", ".join(payload["models"])
    title = " · ".join(filter(None, [payload["dataset"], models])) or payload["flow_run_name"]
    lines = [f"{payload['flow']}: {payload['state']}", f"Run: {payload['run_id'] or payload['flow_run_id']}"]
    for model, result in payload["results"].items():
        lines.append(f"{model}: quality {result['status']}, {_measures_text(result)}")
    if payload["error"] is not None:
        lines += [f"{payload['error']['code']}: {payload['error']['message']}", payload["error"]["suggestion"]]
    return Delivery(
        identifier=str(uuid5(NAMESPACE_URL, f"reconflow:{payload['flow_run_id']}:{payload['state']}")),
        subject=f"[reconflow] {title}: {payload['state']}",
        text="\n".join(lines) + "\n",
        body=json.dumps(payload, ensure_ascii=False, sort_keys=True).encode(),
    )


def _text(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment is not None else None


def _measures_text(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {result[name]:.4g}" for name in _MEASURES if result.get(name) is not None)


def _error_of(flow_run: FlowRun, state: str) -> dict[str, Any] | None:
    """Return code, message and suggestion as far as the state knows them; None for a run that did what it should."""
    if state in ("Completed", "Cancelled"):
        return None
    text = (flow_run.state.message if flow_run.state is not None else None) or ""
    found = _CODE.fullmatch(text)
    if found and found[1] in set(ErrorCode):
        return {"code": found[1], "message": found[2], "suggestion": "See the run's page."}
    if state == "Crashed":
        suggestion = "Nothing, when automatic recovery is on: a new run goes on from the finished stages."
        return {"code": "CRASHED", "message": text or "The run's process is gone.", "suggestion": suggestion}
    suggestion = "See the run's page and its logs."
    return {"code": ErrorCode.UNKNOWN_ERROR.value, "message": text, "suggestion": suggestion}


def _stored_facts(store: ArtifactStore, run_id: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the results add to the message; nothing when there are none, or when the store does not answer."""
    try:
        manifest = store.read_manifest(run_id)
        facts: dict[str, Any] = {"results": _measures(store, run_id, manifest)}
        if payload["error"] is not None and any(entry.path == "error.json" for entry in manifest.files):
            stored = json.loads(store.read_file(run_id, "error.json"))
            facts["error"] = {name: stored[name] for name in ("code", "message", "suggestion")}
    except (JobNotFoundError, JobNotReadyError, JobExpiredError):
        return {}
    except ReconflowError as error:
        return {"note": f"The results could not be read: {error.code}."}
    return facts


def _measures(store: ArtifactStore, run_id: str, manifest: Manifest) -> dict[str, Any]:
    results = {}
    for entry in manifest.files:
        model, _, name = entry.path.partition("/")
        if name == "quality.json":
            quality = json.loads(store.read_file(run_id, entry.path))
            mean = quality.get("mean", quality)
            results[model] = {"status": quality.get("status"), **{key: mean.get(key) for key in _MEASURES}}
    return results
