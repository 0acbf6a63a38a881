"""init and shutdown, and what the API does without a cluster."""

import gc
import os

import numpy as np
import pytest
import ray
from coordination import eventually, run_driver

pytestmark = pytest.mark.usefixtures("no_cluster")


@ray.remote
def one():
    return 1


def test_init_shutdown_and_again():
    assert not ray.is_initialized()
    ray.init(num_cpus=1)
    assert ray.is_initialized()
    assert ray.get(one.remote()) == 1
    ray.shutdown()
    assert not ray.is_initialized()
    ray.init(num_cpus=3)
    assert ray.cluster_resources()["CPU"] == 3.0
    assert ray.get(one.remote()) == 1


def test_shutdown_without_init():
    ray.shutdown()
    ray.shutdown()
    assert not ray.is_initialized()


def test_second_init():
    first = ray.init(num_cpus=1)
    with pytest.raises(RuntimeError):
        ray.init(num_cpus=1)
    assert ray.is_initialized()
    again = ray.init(num_cpus=7, ignore_reinit_error=True)
    assert again.address_info["session_dir"] == first.address_info["session_dir"]
    assert ray.cluster_resources()["CPU"] == 1.0


def test_context_manager():
    with ray.init(num_cpus=1) as context:
        assert ray.is_initialized()
        assert isinstance(context.address_info, dict)
        assert context.address_info["node_id"] == ray.get_runtime_context().get_node_id()
        assert context["session_dir"] == context.address_info["session_dir"]
    assert not ray.is_initialized()


def test_first_call_starts_a_cluster():
    assert not ray.is_initialized()
    assert ray.get(one.remote()) == 1
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] >= 1


def test_put_starts_a_cluster():
    ref = ray.put(1)
    assert ray.is_initialized()
    assert ray.get(ref) == 1


def test_resources_of_init():
    ray.init(
        num_cpus=2,
        num_gpus=1,
        resources={"a": 3, "b": 2},
        object_store_memory=200 * 1024 * 1024,
        labels={"zone": "x"},
    )
    total = ray.cluster_resources()
    assert (total["CPU"], total["GPU"], total["a"], total["b"]) == (2.0, 1.0, 3.0, 2.0)
    assert total["object_store_memory"] == 200 * 1024 * 1024
    assert ray.nodes()[0]["Labels"]["zone"] == "x"


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_cpus": -1},
        {"num_gpus": -1},
        {"no_such_argument": 1},
        {"resources": {"CPU": 1}},
        {"resources": {"x": -1}},
        {"resources": {"x": 1.5}},
        {"object_store_memory": 1},
        {"address": "nonsense"},
    ],
    ids=str,
)
def test_bad_arguments(arguments):
    with pytest.raises(Exception) as info:
        ray.init(**arguments)
    assert isinstance(info.value, (ValueError, TypeError, RuntimeError, AssertionError, ConnectionError))
    assert not ray.is_initialized()


def test_auto_without_a_cluster():
    with pytest.raises(ConnectionError):
        ray.init(address="auto")
    assert not ray.is_initialized()


def test_calls_that_do_not_start_a_cluster():
    with pytest.raises(ray.exceptions.RaySystemError):
        ray.cluster_resources()
    assert not ray.is_initialized()


def test_remote_functions_and_classes_survive_a_new_cluster():
    @ray.remote
    def f(x):
        return x + 1

    @ray.remote(num_cpus=0)
    class A:
        def m(self):
            return "m"

    for _ in range(2):
        ray.init(num_cpus=1)
        assert ray.get(f.remote(1)) == 2
        assert ray.get(A.remote().m.remote()) == "m"
        ray.shutdown()


def test_arrays_survive_shutdown():
    ray.init(num_cpus=1)
    array = ray.get(ray.put(np.arange(300_000)))
    ray.shutdown()
    gc.collect()
    assert array[299_999] == 299_999 and int(array.sum()) == 44999850000


def test_refs_may_die_after_shutdown():
    ray.init(num_cpus=1)
    refs = [ray.put(i) for i in range(10)] + [one.remote()]
    ray.shutdown()
    del refs
    gc.collect()
    ray.init(num_cpus=1)
    assert ray.get(one.remote()) == 1


def test_a_driver_that_does_not_shut_down_exits_cleanly():
    rc, out = run_driver(
        "import ray\nray.init(num_cpus=1, log_to_driver=False)\n"
        "f = ray.remote(lambda: 5)\nprint('result', ray.get(f.remote()))\n"
    )
    assert rc == 0, out
    assert "result 5" in out


def test_a_driver_with_an_error_keeps_its_exit_code():
    rc, out = run_driver("import ray, sys\nray.init(num_cpus=1)\nray.put(1)\nsys.exit(7)\n")
    assert rc == 7, out


def test_two_clusters_on_one_machine():
    ray.init(num_cpus=1, resources={"mine": 1})
    rc, out = run_driver(
        "import ray\nray.init(address='local', num_cpus=2, log_to_driver=False)\n"
        "print('cpus', ray.cluster_resources()['CPU'], 'mine' in ray.cluster_resources())\n"
        "print('result', ray.get(ray.remote(lambda: 6).remote()))\n",
        env={"RAY_ADDRESS": ""},
    )
    assert rc == 0, out
    assert "cpus 2.0 False" in out and "result 6" in out
    assert ray.get(one.remote()) == 1


def test_connecting_to_a_running_cluster():
    context = ray.init(num_cpus=1, resources={"mine": 1})
    address = context.address_info["address"]
    code = (
        "import ray\nray.init({}log_to_driver=False)\n"
        "print('mine', ray.cluster_resources().get('mine'))\n"
        "print('result', ray.get(ray.remote(lambda: 6).remote()))\n"
    )
    for argument, env in [(f"{address!r}, ", {}), ("", {"RAY_ADDRESS": address})]:
        rc, out = run_driver(code.format(argument), env=env)
        assert rc == 0, out
        assert "mine 1.0" in out and "result 6" in out
    assert ray.get(one.remote()) == 1


def test_num_cpus_is_refused_when_connecting():
    address = ray.init(num_cpus=1).address_info["address"]
    rc, out = run_driver(f"import ray\nray.init({address!r}, num_cpus=4)\n")
    assert rc == 1 and "ValueError" in out


def test_nothing_but_the_driver_is_left_of_a_shut_down_cluster():
    ray.init(num_cpus=2)

    @ray.remote
    def pid():
        return os.getpid()

    worker = ray.get(pid.remote())
    ray.shutdown()
    from coordination import is_running

    assert eventually(lambda: not is_running(worker))


def test_versions():
    assert ray.__version__ == "2.60.0"
    assert isinstance(ray.__commit__, str)
