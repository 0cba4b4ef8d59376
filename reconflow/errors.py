"""The one exception tree: every error this project raises on purpose, and the stable codes it carries.

Codes belong on the type, never in the text. A message names what is wrong in the user's words (file names relative to
their dataset, never internal paths); the suggestion says what to do; the details are plain data for programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """Stable machine-readable failure codes; never reused for another meaning."""

    # input
    VALIDATION_FAILED = "VALIDATION_FAILED"
    FILE_TOO_LARGE = "FILE_TOO_LARGE"
    INVALID_FILE_FORMAT = "INVALID_FILE_FORMAT"
    INVALID_FILE_COUNT = "INVALID_FILE_COUNT"
    CALIBRATION_AMBIGUOUS = "CALIBRATION_AMBIGUOUS"
    CALIBRATION_CONTRADICTED = "CALIBRATION_CONTRADICTED"
    # state
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_NOT_READY = "JOB_NOT_READY"
    JOB_EXPIRED = "JOB_EXPIRED"
    JOB_ALREADY_FINISHED = "JOB_ALREADY_FINISHED"
    CANCELLED = "CANCELLED"
    CANCELLATION_NOT_REQUESTED = "CANCELLATION_NOT_REQUESTED"
    CANCELLATION_EXPIRED = "CANCELLATION_EXPIRED"
    # model
    MODEL_FAILED = "MODEL_FAILED"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    MODEL_OOM = "MODEL_OOM"
    MODEL_VRAM_OOM = "MODEL_VRAM_OOM"
    MODEL_CONVERGENCE_FAILED = "MODEL_CONVERGENCE_FAILED"
    WEIGHTS_MISSING = "WEIGHTS_MISSING"
    WEIGHTS_INVALID = "WEIGHTS_INVALID"
    QUALITY_THRESHOLD_FAILED = "QUALITY_THRESHOLD_FAILED"
    INCOMPLETE_RESULTS = "INCOMPLETE_RESULTS"
    # resource
    GPU_UNAVAILABLE = "GPU_UNAVAILABLE"
    DISK_FULL = "DISK_FULL"
    MEMORY_EXHAUSTED = "MEMORY_EXHAUSTED"
    STORAGE_UNREACHABLE = "STORAGE_UNREACHABLE"
    STORAGE_REFUSED = "STORAGE_REFUSED"
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE"
    SERVER_REFUSED = "SERVER_REFUSED"
    DEPLOYMENT_FAILED = "DEPLOYMENT_FAILED"
    NOTIFICATION_FAILED = "NOTIFICATION_FAILED"
    UNKNOWN_ERROR = "UNKNOWN_ERROR"


class ReconflowError(Exception):
    """Base of every error this package raises on purpose.

    Attributes:
        code: Stable identifier of the kind of failure.
        retryable: Whether the same call may succeed later with the same input.
        suggestion: The way out, one sentence for a person.
        details: Facts as JSON-able data.
    """

    code: ClassVar[ErrorCode] = ErrorCode.UNKNOWN_ERROR
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, suggestion: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion
        self.details = details

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way between processes with code, suggestion and details."""
        return _rebuild, (type(self), self.message, self.suggestion, self.details)

    def to_dict(self) -> dict[str, object]:
        """Return the error as the JSON-able object stored in `error.json`."""
        return {
            "code": self.code.value,
            "message": self.message,
            "suggestion": self.suggestion,
            "details": self.details,
            "retryable": self.retryable,
        }


def _rebuild(kind: type[ReconflowError], message: str, suggestion: str, details: dict[str, object]) -> ReconflowError:
    return kind(message, suggestion=suggestion, **details)


def fault_sentence(fault: Mapping[str, object]) -> str:
    """Say one entry of `details["faults"]` to a person: which file, and what is wrong with it.

    Args:
        fault: With `file`, or None there, and `message`.
    """
    file, message = fault["file"], str(fault["message"])
    return message if file is None or str(file) in message else f"{file}: {message}"


class InputError(ReconflowError):
    """What the user supplied cannot be used."""

    code = ErrorCode.VALIDATION_FAILED


class ValidationFailedError(InputError):
    """The dataset or the options contradict what the job needs; details list every fault."""


class FileTooLargeError(InputError):
    """A file, or all of them together, exceeds the size limit."""

    code = ErrorCode.FILE_TOO_LARGE


class InvalidFileFormatError(InputError):
    """A file is not what its place in the dataset requires, judged by content."""

    code = ErrorCode.INVALID_FILE_FORMAT


class InvalidFileCountError(InputError):
    """Views or depth renders are missing or superfluous."""

    code = ErrorCode.INVALID_FILE_COUNT


