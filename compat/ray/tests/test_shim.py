"""The `ray` package on the fake native module; in a process of its own."""

import importlib
import importlib.metadata
import os
import pickle
import sys

import pytest

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(_HERE), os.path.join(_HERE, "../../../python/tests/surface")]
import fake_skate  # noqa: E402

fake_skate.install()

import ray  # noqa: E402
import skate  # noqa: E402


@pytest.fixture(autouse=True)
def connection():
    ray.init(log_to_driver=False)
    yield
    ray.shutdown()


def test_version():
    assert ray.__version__ == "2.60.0"
    assert importlib.metadata.version("ray") == "2.60.0"


def test_a_program():
    @ray.remote
    def square(x):
        return x * x

    @ray.remote
    class Counter:
        def __init__(self):
            self.n = 0

        @ray.method(num_returns=2)
        def both(self):
            self.n += 1
            return self.n, -self.n

        def fail(self):
            raise KeyError("k")

    assert ray.wait(ray_waitables=[ray.put(1)])[1] == []
    assert ray.get([square.remote(i) for i in range(4)]) == [0, 1, 4, 9]
    counter = Counter.remote()
    assert ray.get(counter.both.remote()) == [1, -1]
    with pytest.raises(KeyError) as caught:
        ray.get(counter.fail.remote())
    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    assert isinstance(caught.value, skate.exceptions.TaskError)
    assert counter._ray_actor_id == counter._actor_id
    assert Counter.__ray_metadata__.modified_class is Counter.__ray_actor_class__
    assert isinstance(counter, ray.actor.ActorHandle)
    assert isinstance(counter, skate.actor.ActorHandle)
    assert isinstance(ray.put(1), skate.ObjectRef)
    assert ray.is_initialized()
    assert skate.is_initialized()


def test_exception_names():
    from ray import exceptions

    for name in exceptions.__all__:
        if name != "RAY_EXCEPTION_TYPES":
            assert issubclass(getattr(exceptions, name), exceptions.RayError)
    error = exceptions.RayActorError()
    assert type(pickle.loads(pickle.dumps(error))) is skate.exceptions.ActorError


def test_members_that_ray_names():
    a, b = ray.put(1), ray.NodeID.from_random()
    for id in (a, b):
        assert id.redis_shard_hash() == type(id)(id.binary()).redis_shard_hash()
    assert a.redis_shard_hash() != b.redis_shard_hash()
    assert a.tensor_transport() is None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ray.actor", "exit_actor"),
        ("ray.cloudpickle", "dumps"),
        ("ray.experimental.multiprocessing", "Pool"),
        ("ray.job_config", "JobConfig"),
        ("ray.remote_function", "RemoteFunction"),
        ("ray.runtime_context", "RuntimeContext"),
        ("ray.runtime_env", "RuntimeEnv"),
        ("ray.types", "ObjectRef"),
        ("ray.util", "ActorPool"),
        ("ray.util.accelerators", "NVIDIA_H100"),
        ("ray.util.annotations", "PublicAPI"),
        ("ray.util.accelerators.accelerators", "NVIDIA_H200"),
        ("ray.util.joblib", "register_ray"),
        ("ray.util.multiprocessing", "Pool"),
        ("ray.util.multiprocessing.pool", "AsyncResult"),
        ("ray.util.placement_group", "PlacementGroup"),
        ("ray.util.queue", "Queue"),
        ("ray.util.scheduling_strategies", "NodeAffinitySchedulingStrategy"),
        ("ray.util.serialization", "register_serializer"),
    ],
)
def test_modules(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_all_names_resolve():
    for module in (ray, ray.util, skate, skate.util):
        for name in module.__all__:
            assert getattr(module, name) is not None
        assert set(module.__all__) <= set(dir(module))
        with pytest.raises(AttributeError):
            module.no_such_name  # noqa: B018
    assert callable(ray.util.placement_group)
    assert ray.util.queue.Queue is skate.util.queue.Queue


def test_settings_from_the_environment(monkeypatch):
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ray.init(log_to_driver=False)
    assert fake_skate._state["config"]["address"] == "127.0.0.1:1"
    ray.shutdown()
    monkeypatch.setenv("SKATE_ADDRESS", "127.0.0.1:2")
    ray.init(log_to_driver=False)
    assert fake_skate._state["config"]["address"] == "127.0.0.1:2"


def test_a_real_ray_is_refused(tmp_path, monkeypatch):
    from ray import _guard

    real = tmp_path / "ray"
    real.mkdir()
    (real / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    _guard.check(os.path.dirname(ray.__file__))
    (real / "_raylet.so").write_text("")
    with pytest.raises(ImportError, match="pip uninstall ray skate-ray"):
        _guard.check(os.path.dirname(ray.__file__))
    with pytest.raises(ImportError):
        _guard.check(str(real))
