"""What the differentiable operators accept: CPU tensors of stated type and shape, refused by name otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from reconflow.errors import ValidationFailedError

MAX_FACES = 1 << 24
"""Face index + 1 travels in a float32 channel of the raster, which counts exactly up to here."""


def expect_tensor(
    tensor: Tensor, name: str, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the tensor made contiguous, or say what is wrong with it.

    Args:
        tensor: What the caller passed.
        name: The argument's name, for the message.
        shape: Expected extent of each axis; None takes any.
        dtype: Expected element type.

    Raises:
        ValidationFailedError: Wrong type, shape or device.
    """
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(want is None or want == have for want, have in zip(shape, found))  # noqa: B905
    if not fits or tensor.dtype != dtype:
        wanted = "[" + ", ".join("any" if extent is None else str(extent) for extent in shape) + "]"
        raise ValidationFailedError(
            f"`{name}` must be {dtype} of shape {wanted}, but is {tensor.dtype} of shape {list(found)}.",
            suggestion="Convert the tensor or check the order of the arguments.",
            argument=name,
            expected_shape=wanted,
            found_shape=list(found),
        )
    if tensor.device.type != "cpu":
        raise ValidationFailedError(
            f"`{name}` is on {tensor.device}, but these operators run on the CPU.",
            suggestion="Move the tensor with .cpu().",
            argument=name,
            device=str(tensor.device),
        )
    return tensor.contiguous()


def expect_triangles(tri: Tensor, vertex_count: int) -> Tensor:
    """Return the (F, 3) int32 triangles made contiguous, or say what is wrong with them.

    Raises:
        ValidationFailedError: Wrong type or shape, an index outside the vertices, or too many faces.
    """
    tri = expect_tensor(tri, "tri", (None, 3), torch.int32)
    if len(tri) >= MAX_FACES:
        raise ValidationFailedError(
            f"{len(tri)} triangles are too many for one raster; {MAX_FACES - 1} is the most.",
            suggestion="Decimate the mesh or split it.",
            faces=len(tri),
        )
    if len(tri) and (int(tri.min()) < 0 or int(tri.max()) >= vertex_count):
        raise ValidationFailedError(
            f"`tri` refers to vertices {int(tri.min())} to {int(tri.max())}, but there are {vertex_count}.",
            suggestion="Check that the triangles belong to these vertices.",
            vertices=vertex_count,
        )
    return tri


def refuse_option(name: str, value: object, allowed: tuple[str, ...]) -> ValidationFailedError:
    """Return the error for an option that this engine does not offer."""
    return ValidationFailedError(
        f"`{name}` = {value!r} is not offered by the CPU engine.",
        suggestion=f"Use one of {', '.join(allowed)}.",
        option=name,
        value=str(value),
        allowed=list(allowed),
    )
