"""Ray's interface on Skate. See the names in skate; the classes are the same."""

from __future__ import annotations

import os as _os
import typing as _typing

from ray import _guard

_guard.check(_os.path.dirname(_os.path.abspath(__file__)))

from skate import (  # noqa: E402
    ActorClassID,
    ActorID,
    DynamicObjectRefGenerator,
    FunctionID,
    JobID,
    Language,
    NodeID,
    ObjectID,
    ObjectRef,
    ObjectRefGenerator,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
    _config,
    available_resources,
    cluster_resources,
    get,
    get_actor,
    get_gpu_ids,
    init,
    is_initialized,
    kill,
    method,
    nodes,
    put,
    remote,
    shutdown,
)

from ray import _names  # noqa: E402
from ray._calls import cancel, wait  # noqa: E402

if _typing.TYPE_CHECKING:
    from skate import LoggingConfig, get_runtime_context

__version__ = "2.60.0"
__commit__ = ""

SCRIPT_MODE = 0
WORKER_MODE = 1
LOCAL_MODE = 2

if "RAY_" not in _config.env_prefixes:
    _config.env_prefixes.append("RAY_")
_names.add(__version__, __commit__)

_MODULES = (
    "actor",
    "cloudpickle",
    "exceptions",
    "experimental",
    "job_config",
    "remote_function",
    "runtime_context",
    "runtime_env",
    "types",
    "util",
)

__all__ = [
    "ActorClassID",
    "ActorID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "LOCAL_MODE",
    "Language",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "SCRIPT_MODE",
    "TaskID",
    "UniqueID",
    "WORKER_MODE",
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
    "shutdown",
    "util",
    "wait",
]


def __getattr__(name: str) -> _typing.Any:
    import importlib

    if name in _MODULES:
        value: _typing.Any = importlib.import_module(f"ray.{name}")
    elif name in ("LoggingConfig", "get_runtime_context"):
        value = getattr(importlib.import_module("skate"), name)
    else:
        raise AttributeError(
            f"module 'ray' has no attribute {name!r} (this is Ray's interface on Skate, which may lack it)"
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, "LoggingConfig", "get_runtime_context"})
