"""Names, parameters and defaults of the public calls."""

import inspect

import pytest
import ray

REQUIRED = inspect.Parameter.empty

CALLS = {
    "get": {"object_refs": REQUIRED, "timeout": None},
    "put": {"value": REQUIRED},
    "wait": {"ray_waitables": REQUIRED, "num_returns": 1, "timeout": None, "fetch_local": True},
    "cancel": {"ray_waitable": REQUIRED, "force": False, "recursive": True},
    "kill": {"actor": REQUIRED, "no_restart": True},
    "get_actor": {"name": REQUIRED, "namespace": None},
    "init": {
        "address": None,
        "num_cpus": None,
        "num_gpus": None,
        "resources": None,
        "labels": None,
        "object_store_memory": None,
        "local_mode": False,
        "ignore_reinit_error": False,
        "include_dashboard": None,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": None,
        "job_config": None,
        "configure_logging": True,
        "logging_config": None,
        "log_to_driver": None,
        "namespace": None,
        "runtime_env": None,
    },
    "is_initialized": {},
    "nodes": {},
    "cluster_resources": {},
    "available_resources": {},
    "get_gpu_ids": {},
    "get_runtime_context": {},
}


@pytest.mark.parametrize("name", CALLS)
def test_parameters(name):
    parameters = inspect.signature(getattr(ray, name)).parameters
    for parameter, default in CALLS[name].items():
        assert parameter in parameters, parameter
        assert parameters[parameter].default == default, parameter


def test_keyword_only_parameters():
    for name, keywords in {"get": ["timeout"], "wait": ["num_returns", "timeout"]}.items():
        parameters = inspect.signature(getattr(ray, name)).parameters
        for k in keywords:
            assert parameters[k].kind is inspect.Parameter.KEYWORD_ONLY, (name, k)


@pytest.mark.parametrize(
    "path",
    [
        "ActorID",
        "JobID",
        "NodeID",
        "ObjectID",
        "ObjectRef",
        "ObjectRefGenerator",
        "DynamicObjectRefGenerator",
        "PlacementGroupID",
        "TaskID",
        "UniqueID",
        "WorkerID",
        "FunctionID",
        "ActorClassID",
        "Language",
        "LoggingConfig",
        "actor.ActorHandle",
        "actor.ActorClass",
        "actor.ActorMethod",
        "actor.ActorProxy",
        "actor.exit_actor",
        "cloudpickle.dumps",
        "cloudpickle.loads",
        "ObjectRef.redis_shard_hash",
        "ObjectRef.tensor_transport",
        "exceptions.RayTaskError",
        "exceptions.RayError.from_ray_exception",
        "method",
        "remote",
        "runtime_context.RuntimeContext",
        "runtime_env.RuntimeEnv",
        "remote_function.RemoteFunction",
        "util.ActorPool",
        "util.as_completed",
        "util.map_unordered",
        "util.inspect_serializability",
        "util.register_serializer",
        "util.deregister_serializer",
        "util.list_named_actors",
        "util.log_once",
        "util.placement_group",
        "util.remove_placement_group",
        "util.get_placement_group",
        "util.placement_group_table",
        "util.get_current_placement_group",
        "util.accelerators.accelerators.NVIDIA_H200",
        "util.joblib.ray_backend.RayBackend",
        "util.queue.Queue",
        "util.queue.Empty",
        "util.queue.Full",
        "util.multiprocessing.Pool",
        "util.scheduling_strategies.PlacementGroupSchedulingStrategy",
        "util.scheduling_strategies.NodeAffinitySchedulingStrategy",
    ],
)
def test_names_exist(path):
    import importlib

    importlib.import_module("ray.util.queue")
    importlib.import_module("ray.util.accelerators.accelerators")
    importlib.import_module("ray.util.joblib.ray_backend")
    importlib.import_module("ray.util.multiprocessing")
    importlib.import_module("ray.util.scheduling_strategies")
    importlib.import_module("ray.runtime_env")
    importlib.import_module("ray.remote_function")
    value = ray
    for part in path.split("."):
        value = getattr(value, part)
    assert value is not None


def test_type_of_decorated_things():
    @ray.remote
    def f():
        pass

    @ray.remote
    class A:
        def m(self):
            pass

    assert isinstance(f, ray.remote_function.RemoteFunction)
    assert isinstance(A, ray.actor.ActorClass)
