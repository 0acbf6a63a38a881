"""Serializers of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate import _skate

if TYPE_CHECKING:
    from collections.abc import Callable


def _rebuild(deserializer: Callable[[Any], Any], data: Any) -> Any:
    return deserializer(data)


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Has instances of exactly `cls` travel as `serializer(instance)`, in this process.

    The deserializer travels with the values, so that the receiver needs no registration.
    """
    import cloudpickle

    def reduce(instance: Any) -> Any:
        return _rebuild, (deserializer, serializer(instance))

    # The native codec for values, and cloudpickle for what functions capture.
    _skate.register_serializer(cls, serializer, deserializer)
    cloudpickle.CloudPickler.dispatch_table[cls] = reduce


def deregister_serializer(cls: type) -> None:
    """Undoes register_serializer; without one, does nothing."""
    import cloudpickle

    _skate.deregister_serializer(cls)
    cloudpickle.CloudPickler.dispatch_table.pop(cls, None)
