"""A flow that does nothing, for measuring what is around it."""

from __future__ import annotations

from prefect import flow


@flow(name="nothing", persist_result=False)
def nothing() -> None:
    """Do nothing."""
