"""What a program can learn about where it runs."""

import os

import pytest
import ray

CLUSTER = {"num_cpus": 4, "num_gpus": 1, "namespace": "ctx"}
pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def facts():
    c = ray.get_runtime_context()
    return {
        "job": c.get_job_id(),
        "node": c.get_node_id(),
        "worker": c.get_worker_id(),
        "task": c.get_task_id(),
        "actor": c.get_actor_id(),
        "task_name": c.get_task_name(),
        "function": c.get_task_function_name(),
        "resources": c.get_assigned_resources(),
    }


def test_driver():
    c = ray.get_runtime_context()
    for value in (c.get_job_id(), c.get_node_id(), c.get_worker_id()):
        assert isinstance(value, str) and bytes.fromhex(value)
    assert c.get_actor_id() is None
    assert c.get_task_name() is None
    assert c.namespace == "ctx"


def test_task():
    seen, driver = ray.get(facts.remote()), ray.get_runtime_context()
    assert seen["job"] == driver.get_job_id()
    assert seen["node"] == driver.get_node_id()
    assert seen["worker"] != driver.get_worker_id()
    assert seen["actor"] is None
    assert seen["task_name"] == "facts"
    assert seen["function"].endswith("facts")
    assert seen["resources"] == {"CPU": 1.0}


def test_task_id_matches_the_ref():
    ref = facts.remote()
    assert ray.get(ref)["task"] == ref.task_id().hex()


def test_task_name_option():
    seen = ray.get(facts.options(name="given").remote())
    assert seen["task_name"] == "given"
    assert seen["function"] == f"{__name__}.facts"


def test_function_name_of_a_method():
    @ray.remote
    class A:
        def __init__(self):
            self.made = ray.get_runtime_context().get_task_function_name()

        def names(self):
            return self.made, ray.get_runtime_context().get_task_function_name()

    of_class = f"{__name__}.A"
    assert ray.get(A.remote().names.remote()) == (f"{of_class}.__init__", f"{of_class}.names")


def test_task_ids_differ():
    assert len({x["task"] for x in ray.get([facts.remote() for _ in range(10)])}) == 10


def test_actor():
    @ray.remote(num_cpus=1)
    class A:
        def facts(self):
            c = ray.get_runtime_context()
            return c.get_actor_id(), c.get_task_name(), c.get_assigned_resources(), c.get_actor_name()

        def handle(self):
            return ray.get_runtime_context().current_actor

    a = A.remote()
    actor_id, task_name, resources, name = ray.get(a.facts.remote())
    assert bytes.fromhex(actor_id) and not name
    assert task_name.endswith("facts")
    assert resources == {"CPU": 1.0}
    assert ray.get(a.handle.remote()) == a
    ray.kill(a)


def test_actor_resources_default_to_none():
    @ray.remote
    class A:
        def facts(self):
            return ray.get_runtime_context().get_assigned_resources()

    a = A.remote()
    assert ray.get(a.facts.remote()) == {}
    ray.kill(a)


def test_fractional_resources():
    assert ray.get(facts.options(num_cpus=0.5).remote())["resources"] == {"CPU": 0.5}


def test_accelerator_ids():
    @ray.remote(num_gpus=1)
    def f():
        return ray.get_runtime_context().get_accelerator_ids()

    assert ray.get(f.remote())["GPU"] == ["0"]
    assert ray.get_runtime_context().get_accelerator_ids()["GPU"] == []


def test_runtime_env_in_the_context():
    @ray.remote(runtime_env={"env_vars": {"CTX_VAR": "v"}})
    def f():
        return dict(ray.get_runtime_context().runtime_env.get("env_vars") or {}), os.environ["CTX_VAR"]

    assert ray.get(f.remote()) == ({"CTX_VAR": "v"}, "v")


def test_nodes():
    (node,) = ray.nodes()
    assert node["Alive"] is True
    assert node["NodeID"] == ray.get_runtime_context().get_node_id()
    assert node["Resources"]["CPU"] == 4.0
    assert isinstance(node["Labels"], dict)
    for key in ("NodeManagerAddress", "NodeManagerHostname", "NodeManagerPort"):
        assert key in node


def test_cluster_and_available_resources():
    total = ray.cluster_resources()
    assert total["CPU"] == 4.0 and total["GPU"] == 1.0
    assert total["memory"] > 0 and total["object_store_memory"] > 0
    assert any(k.startswith("node:") for k in total)


def test_session_facts():
    c = ray.get_runtime_context()
    assert isinstance(c.get_session_name(), str)
    assert os.path.isdir(c.get_temp_dir())
    assert isinstance(c.gcs_address, str)
    with pytest.raises(RuntimeError):
        c.is_canceled()


def test_ids_are_stable():
    assert ray.get_runtime_context().get_job_id() == ray.get_runtime_context().get_job_id()
    assert ray.get_runtime_context().get_node_id() == ray.nodes()[0]["NodeID"]
