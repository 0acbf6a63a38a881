"""Members that programs written for Ray look for on Skate's classes."""

from __future__ import annotations

import hashlib
import types
from typing import Any

from skate import Language, ObjectRef
from skate._context import Context
from skate._ids import BaseID
from skate.actor import ActorClass, ActorHandle
from skate.exceptions import CrossLanguageError, SkateError, loaded_error


def _plain_class(actor_class: Any) -> Any:
    return actor_class.__skate_actor_class__


def _metadata(actor_class: Any) -> Any:
    cls = actor_class.__skate_actor_class__
    return types.SimpleNamespace(modified_class=cls, class_name=cls.__name__)


def _shard_hash(id: Any) -> int:
    """A number that depends on the id only, the same in every process."""
    return int.from_bytes(hashlib.blake2b(id.binary(), digest_size=8).digest(), "little")


def _tensor_transport(ref: Any) -> None:
    """None: values go through the object store, as they do in Ray unless asked for otherwise."""


def _from_ray_exception(ray_exception: Any) -> Any:
    """The error in a message with Ray's fields: language, serialized_exception, formatted_exception_string."""
    if ray_exception.language != Language.PYTHON:
        return CrossLanguageError(ray_exception)
    return loaded_error(ray_exception.serialized_exception, ray_exception.formatted_exception_string)


def add(version: str, commit: str) -> None:
    members: list[tuple[Any, str, Any]] = [
        (SkateError, "from_ray_exception", staticmethod(_from_ray_exception)),
        (BaseID, "redis_shard_hash", _shard_hash),
        (ObjectRef, "redis_shard_hash", _shard_hash),
        (ObjectRef, "tensor_transport", _tensor_transport),
        (ActorHandle, "_ray_actor_id", property(lambda handle: handle._actor_id)),
        (ActorClass, "__ray_actor_class__", property(_plain_class)),
        (ActorClass, "__ray_metadata__", property(_metadata)),
        (Context, "ray_version", version),
        (Context, "ray_commit", commit),
    ]
    for cls, name, value in members:
        setattr(cls, name, value)
