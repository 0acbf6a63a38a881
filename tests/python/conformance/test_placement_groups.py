"""Placement groups: what they reserve, what runs in them, and what becomes of it when they go."""

import os

import pytest
import ray
from coordination import eventually
from ray.util import get_current_placement_group, placement_group, remove_placement_group
from ray.util import placement_group_table as table
from ray.util.placement_group import PlacementGroup, check_placement_group_index, validate_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

CLUSTER = {"num_cpus": 3, "resources": {"widget": 2}}
pytestmark = pytest.mark.usefixtures("cluster")
PAUSE_S = 0.5


@ray.remote
def where():
    group = get_current_placement_group()
    return group and group.id.hex()


# A task that waits lends its CPU; what holds a widget keeps it.
@ray.remote(num_cpus=0, resources={"widget": 1})
def wait_for(s):
    ray.get(s.wait.remote())
    return "done"


@ray.remote(num_cpus=0, resources={"widget": 1})
def take_one():
    return "took"


@ray.remote
def nested(options):
    return [ray.get(where.options(**o).remote(), timeout=30) for o in options]


@ray.remote
class Actor:
    def pid(self):
        return os.getpid()

    def where(self):
        group = get_current_placement_group()
        return group and group.id.hex()

    def child(self):
        return ray.get(where.options(num_cpus=0).remote(), timeout=30)

    def captures(self):
        return ray.get_runtime_context().should_capture_child_tasks_in_placement_group


@pytest.fixture
def make():
    made = []

    def make(*args, **kwargs):
        made.append(placement_group(*args, **kwargs))
        return made[-1]

    yield make
    for group in made:
        remove_placement_group(group)
    assert eventually(lambda: ray.available_resources().get("CPU") == 3.0)


def available(name="CPU"):
    return ray.available_resources().get(name, 0.0)


def still_waits(ref):
    return ray.wait([ref], timeout=PAUSE_S)[0] == []


def test_a_group_reserves_its_bundles(make):
    group = make([{"CPU": 1}, {"CPU": 1, "widget": 1}])
    assert group.wait(30)
    assert eventually(lambda: available() == 1.0)
    assert available("widget") == 1.0
    assert ray.cluster_resources()["CPU"] == 3.0


