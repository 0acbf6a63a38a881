"""Helpers on top of the core, loaded when they are first asked for."""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

# Not lazily: the function has the name of its module, and the import of a module sets its name.
from skate.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

if _typing.TYPE_CHECKING:
    from skate.util.actor_pool import ActorPool
    from skate.util.check_serialize import inspect_serializability
    from skate.util.cluster import get_node_instance_id, get_node_ip_address, list_named_actors
    from skate.util.completion import as_completed, map_unordered
    from skate.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
    from skate.util.serialization import deregister_serializer, register_serializer

_PLACES = {
    "ActorPool": "actor_pool",
    "as_completed": "completion",
    "deregister_serializer": "serialization",
    "disable_log_once_globally": "debug",
    "enable_periodic_logging": "debug",
    "get_node_instance_id": "cluster",
    "get_node_ip_address": "cluster",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "cluster",
    "log_once": "debug",
    "map_unordered": "completion",
    "register_serializer": "serialization",
}
_MODULES = (
    "accelerators",
    "actor_pool",
    "check_serialize",
    "debug",
    "joblib",
    "multiprocessing",
    "queue",
    "scheduling_strategies",
    "serialization",
)

__all__ = [
    "ActorPool",
    "accelerators",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_instance_id",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]


def __getattr__(name: str) -> _typing.Any:
    place = _PLACES.get(name)
    if place is not None:
        value = getattr(_importlib.import_module(f"skate.util.{place}"), name)
    elif name in _MODULES:
        value = _importlib.import_module(f"skate.util.{name}")
    else:
        raise AttributeError(f"module 'skate.util' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_MODULES})
