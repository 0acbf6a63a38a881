"""Finds what cannot be pickled inside of an object."""

from skate.util.check_serialize import (
    FailureTuple,
    inspect_serializability,
)

__all__ = [
    "FailureTuple",
    "inspect_serializability",
]