def test_the_bundles_are_resources_of_their_own(make):
    group = make([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(30)
    name = group.id.hex()
    assert eventually(lambda: f"CPU_group_{name}" in ray.cluster_resources())
    total, free = ray.cluster_resources(), ray.available_resources()
    for resources in (total, free):
        assert resources[f"CPU_group_0_{name}"] == resources[f"CPU_group_1_{name}"] == 1.0
        assert resources[f"CPU_group_{name}"] == 2.0
        assert resources[f"bundle_group_{name}"] == 2000.0
    assert not any("group" in resource for resource in ray.nodes()[0]["Resources"])


def test_ready_returns_the_group(make):
    group = make([{"CPU": 1}])
    assert ray.get(group.ready(), timeout=30).id == group.id


def test_a_task_runs_in_its_group(make):
    group = make([{"CPU": 1}, {"CPU": 1}])
    for index in (-1, 0, 1):
        ref = where.options(scheduling_strategy=InGroup(group, index)).remote()
        assert ray.get(ref, timeout=30) == group.id.hex()
    assert ray.get(where.remote(), timeout=30) is None


def test_a_full_bundle_makes_wait(make, signal):
    group = make([{"widget": 1}, {"widget": 1}])
    first = wait_for.options(scheduling_strategy=InGroup(group, 0)).remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    second = take_one.options(scheduling_strategy=InGroup(group, 0)).remote()
    other = take_one.options(scheduling_strategy=InGroup(group, 1)).remote()
    assert ray.get(other, timeout=30) == "took"
    assert still_waits(second)
    ray.get(signal.send.remote())
    assert ray.get([first, second], timeout=30) == ["done", "took"]


def test_outsiders_do_not_get_what_is_reserved(make, signal):
    group = make([{"widget": 1}])
    assert group.wait(30)
    refs = [wait_for.remote(signal) for _ in range(2)]
    ray.get(signal.until_arrived.remote(1), timeout=30)
    assert still_waits(signal.until_arrived.remote(2))
    ray.get(signal.send.remote())
    assert ray.get(refs, timeout=30) == ["done", "done"]


def test_a_group_waits_for_room_and_a_smaller_one_overtakes(make):
    first = make([{"CPU": 2}])
    assert first.wait(30)
    second, third = make([{"CPU": 2}]), make([{"CPU": 1}])
    assert third.wait(30)
    assert not second.wait(0.2)
    assert table(second)["state"] == "PENDING"
    remove_placement_group(first)
    assert second.wait(30)


def test_a_group_gets_its_room_from_tasks_that_end(make, signal):
    refs = [wait_for.remote(signal) for _ in range(2)]
    ray.get(signal.until_arrived.remote(2), timeout=30)
    group = make([{"widget": 2}])
    assert not group.wait(0.2)
    ray.get(signal.send.remote())
    assert group.wait(30)
    assert ray.get(refs, timeout=30) == ["done"] * 2


def test_what_no_node_holds_stays_pending(make):
    for bundles, strategy in (([{"CPU": 9}], "PACK"), ([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")):
        group = make(bundles, strategy=strategy)
        assert not group.wait(0.2)
        assert table(group)["state"] == "PENDING"


def test_a_task_waits_for_its_group(make):
    first = make([{"CPU": 3}])
    assert first.wait(30)
    second = make([{"CPU": 1}])
    ref = where.options(scheduling_strategy=InGroup(second)).remote()
    assert still_waits(ref)
    remove_placement_group(first)
    assert ray.get(ref, timeout=30) == second.id.hex()


@pytest.mark.parametrize("index", [2, -2, 7])
def test_an_index_out_of_range_is_refused(make, index):
    group = make([{"CPU": 1}, {"CPU": 1}])
    with pytest.raises(ValueError):
        where.options(scheduling_strategy=InGroup(group, index)).remote()
    with pytest.raises(ValueError):
        Actor.options(num_cpus=1, scheduling_strategy=InGroup(group, index)).remote()


@pytest.mark.parametrize("options", [{"num_cpus": 2}, {"resources": {"widget": 2}}, {"resources": {"no": 1}}])
def test_what_no_bundle_can_hold_is_refused(make, options):
    group = make([{"CPU": 1}, {"CPU": 1, "widget": 1}])
    with pytest.raises(ValueError):
        where.options(**options, scheduling_strategy=InGroup(group)).remote()
    with pytest.raises(ValueError):
        Actor.options(**options, scheduling_strategy=InGroup(group)).remote()


def test_an_actor_lives_in_its_group(make):
    group = make([{"CPU": 1}])
    actor = Actor.options(num_cpus=1, scheduling_strategy=InGroup(group, 0)).remote()
    assert ray.get(actor.where.remote(), timeout=30) == group.id.hex()
    second = Actor.options(num_cpus=1, scheduling_strategy=InGroup(group, 0)).remote()
    pid = second.pid.remote()
    assert still_waits(pid)
    ray.kill(actor)
    assert ray.get(pid, timeout=30) > 0


def test_children_are_captured_when_asked(make):
    group = make([{"CPU": 2}])
    me = group.id.hex()
    choices = [
        {},
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"placement_group": None},
    ]
    choices = [{"num_cpus": 0, **choice} for choice in choices]
    captured = nested.options(scheduling_strategy=InGroup(group, 0, True)).remote(choices)
    assert ray.get(captured, timeout=30) == [me, None, None, None]
    free = nested.options(scheduling_strategy=InGroup(group, 0)).remote(choices)
    assert ray.get(free, timeout=30) == [None] * 4


def test_grandchildren_are_captured(make):
    group = make([{"CPU": 2}])

    @ray.remote(num_cpus=0)
    def parent():
        return ray.get(nested.options(num_cpus=0).remote([{"num_cpus": 0}]), timeout=30)

    ref = parent.options(scheduling_strategy=InGroup(group, 0, True)).remote()
    assert ray.get(ref, timeout=30) == [group.id.hex()]


def test_an_actor_captures_its_children(make):
    group = make([{"CPU": 1}])
    actor = Actor.options(num_cpus=1, scheduling_strategy=InGroup(group, 0, True)).remote()
    assert ray.get(actor.captures.remote(), timeout=30) is True
    assert ray.get(actor.child.remote(), timeout=30) == group.id.hex()


def test_a_waiting_parent_lends_its_cpu_within_the_bundle(make):
    group = make([{"CPU": 1}])
    ref = nested.options(num_cpus=1, scheduling_strategy=InGroup(group, 0, True)).remote([{"num_cpus": 1}])
    assert ray.get(ref, timeout=40) == [group.id.hex()]


def test_removal_kills_what_runs_and_fails_what_waits(make, signal):
    group = make([{"widget": 1}, {"CPU": 1}])
    running = wait_for.options(max_retries=0, scheduling_strategy=InGroup(group, 0)).remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    waiting = take_one.options(scheduling_strategy=InGroup(group, 0)).remote()
    actor = Actor.options(num_cpus=1, scheduling_strategy=InGroup(group, 1)).remote()
    assert ray.get(actor.pid.remote(), timeout=30) > 0
    pending = Actor.options(num_cpus=1, scheduling_strategy=InGroup(group, 1)).remote().pid.remote()
    assert still_waits(waiting)
    remove_placement_group(group)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(running, timeout=30)
    with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved):
        ray.get(waiting, timeout=30)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.pid.remote(), timeout=30)
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(pending, timeout=30)


def test_removal_frees_at_once(make):
    group = make([{"CPU": 3}])
    assert group.wait(30)
    remove_placement_group(group)
    assert make([{"CPU": 3}]).wait(30)
    remove_placement_group(group)
    assert table(group)["state"] == "REMOVED"


def test_ready_of_a_removed_group_fails(make):
    group = make([{"CPU": 1}])
    assert group.wait(30)
    remove_placement_group(group)
    with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved):
        ray.get(group.ready(), timeout=30)


def test_table(make):
    group = make([{"CPU": 1}, {"CPU": 1, "widget": 1}], strategy="SPREAD", name="shown")
    assert group.wait(30)
    row = table(group)
    node = ray.nodes()[0]["NodeID"]
    assert row["placement_group_id"] == group.id.hex()
    assert (row["name"], row["strategy"], row["state"]) == ("shown", "SPREAD", "CREATED")
    assert row["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 1.0, "widget": 1.0}}
    assert row["bundles_to_node_id"] == {0: node, 1: node}
    assert table()[group.id.hex()] == row
    assert row["stats"]["scheduling_state"] == "FINISHED"


def test_names(make):
    group = make([{"CPU": 1}], name="known")
    assert group.wait(30)
    assert ray.util.get_placement_group("known").id == group.id
    with pytest.raises(Exception, match="known"):
        placement_group([{"CPU": 1}], name="known")
    remove_placement_group(group)
    for name in ("known", "never"):
        with pytest.raises(ValueError):
            ray.util.get_placement_group(name)


def test_a_found_group_knows_its_bundles(make):
    make([{"CPU": 1}, {"widget": 1}], name="found")
    found = ray.util.get_placement_group("found")
    assert found.bundle_specs == [{"CPU": 1.0}, {"widget": 1.0}]
    assert found.bundle_count == 2


def test_the_index_of_a_bundle_is_checked():
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    for index in (-1, 0, 1):
        check_placement_group_index(group, index)
    for index in (-2, 2):
        with pytest.raises(ValueError):
            check_placement_group_index(group, index)
    remove_placement_group(group)
    check_placement_group_index(PlacementGroup.empty(), -1)
    with pytest.raises(ValueError):
        check_placement_group_index(PlacementGroup.empty(), 0)


def test_what_a_group_asks_for_is_checked():
    validate_placement_group([{"CPU": 1}], strategy="SPREAD", lifetime="detached")
    validate_placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "a"}])
    for wrong in (
        {"bundles": []},
        {"bundles": [{"CPU": 1}], "strategy": "SOMEWHERE"},
        {"bundles": [{"CPU": 1}], "lifetime": "forever"},
        {"bundles": [{"CPU": 1}], "_soft_target_node_id": ray.NodeID.from_random().hex()},
        {"bundles": [{"CPU": 1}], "_soft_target_node_id": ray.NodeID.nil().hex(), "strategy": "STRICT_PACK"},
        {"bundles": [{"CPU": 1}], "bundle_label_selector": []},
    ):
        with pytest.raises(ValueError):
            validate_placement_group(**wrong)
