"""Who runs when: CPUs, GPUs, custom resources, fractions, lending."""

import os

import pytest
import ray
from coordination import eventually

CLUSTER = {"num_cpus": 2, "num_gpus": 2, "resources": {"widget": 1, "gadget": 4, "NPU": 2, "neuron_cores": 4}}
pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def wait_for(s):
    ray.get(s.wait.remote())
    return "done"


@ray.remote(num_cpus=0)
def gpu_facts():
    return ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_totals():
    total = ray.cluster_resources()
    assert (total["CPU"], total["GPU"], total["widget"], total["gadget"]) == (2.0, 2.0, 1.0, 4.0)


def arrived_of(signal):
    return ray.get(signal.until_arrived.remote(0))


def test_custom_resources_exclude(signal):
    f = wait_for.options(num_cpus=0, resources={"widget": 1})
    refs = [f.remote(signal) for _ in range(3)]
    ray.get(signal.until_arrived.remote(1), timeout=30)
    ready, _ = ray.wait([signal.until_arrived.remote(2)], timeout=1)
    assert ready == []
    ray.get(signal.send.remote())
    assert ray.get(refs, timeout=40) == ["done"] * 3


def test_fractions_share(signal):
    f = wait_for.options(num_cpus=0, resources={"widget": 0.5})
    refs = [f.remote(signal) for _ in range(2)]
    ray.get(signal.until_arrived.remote(2), timeout=40)
    third = f.remote(signal)
    assert ray.wait([signal.until_arrived.remote(3)], timeout=0.5)[0] == []
    ray.get(signal.send.remote())
    assert ray.get([*refs, third], timeout=40) == ["done"] * 3


def test_available_resources_follow(signal):
    ref = wait_for.options(num_cpus=0, resources={"gadget": 3.5}).remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    assert eventually(lambda: ray.available_resources().get("gadget") == 0.5)
    ray.get(signal.send.remote())
    ray.get(ref, timeout=30)
    assert eventually(lambda: ray.available_resources().get("gadget") == 4.0)


def test_actors_hold_their_resources():
    @ray.remote(num_cpus=0, resources={"widget": 1})
    class A:
        def ok(self):
            return 1

    a = A.remote()
    ray.get(a.ok.remote(), timeout=30)
    b = A.remote()
    waiting = b.ok.remote()
    assert ray.wait([waiting], timeout=0.5)[0] == []
    ray.kill(a)
    assert ray.get(waiting, timeout=40) == 1
    ray.kill(b)


def test_infeasible_tasks_wait():
    ref = wait_for.options(resources={"unobtainium": 1}).remote(None)
    assert ray.wait([ref], timeout=0.5)[0] == []
    ray.cancel(ref)


def test_cpus_bound_what_runs(signal):
    @ray.remote(num_cpus=2)
    def both(s):
        s.wait.remote()
        return "ran"

    assert ray.get([both.remote(signal) for _ in range(3)], timeout=50) == ["ran"] * 3
    ray.get(signal.send.remote())


def test_a_waiting_task_lends_its_cpu():
    @ray.remote
    def nest(depth):
        return 1 if depth == 0 else 1 + ray.get(nest.remote(depth - 1))

    assert ray.get(nest.remote(6), timeout=55) == 7


def test_waiting_in_wait_lends_too():
    @ray.remote
    def nest(depth):
        if depth == 0:
            return 1
        (ready,), _ = ray.wait([nest.remote(depth - 1)])
        return 1 + ray.get(ready)

    assert ray.get(nest.remote(4), timeout=55) == 5


def test_lending_with_whole_machine_tasks():
    @ray.remote(num_cpus=2)
    def nest(depth):
        return 1 if depth == 0 else 1 + ray.get(nest.remote(depth - 1))

    assert ray.get(nest.remote(3), timeout=55) == 4


def test_actors_wait_without_cpus():
    @ray.remote
    def leaf():
        return 1

    @ray.remote
    class A:
        def m(self):
            return sum(ray.get([leaf.remote() for _ in range(4)]))

    actors = [A.remote() for _ in range(3)]
    assert ray.get([a.m.remote() for a in actors], timeout=55) == [4] * 3
    for a in actors:
        ray.kill(a)


def test_gpu_ids():
    ids, visible = ray.get(gpu_facts.options(num_gpus=1).remote())
    assert len(ids) == 1 and visible == str(ids[0])
    ids, visible = ray.get(gpu_facts.options(num_gpus=2).remote())
    assert sorted(str(i) for i in ids) == ["0", "1"]
    assert sorted(visible.split(",")) == ["0", "1"]