class CalibrationAmbiguousError(InputError):
    """The data does not decide the cameras; a guess is never made."""

    code = ErrorCode.CALIBRATION_AMBIGUOUS


class CalibrationContradictedError(InputError):
    """The cameras supplied with the dataset do not agree with its images."""

    code = ErrorCode.CALIBRATION_CONTRADICTED


class StateError(ReconflowError):
    """A run is not in the state that the request needs."""


class JobNotFoundError(StateError):
    """No run with that identifier exists."""

    code = ErrorCode.JOB_NOT_FOUND


class JobNotReadyError(StateError):
    """The run has not finished yet."""

    code = ErrorCode.JOB_NOT_READY
    retryable = True


class JobExpiredError(StateError):
    """The run's results were removed by the retention policy."""

    code = ErrorCode.JOB_EXPIRED


class JobAlreadyFinishedError(StateError):
    """The run has ended, so that there is nothing left to do to it."""

    code = ErrorCode.JOB_ALREADY_FINISHED


class CancellationNotRequestedError(StateError):
    """A cancellation was confirmed that nobody has requested."""

    code = ErrorCode.CANCELLATION_NOT_REQUESTED


class CancellationExpiredError(StateError):
    """A cancellation was confirmed too long after it was requested."""

    code = ErrorCode.CANCELLATION_EXPIRED


class Cancelled(StateError):  # noqa: N818 - the name by which callers know it
    """The caller asked a long computation to stop; raised from `on_progress`."""

    code = ErrorCode.CANCELLED


class ModelError(ReconflowError):
    """A reconstruction model could not do its work."""

    code = ErrorCode.MODEL_FAILED


class ModelUnavailableError(ModelError):
    """The requested model is not installed or not part of this version."""

    code = ErrorCode.MODEL_UNAVAILABLE


class ModelOutOfMemoryError(ModelError):
    """A stage ran out of main memory."""

    code = ErrorCode.MODEL_OOM


class ModelGpuOutOfMemoryError(ModelError):
    """A stage ran out of the GPU's memory."""

    code = ErrorCode.MODEL_VRAM_OOM


class WeightsMissingError(ModelError):
    """Files with a model's weights are not where they were looked for."""

    code = ErrorCode.WEIGHTS_MISSING


class WeightsInvalidError(ModelError):
    """Files with a model's weights are damaged, changed, or those of another model; details list every fault."""

    code = ErrorCode.WEIGHTS_INVALID


class ModelConvergenceError(ModelError):
    """The optimisation ended without a usable surface."""

    code = ErrorCode.MODEL_CONVERGENCE_FAILED


class QualityThresholdError(ModelError):
    """Everything was stored, but the measured quality is below the thresholds."""

    code = ErrorCode.QUALITY_THRESHOLD_FAILED


class IncompleteResultsError(ModelError):
    """A file that the package needs is missing or damaged."""

    code = ErrorCode.INCOMPLETE_RESULTS


class ResourceError(ReconflowError):
    """The machine lacks what the stage needs."""


class GpuUnavailableError(ResourceError):
    """A GPU was asked for and none can be used."""

    code = ErrorCode.GPU_UNAVAILABLE


class DiskFullError(ResourceError):
    """There is not enough free disk space."""

    code = ErrorCode.DISK_FULL


class MemoryExhaustedError(ResourceError):
    """The machine has too little free memory for a stage that has not started."""

    code = ErrorCode.MEMORY_EXHAUSTED


class StorageUnreachableError(ResourceError):
    """The artifact store or the dataset's location does not answer."""

    code = ErrorCode.STORAGE_UNREACHABLE
    retryable = True


class StorageRefusedError(ResourceError):
    """The store answers and refuses: wrong credentials, a missing permission, or no such bucket."""

    code = ErrorCode.STORAGE_REFUSED


class ServerUnreachableError(ResourceError):
    """The Prefect server does not answer."""

    code = ErrorCode.SERVER_UNREACHABLE
    retryable = True


class ServerRefusedError(ResourceError):
    """The Prefect server answers and refuses: a wrong password, or it lacks what `reconflow deploy` creates.

    So it does when its deployments are of another version, which does not know the parameters of this one.
    """

    code = ErrorCode.SERVER_REFUSED


class DeploymentFailedError(ResourceError):
    """The deployments could not be written to the Prefect server."""

    code = ErrorCode.DEPLOYMENT_FAILED


class NotificationFailedError(ResourceError):
    """A notification did not reach its receiver."""

    code = ErrorCode.NOTIFICATION_FAILED
    retryable = True
