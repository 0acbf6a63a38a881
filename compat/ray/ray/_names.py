"""Members that programs written for Ray look for on Skate's classes."""

from __future__ import annotations

import types
from typing import Any

from skate._context import Context
from skate.actor import ActorClass, ActorHandle


def _plain_class(actor_class: Any) -> Any:
    return actor_class.__skate_actor_class__


def _metadata(actor_class: Any) -> Any:
    cls = actor_class.__skate_actor_class__
    return types.SimpleNamespace(modified_class=cls, class_name=cls.__name__)


def add(version: str, commit: str) -> None:
    members: list[tuple[Any, str, Any]] = [
        (ActorHandle, "_ray_actor_id", property(lambda handle: handle._actor_id)),
        (ActorClass, "__ray_actor_class__", property(_plain_class)),
        (ActorClass, "__ray_metadata__", property(_metadata)),
        (Context, "ray_version", version),
        (Context, "ray_commit", commit),
    ]
    for cls, name, value in members:
        setattr(cls, name, value)
