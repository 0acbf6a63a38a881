"""Named and detached actors, namespaces."""

import os

import pytest
import ray
from coordination import eventually, is_running, run_driver

CLUSTER = {"num_cpus": 4, "namespace": "home"}
pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote(num_cpus=0)
class Holder:
    def __init__(self, value=None):
        self.value = value

    def get(self):
        return self.value

    def pid(self):
        return os.getpid()

    def namespace(self):
        return ray.get_runtime_context().namespace


def gone(name, namespace=None):
    def check():
        try:
            ray.get_actor(name, namespace=namespace)
        except ValueError:
            return True
        return False

    return eventually(check)


def test_get_actor():
    a = Holder.options(name="one").remote(1)
    b = ray.get_actor("one")
    assert ray.get(b.get.remote()) == 1
    assert a == b
    ray.kill(a)
    assert gone("one")


def test_unknown_name():
    with pytest.raises(ValueError):
        ray.get_actor("nobody")


@pytest.mark.parametrize("bad", [None, 1, ""], ids=repr)
def test_bad_names(bad):
    with pytest.raises((ValueError, TypeError)):
        ray.get_actor(bad)


def test_a_name_is_taken_once():
    a = Holder.options(name="taken").remote()
    ray.get(a.get.remote())
    with pytest.raises(ValueError):
        Holder.options(name="taken").remote()
    ray.kill(a)
    assert gone("taken")
    b = Holder.options(name="taken").remote(2)
    assert ray.get(b.get.remote()) == 2
    ray.kill(b)


def test_get_if_exists():
    a = Holder.options(name="shared", get_if_exists=True).remote("first")
    b = Holder.options(name="shared", get_if_exists=True).remote("second")
    assert ray.get(b.get.remote()) == "first"
    assert ray.get(a.pid.remote()) == ray.get(b.pid.remote())
    ray.kill(a)


def test_get_if_exists_from_many_tasks():
    @ray.remote
    def use(i):
        a = Holder.options(name="raced", get_if_exists=True, lifetime="detached").remote(i)
        return ray.get(a.pid.remote())

    assert len(set(ray.get([use.remote(i) for i in range(6)]))) == 1
    ray.kill(ray.get_actor("raced"))


def test_named_actor_in_a_task():
    @ray.remote
    def use():
        return ray.get(ray.get_actor("in-task").get.remote())

    a = Holder.options(name="in-task").remote("v")
    assert ray.get(use.remote()) == "v"
    ray.kill(a)


def test_named_actor_ends_with_its_original_handle():
    a = Holder.options(name="short").remote()
    pid = ray.get(a.pid.remote())
    del a
    assert eventually(lambda: not is_running(pid))
    assert gone("short")


def test_detached_actor_outlives_its_handles():
    a = Holder.options(name="lasting", lifetime="detached").remote("v")
    pid = ray.get(a.pid.remote())
    del a
    b = ray.get_actor("lasting")
    assert ray.get(b.get.remote()) == "v" and ray.get(b.pid.remote()) == pid
    ray.kill(b)
    assert gone("lasting")


def test_namespaces():
    a = Holder.options(name="n", namespace="elsewhere").remote("e")
    b = Holder.options(name="n").remote("h")
    assert ray.get(ray.get_actor("n").get.remote()) == "h"
    assert ray.get(ray.get_actor("n", namespace="elsewhere").get.remote()) == "e"
    with pytest.raises(ValueError):
        ray.get_actor("n", namespace="nowhere")
    ray.kill(a)
    ray.kill(b)


def test_context_namespace():
    assert ray.get_runtime_context().namespace == "home"

    @ray.remote
    def f():
        return ray.get_runtime_context().namespace

    assert ray.get(f.remote()) == "home"


def test_list_named_actors():
    a = Holder.options(name="listed").remote()
    b = Holder.options(name="other", namespace="far").remote()
    ray.get([a.get.remote(), b.get.remote()])
    assert "listed" in ray.util.list_named_actors()
    assert "other" not in ray.util.list_named_actors()
    everywhere = ray.util.list_named_actors(all_namespaces=True)
    assert {"name": "listed", "namespace": "home"} in everywhere
    assert {"name": "other", "namespace": "far"} in everywhere
    ray.kill(a)
    ray.kill(b)


def test_name_in_the_context():
    @ray.remote(num_cpus=0)
    class A:
        def name(self):
            return ray.get_runtime_context().get_actor_name()

    a = A.options(name="self-aware").remote()
    assert ray.get(a.name.remote()) == "self-aware"
    ray.kill(a)


def test_a_second_driver_sees_detached_actors_in_its_namespace():
    address = ray.get_runtime_context().gcs_address
    a = Holder.options(name="across", lifetime="detached").remote("shared")
    ray.get(a.get.remote())
    code = f"""
import ray
ray.init(address={address!r}, namespace="home", log_to_driver=False)
print("got", ray.get(ray.get_actor("across").get.remote()))
try:
    ray.get_actor("absent")
except ValueError:
    print("absent refused")
ray.shutdown()
ray.init(address={address!r}, log_to_driver=False)
try:
    ray.get_actor("across")
except ValueError:
    print("other namespace refused")
"""
    rc, out = run_driver(code)
    assert rc == 0, out
    assert "got shared" in out and "absent refused" in out and "other namespace refused" in out
    ray.kill(a)


def test_a_second_drivers_actors_end_with_it():
    address = ray.get_runtime_context().gcs_address
    code = f"""
import os, ray
ray.init(address={address!r}, namespace="home", log_to_driver=False)
@ray.remote(num_cpus=0)
class A:
    def pid(self):
        return os.getpid()
a = A.options(name="theirs").remote()
b = A.options(name="stays", lifetime="detached").remote()
print("pids", ray.get(a.pid.remote()), ray.get(b.pid.remote()))
"""
    rc, out = run_driver(code)
    assert rc == 0, out
    line = next(x for x in out.splitlines() if x.startswith("pids"))
    theirs, stays = (int(x) for x in line.split()[1:])
    assert eventually(lambda: not is_running(theirs))
    assert gone("theirs")
    assert is_running(stays)
    ray.kill(ray.get_actor("stays"))
