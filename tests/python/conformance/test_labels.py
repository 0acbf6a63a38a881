"""Labels of nodes: selectors, fallbacks, strategies, affinity."""

import pytest
import ray
from coordination import eventually
from ray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

CLUSTER = {"num_cpus": 2, "labels": {"region": "us", "tier": "gold"}}
pytestmark = pytest.mark.usefixtures("cluster")
PAUSE_S = 0.5


@ray.remote
def f():
    return "ran"


@ray.remote
class Actor:
    def f(self):
        return "ran"


def runs(options):
    ref = f.options(**options).remote()
    if ray.wait([ref], timeout=PAUSE_S)[0]:
        return ray.get(ref) == "ran"
    ray.cancel(ref)
    return False


def test_labels_of_the_node():
    node = ray.nodes()[0]
    expected = {"region": "us", "tier": "gold", "ray.io/node-id": node["NodeID"]}
    assert node["Labels"] == expected
    assert ray.get_runtime_context().get_node_labels() == expected


def test_labels_within_a_task():
    @ray.remote
    def labels():
        return ray.get_runtime_context().get_node_labels()

    assert ray.get(labels.remote(), timeout=30) == ray.nodes()[0]["Labels"]


@pytest.mark.parametrize(
    "selector",
    [
        {"region": "us"},
        {"region": "!eu"},
        {"region": "in(us,eu)"},
        {"region": "in(us, eu)"},
        {"region": "!in(eu)"},
        {"absent": "!x"},
        {"absent": "!in(x)"},
        {"region": "us", "tier": "gold"},
        {},
    ],
)
def test_a_selector_that_matches(selector):
    assert ray.get(f.options(label_selector=selector).remote(), timeout=30) == "ran"


@pytest.mark.parametrize(
    "selector",
    [
        {"region": "eu"},
        {"region": "!us"},
        {"region": "!in(us,eu)"},
        {"absent": "x"},
        {"region": ""},
        {"region": "us", "tier": "silver"},
    ],
)
def test_a_selector_that_does_not_match_waits(selector):
    assert not runs({"label_selector": selector})


def test_the_id_is_a_label():
    node = ray.nodes()[0]["NodeID"]
    ref = f.options(label_selector={"ray.io/node-id": node}).remote()
    assert ray.get(ref, timeout=30) == "ran"


@pytest.mark.parametrize(
    "value", ["in(a b)", "in()", "a b", "-x", "!", "!!x", "in(a,)", "x" * 64, "in(a", "a,b"]
)
def test_malformed_selectors(value):
    with pytest.raises(ValueError):
        f.options(label_selector={"region": value})


@pytest.mark.parametrize("key", ["re gion", "-r", "x" * 64, "a b/c"])
def test_malformed_keys(key):
    with pytest.raises(ValueError):
        f.options(label_selector={key: "x"})


def test_fallbacks():
    selector = {"region": "eu"}
    us, ap = {"label_selector": {"region": "us"}}, {"label_selector": {"region": "ap"}}
    anywhere = {"label_selector": {}}
    for fallback in ([ap, us], [us], [anywhere]):
        ref = f.options(label_selector=selector, fallback_strategy=fallback).remote()
        assert ray.get(ref, timeout=30) == "ran"
    assert not runs({"label_selector": selector, "fallback_strategy": [ap]})


@pytest.mark.parametrize(
    "fallback",
    [
        [{"label_selectr": {}}],
        [{}],
        [{"label_selector": {"a": "b c"}}],
        [{"label_selector": {"a": "b"}, "memory": 1}],
    ],
)
def test_malformed_fallbacks(fallback):
    with pytest.raises(ValueError):
        f.options(fallback_strategy=fallback)


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        ({"region": In("us", "eu")}, True),
        ({"region": In("eu")}, False),
        ({"region": NotIn("eu")}, True),
        ({"region": NotIn("us")}, False),
        ({"absent": NotIn("x")}, True),
        ({"region": Exists()}, True),
        ({"absent": Exists()}, False),
        ({"region": DoesNotExist()}, False),
        ({"absent": DoesNotExist()}, True),
    ],
    ids=str,
)
def test_label_strategy(hard, expected):
    options = {"scheduling_strategy": NodeLabelSchedulingStrategy(hard=hard)}
    if expected:
        assert ray.get(f.options(**options).remote(), timeout=30) == "ran"
    else:
        assert not runs(options)


def test_soft_labels_are_a_preference():
    strategy = NodeLabelSchedulingStrategy(hard={"region": Exists()}, soft={"tier": In("lead")})
    assert ray.get(f.options(scheduling_strategy=strategy).remote(), timeout=30) == "ran"


def test_actors_follow_labels():
    matching = Actor.options(label_selector={"region": "us"}).remote()
    assert ray.get(matching.f.remote(), timeout=30) == "ran"
    strategy = NodeLabelSchedulingStrategy(hard={"region": In("eu")})
    for options in ({"label_selector": {"region": "eu"}}, {"scheduling_strategy": strategy}):
        waiting = Actor.options(**options).remote()
        assert ray.wait([waiting.f.remote()], timeout=PAUSE_S)[0] == []


def test_bundles_follow_labels():
    def made(selectors):
        group = ray.util.placement_group([{"CPU": 1}] * len(selectors), bundle_label_selector=selectors)
        result = group.wait(1)
        ray.util.remove_placement_group(group)
        return result

    assert made([{"region": "us"}])
    assert not made([{"region": "us"}, {"region": "eu"}])
    assert eventually(lambda: ray.available_resources().get("CPU") == 2.0)


def test_hard_affinity_to_an_unknown_node_fails():
    strategy = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        ray.get(f.options(scheduling_strategy=strategy).remote(), timeout=30)
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(Actor.options(scheduling_strategy=strategy).remote().f.remote(), timeout=30)


def test_soft_affinity_to_an_unknown_node_falls_back():
    strategy = NodeAffinitySchedulingStrategy("ab" * 28, soft=True)
    assert ray.get(f.options(scheduling_strategy=strategy).remote(), timeout=30) == "ran"
    assert ray.get(Actor.options(scheduling_strategy=strategy).remote().f.remote(), timeout=30) == "ran"


def test_hard_affinity_to_a_node_that_can_never_hold_it_fails():
    strategy = NodeAffinitySchedulingStrategy(ray.nodes()[0]["NodeID"], soft=False)
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        ray.get(f.options(num_cpus=9, scheduling_strategy=strategy).remote(), timeout=30)
