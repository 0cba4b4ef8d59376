"""Writing Gaussians as the PLY that viewers of 3D Gaussian splatting read. Positions and parameters, no rendering.

The layout is that of the method's first publication (Kerbl et al., 2023): one vertex per Gaussian with its parameters
as they are before activation, so that a reader takes exponentials of the scales and the sigmoid of the opacity.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np

from reconflow import __version__
from reconflow.errors import ModelConvergenceError
from reconflow.geometry.gaussians import Gaussians
from reconflow.outputs.files import replacing

PROPERTIES: Final = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *("f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
"""Of every vertex, in this order, all of them 32-bit floats; the normal is 0, rot_0 is the quaternion's real part."""
_SH_DEGREE_0: Final = 0.5 / math.sqrt(math.pi)
_SURE: Final = 1e-6
"""Opacities are kept so far from 0 and 1, whose logits are infinite."""


def write_gaussian_ply(gaussians: Gaussians, path: Path, *, unit: str) -> None:
    """Write Gaussians, binary little-endian.

    Args:
        gaussians: In the result's frame.
        path: The file.
        unit: What one unit is, for the comment, e.g. `1 unit = 1 metre`.

    Raises:
        ModelConvergenceError: There are none, or a value is not finite.
    """
    opacities = np.clip(gaussians.opacities.astype(np.float64), _SURE, 1 - _SURE)
    values = np.concatenate(
        [
            gaussians.positions,
            np.zeros((len(gaussians), 3)),
            (gaussians.colours.astype(np.float64) - 0.5) / _SH_DEGREE_0,
            np.log(opacities / (1 - opacities))[:, None],
            np.log(np.maximum(gaussians.scales.astype(np.float64), np.finfo(np.float32).tiny)),
            gaussians.rotations,
        ],
        axis=1,
    )
    if len(values) == 0 or not np.isfinite(values).all():
        raise ModelConvergenceError(
            "There are no Gaussians to write, or values of theirs are not numbers.",
            suggestion="Try another seed.",
            gaussians=len(values),
        )
    with replacing(path) as stream:
        stream.write(_header(len(values), unit))
        stream.write(values.astype("<f4").tobytes())


def _header(count: int, unit: str) -> bytes:
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment reconflow {__version__}",
        f"comment unit: {' '.join(unit.split())}",
        "comment axes: right-handed, +y up, front towards +z; 3D Gaussian splatting, degree 0, colours sRGB",
        f"element vertex {count}",
        *(f"property float {name}" for name in PROPERTIES),
        "end_header",
        "",
    ]
    return "\n".join(lines).encode("ascii", errors="replace")
