"""What the networks refuse of an official configuration file, since no published weights of this pipeline use it."""

from __future__ import annotations

from reconflow.errors import ModelError


def refuse_other_than(name: str, value: object, *supported: object) -> None:
    """Raise unless an argument of a configuration has a supported value.

    Raises:
        ModelError: It has not.
    """
    if value not in supported:
        choices = " or ".join(str(choice) for choice in supported)
        raise ModelError(
            f"The configuration asks for {name} {value!r}, which this implementation does not have.",
            suggestion=f"Use weights with {name} {choices}, as the published ones have.",
            argument=name,
            value=str(value),
        )
