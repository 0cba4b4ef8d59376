"""Quality thresholds as a Prefect block, so that an operator changes them without changing code."""

from __future__ import annotations

from typing import cast

from prefect.blocks.core import Block
from pydantic import Field

from reconflow.quality.report import QualityThresholds

_DEFAULTS = QualityThresholds()


class QualityThresholdsBlock(Block):
    """Where a result's classes `normal` and `warning` begin; see `reconflow.quality.report.QualityThresholds`."""

    _block_type_name = "Quality thresholds"
    _block_type_slug = "reconflow-quality-thresholds"
    _description = "Where the quality classes of a reconstruction begin."

    normal_psnr_db: float = Field(
        default=_DEFAULTS.normal_psnr_db, title="Normal from PSNR", description="Mean PSNR, decibels."
    )
    normal_ssim: float = Field(
        default=_DEFAULTS.normal_ssim, ge=0, le=1, title="Normal from SSIM", description="Mean SSIM, 0 to 1."
    )
    warning_psnr_db: float = Field(
        default=_DEFAULTS.warning_psnr_db, title="Failure below PSNR", description="Mean PSNR, decibels."
    )
    warning_ssim: float = Field(
        default=_DEFAULTS.warning_ssim, ge=0, le=1, title="Failure below SSIM", description="Mean SSIM, 0 to 1."
    )

    def thresholds(self) -> QualityThresholds:
        """Return the thresholds as the library takes them."""
        return QualityThresholds(
            normal_psnr_db=self.normal_psnr_db,
            normal_ssim=self.normal_ssim,
            warning_psnr_db=self.warning_psnr_db,
            warning_ssim=self.warning_ssim,
        )


def load_thresholds(name: str | None) -> QualityThresholds:
    """Return the thresholds of a saved block, or the built-in ones when no block is named.

    Args:
        name: Of a saved `QualityThresholdsBlock`.

    Raises:
        ValidationFailedError: There is no such block.
    """
    if name is None:
        return QualityThresholds()
    from reconflow.errors import ValidationFailedError

    try:
        block = QualityThresholdsBlock.load(name)
    except ValueError:
        raise ValidationFailedError(
            f"There is no saved block of quality thresholds named {name!r}.",
            suggestion="Save one under that name, or leave the parameter out.",
            block=name,
        ) from None
    return cast("QualityThresholdsBlock", block).thresholds()
