"""Helpers on top of the core."""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

import skate.util as _skate_util

# Not lazily: the function has the name of its module, and the import of a module sets its name.
from ray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

_MODULES = (
    "accelerators",
    "actor_pool",
    "annotations",
    "check_serialize",
    "debug",
    "joblib",
    "multiprocessing",
    "queue",
    "scheduling_strategies",
    "serialization",
)
_NAMES = tuple(name for name in _skate_util.__all__ if name not in _MODULES and name not in globals())

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
    if name in _MODULES:
        value: _typing.Any = _importlib.import_module(f"ray.util.{name}")
    elif name in _NAMES:
        value = getattr(_skate_util, name)
    else:
        raise AttributeError(f"module 'ray.util' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
