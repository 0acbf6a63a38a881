"""Skate: a distributed runtime for Python and C++.

import skate

@skate.remote
def square(x):
    return x * x

print(skate.get([square.remote(i) for i in range(10)]))
"""

from __future__ import annotations

import typing as _typing

__version__ = "0.1.0"

from skate import _skate as _skate
from skate._ids import (
    ActorClassID,
    ActorID,
    FunctionID,
    JobID,
    NodeID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)
from skate._language import Language
from skate._remote import remote
from skate._runtime import (
    available_resources,
    cancel,
    cluster_resources,
    get,
    get_actor,
    get_gpu_ids,
    init,
    is_initialized,
    kill,
    nodes,
    put,
    shutdown,
    wait,
)
from skate._skate import ObjectRef
from skate._streaming import DynamicObjectRefGenerator, ObjectRefGenerator
from skate.actor import method

if _typing.TYPE_CHECKING:
    from skate import actor, exceptions, runtime_env, util
    from skate.logging_config import LoggingConfig
    from skate.runtime_context import get_runtime_context

ObjectID = ObjectRef

#: What is loaded when it is first asked for: name to (module, attribute or None for the module).
_LAZY: dict[str, tuple[str, str | None]] = {
    "LoggingConfig": ("skate.logging_config", "LoggingConfig"),
    "cloudpickle": ("cloudpickle", None),
    "exceptions": ("skate.exceptions", None),
    "get_runtime_context": ("skate.runtime_context", "get_runtime_context"),
    "job_config": ("skate.job_config", None),
    "runtime_context": ("skate.runtime_context", None),
    "runtime_env": ("skate.runtime_env", None),
    "types": ("skate.types", None),
    "util": ("skate.util", None),
}

__all__ = [
    "ActorClassID",
    "ActorID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "Language",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "cluster_resources",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "runtime_env",
    "shutdown",
    "util",
    "wait",
]


def __getattr__(name: str) -> _typing.Any:
    import importlib

    place = _LAZY.get(name)
    if place is None:
        raise AttributeError(f"module 'skate' has no attribute {name!r}")
    module = importlib.import_module(place[0])
    value = module if place[1] is None else getattr(module, place[1])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