@pytest.mark.parametrize(
    ("resource", "variable"),
    [("NPU", "ASCEND_RT_VISIBLE_DEVICES"), ("neuron_cores", "NEURON_RT_VISIBLE_CORES")],
)
def test_other_accelerators(resource, variable):
    @ray.remote
    def facts():
        return ray.get_runtime_context().get_accelerator_ids()[resource], os.environ.get(variable)

    ids, visible = ray.get(facts.options(resources={resource: 2}).remote())
    assert len(set(ids)) == 2 and visible == ",".join(ids)
    assert ray.get_runtime_context().get_accelerator_ids()[resource] == []


def test_an_actor_that_asks_for_memory_only_holds_no_cpu():
    @ray.remote(memory=1 << 20)
    class Small:
        def ready(self):
            return ray.get_runtime_context().get_assigned_resources().get("CPU", 0)

    actors = [Small.remote() for _ in range(4)]
    assert ray.get([a.ready.remote() for a in actors], timeout=60) == [0] * 4
    for a in actors:
        ray.kill(a)


def test_accelerator_variables_left_alone():
    env = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "7"}}
    ids, visible = ray.get(gpu_facts.options(num_gpus=1, runtime_env=env).remote())
    assert len(ids) == 1 and visible == "7"


def test_no_gpu_no_device():
    ids, visible = ray.get(gpu_facts.remote())
    assert ids == []
    assert not visible


def test_gpu_ids_of_the_driver():
    assert ray.get_gpu_ids() == []


def test_gpu_tasks_at_once_get_different_devices(signal):
    @ray.remote(num_gpus=1, num_cpus=0)
    def f(s):
        ray.get(s.wait.remote())
        return os.environ["CUDA_VISIBLE_DEVICES"]

    refs = [f.remote(signal) for _ in range(2)]
    ray.get(signal.until_arrived.remote(2), timeout=40)
    ray.get(signal.send.remote())
    assert sorted(ray.get(refs)) == ["0", "1"]


def test_fractional_gpus_share_a_device(signal):
    @ray.remote(num_gpus=0.5, num_cpus=0)
    def f(s):
        ray.get(s.wait.remote())
        return os.environ["CUDA_VISIBLE_DEVICES"]

    refs = [f.remote(signal) for _ in range(4)]
    ray.get(signal.until_arrived.remote(4), timeout=50)
    ray.get(signal.send.remote())
    devices = ray.get(refs)
    assert sorted(devices) == ["0", "0", "1", "1"]


def test_actor_gpu():
    @ray.remote(num_gpus=1)
    class A:
        def facts(self):
            return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    a, b = A.remote(), A.remote()
    (ids_a, env_a), (ids_b, env_b) = ray.get([a.facts.remote(), b.facts.remote()], timeout=50)
    assert {env_a, env_b} == {"0", "1"}
    assert [str(i) for i in ids_a] == [env_a] and [str(i) for i in ids_b] == [env_b]
    ray.kill(a)
    ray.kill(b)


def test_gpu_workers_are_not_reused_by_default():
    @ray.remote(num_gpus=1, num_cpus=0)
    def pid():
        return os.getpid()

    assert len({ray.get(pid.remote()) for _ in range(3)}) == 3


def test_memory_request(signal):
    total = ray.cluster_resources()["memory"]
    f = wait_for.options(num_cpus=0, memory=int(total * 0.6))
    first, second = f.remote(signal), f.remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    assert ray.wait([signal.until_arrived.remote(2)], timeout=0.5)[0] == []
    ray.get(signal.send.remote())
    assert ray.get([first, second], timeout=40) == ["done"] * 2


def test_scheduling_strategies_on_one_node():
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()

    @ray.remote(num_cpus=0)
    def where():
        return ray.get_runtime_context().get_node_id()

    for strategy in [
        "DEFAULT",
        "SPREAD",
        NodeAffinitySchedulingStrategy(node, soft=False),
        NodeAffinitySchedulingStrategy(node, soft=True),
    ]:
        assert ray.get(where.options(scheduling_strategy=strategy).remote()) == node


def test_hard_affinity_to_an_unknown_node_fails():
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    f = wait_for.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy("ab" * 28, soft=False), max_retries=0
    )
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        ray.get(f.remote(None), timeout=40)


def test_placement_group_on_one_node():
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
    ray.get(group.ready(), timeout=40)
    assert group.bundle_specs == [{"CPU": 1}, {"CPU": 1}]

    @ray.remote(num_cpus=1)
    def inside():
        return ray.util.get_current_placement_group().id.hex()

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    assert ray.get(inside.options(scheduling_strategy=strategy).remote(), timeout=40) == group.id.hex()
    ray.util.remove_placement_group(group)
