"""How a flow ends that cannot do its work: as a failed state whose message begins with a code, whatever was raised.

A flow checks its parameters itself, with `checked`: Prefect's own check ends a run without a code. Which faults a
stage has is `reconflow.failures`' business; here are those of the Prefect server.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

import httpx
import prefect.runtime.flow_run
from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed
from pydantic import BaseModel, ValidationError

from reconflow.errors import (
    ErrorCode,
    ReconflowError,
    ServerRefusedError,
    ServerUnreachableError,
    ValidationFailedError,
)
from reconflow.failures import as_known_error

Request = TypeVar("Request", bound=BaseModel)


def checked(kind: type[Request], params: object) -> Request:
    """Return what a flow is asked for, from what the server handed over.

    Args:
        kind: The flow's one parameter.
        params: Already of that kind when the flow was called from Python.

    Raises:
        ValidationFailedError: It is none; details list every fault.
    """
    try:
        return kind.model_validate(params)
    except ValidationError as error:
        faults = {".".join(map(str, fault["loc"])) or "params": fault["msg"] for fault in error.errors()}
        raise ValidationFailedError(
            f"The parameters are not usable. {' '.join(f'{name}: {text}.' for name, text in faults.items())}",
            suggestion="Correct or leave out the parameters named.",
            parameters=list(faults),
        ) from None


def name_after(kind: type[Request], name: Callable[[Request], str]) -> str:
    """Return what the flow run at hand is called, after what it is asked for.

    Args:
        kind: The flow's one parameter.
        name: Makes the name; not called when the parameters are not usable, which the flow itself tells.
    """
    try:
        return name(checked(kind, prefect.runtime.flow_run.parameters["params"]))
    except ValidationFailedError:
        return "refused"


def failed_state(error: Exception) -> State[Any]:
    """Return the failed state of a flow that ends with an error; one that was not foreseen goes into the log whole."""
    known = known_error(error)
    if known.code is ErrorCode.UNKNOWN_ERROR:
        get_run_logger().error("%s", known.message, exc_info=error)
    return Failed(message=f"{known.code}: {known.message} {known.suggestion}", data=known)


def known_error(error: Exception) -> ReconflowError:
    """Return the error under a code: itself, or what it says of the Prefect server or of this machine."""
    if isinstance(error, ObjectNotFound):
        known: ReconflowError = ServerRefusedError(
            "The Prefect server does not know what was asked for.",
            suggestion="See whether it was deleted; apply the deployments with reconflow deploy.",
        )
    elif isinstance(error, httpx.HTTPStatusError):
        known = _of_status(error.response.status_code)
    elif isinstance(error, httpx.TransportError):
        known = ServerUnreachableError(
            f"The Prefect server does not answer ({type(error).__name__}).",
            suggestion="Start it, or correct PREFECT_API_URL.",
        )
    else:
        return as_known_error(error)
    known.__cause__ = error
    return known


def _of_status(status: int) -> ReconflowError:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return ServerUnreachableError(
            f"The Prefect server answers {status}.", suggestion="See that it is well, then try again.", status=status
        )
    return ServerRefusedError(
        f"The Prefect server refuses us ({status}).",
        suggestion="Check PREFECT_API_AUTH_STRING, and that the deployments are of this version.",
        status=status,
    )
