"""The work pools: which there are, and what a flow run gets on each of them. Knows no flow.

A pool's base job template is the one that its worker type brings, with our values filled in. `reconflow worker`
holds itself against the device that is named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.heartbeats import set_heartbeats

DEVICE_VARIABLE: Final = "RECONFLOW_DEVICE"
CANCEL_QUEUE: Final = "cancel"
"""The queue of cancellations, which do not wait behind the recoveries, reports and walks of the queue `control`."""
ENGINE_COMMAND: Final = "python -m prefect.engine"
"""Named, or Prefect 3.8 starts a second interpreter before it, which costs a run more than a second."""


@dataclass(frozen=True)
class Pool:
    """One work pool of type `process`.

    Attributes:
        name: Of the pool.
        device: What its runs compute on, `cuda` or `cpu`.
        description: For people.
    """

    name: str
    device: str
    description: str

    def job_template(self) -> dict[str, Any]:
        """Return what a run on this pool gets when nothing else is said."""
        template: dict[str, Any] = ProcessWorker.get_default_base_job_template()
        fields = template["variables"]["properties"]
        # Otherwise a flow whose worker dies is lost at its next line of output.
        fields["stream_output"]["default"] = False
        fields["command"]["default"] = ENGINE_COMMAND
        fields["env"]["default"] = {DEVICE_VARIABLE: self.device}
        set_heartbeats(fields["env"]["default"])
        return template


GPU_POOL: Final = Pool("gpu", "cuda", "Reconstructions on GPUs: one worker per GPU.")
CPU_POOL: Final = Pool(
    "cpu", "cpu", "Reconstructions on CPUs, and in the queues `control` and `cancel` the runs that look after others."
)
POOLS: Final = (GPU_POOL, CPU_POOL)


def pool_for(device: str) -> Pool:
    """Return the pool whose runs compute on a device, `cuda` or `cpu`."""
    return next(pool for pool in POOLS if pool.device == device)


def device_of(pool: WorkPool) -> str | None:
    """Return the device that a pool's runs compute on; None when the pool does not say."""
    fields = pool.base_job_template.get("variables", {}).get("properties", {})
    environment = (fields.get("env") or {}).get("default") or {}
    return environment.get(DEVICE_VARIABLE)


def needs_update(pool: Pool, existing: WorkPool) -> bool:
    """Tell whether a pool on the server differs from its definition."""
    return existing.description != pool.description or existing.base_job_template != pool.job_template()


def create_pool(client: SyncPrefectClient, pool: Pool) -> None:
    """Create a pool on the server."""
    client.create_work_pool(
        WorkPoolCreate(
            name=pool.name, type="process", description=pool.description, base_job_template=pool.job_template()
        )
    )


def put_cancellations_first(client: SyncPrefectClient) -> None:
    """Create the queue of cancellations, before all others, for a worker that takes runs of every queue."""
    try:
        client.read_work_queue_by_name(CANCEL_QUEUE, CPU_POOL.name)
    except ObjectNotFound:
        client.create_work_queue(CANCEL_QUEUE, priority=1, work_pool_name=CPU_POOL.name)


def update_pool(client: SyncPrefectClient, pool: Pool) -> None:
    """Bring a pool on the server to its definition; whether it is paused, and its limit, stay the operator's."""
    client.update_work_pool(
        pool.name, WorkPoolUpdate(description=pool.description, base_job_template=pool.job_template())
    )
