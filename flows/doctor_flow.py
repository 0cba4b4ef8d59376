"""The flow `doctor`: the machine that takes this run looks at itself. What it looks at is in `flows.doctor`."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows.doctor import MIN_DISK_GB, MIN_GPU_MEMORY_GB, Finding, Needs, examine_machine
from flows.endings import checked
from flows.stoppable import unless_cancelled
from reconflow.request import ModelName


class DoctorRequest(BaseModel):
    """What the worker's machine is examined for."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Examination")

    out: str = Field("out", min_length=1, title="Results", description="The place that results would go to.")
    gpu_memory_gb: float = Field(
        MIN_GPU_MEMORY_GB, ge=0, title="GPU memory", description="Free memory on the worker's GPU, GiB."
    )
    model: ModelName = Field(
        ModelName.NVDIFFREC, title="Model", description="Whose runs have to be possible: its weights have to be there."
    )
    disk_gb: float = Field(MIN_DISK_GB, ge=0, title="Disk", description="Free disk space, GiB.")


@flow(
    name="doctor",
    description="Say whether the worker that takes this run can reconstruct.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def doctor(params: DoctorRequest) -> State[Any]:
    """Examine this machine.

    Args:
        params: What for.

    Returns:
        A state whose data is the findings; the run fails with the codes of those that are not well.
    """
    return unless_cancelled(lambda _: _examine(checked(DoctorRequest, params)))


def _examine(params: DoctorRequest) -> State[Any]:
    device = os.environ.get("RECONFLOW_DEVICE", "cpu")
    needs = Needs(
        device=device,
        out=params.out,
        gpu_memory_gb=params.gpu_memory_gb,
        disk_gb=params.disk_gb,
        model=params.model,
    )
    findings = examine_machine(needs)
    create_table_artifact(
        table=[_row(finding) for finding in findings], key="doctor", description=f"The machine {platform.node()}"
    )
    ill = [finding for finding in findings if not finding.ok]
    if ill:
        return Failed(message=" ".join(_sentences(finding) for finding in ill))
    return Completed(message="All is well.", data={"findings": [asdict(finding) for finding in findings]})


def _sentences(finding: Finding) -> str:
    return f"{finding.code}: {finding.value.removesuffix('.')}. {finding.suggestion}"


def _row(finding: Finding) -> dict[str, str]:
    return {
        "": "ok" if finding.ok else str(finding.code),
        "what": finding.what,
        "found": finding.value,
        "way out": finding.suggestion or "",
    }
