"""Types for annotations."""

from skate.types import ObjectRef

__all__ = ["ObjectRef"]
