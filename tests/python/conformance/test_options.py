"""What options are accepted, and what is refused where."""

import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")


def task():
    return 1


class Thing:
    def m(self):
        return 1


@pytest.mark.parametrize(
    "options, error",
    [
        ({"num_cpus": -1}, ValueError),
        ({"num_gpus": -1}, ValueError),
        ({"num_cpus": "1"}, TypeError),
        ({"num_returns": -1}, ValueError),
        ({"num_returns": "many"}, (TypeError, ValueError)),
        ({"num_returns": 1.5}, TypeError),
        ({"max_retries": -2}, ValueError),
        ({"max_retries": "3"}, TypeError),
        ({"max_calls": -1}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"GPU": 1}}, ValueError),
        ({"resources": ["x"]}, TypeError),
        ({"resources": {"x": -1}}, ValueError),
        ({"memory": -1}, ValueError),
        ({"retry_exceptions": "yes"}, TypeError),
        ({"name": 1}, TypeError),
        ({"no_such_option": 1}, ValueError),
        ({"max_restarts": 1}, ValueError),
        ({"max_concurrency": 2}, ValueError),
        ({"lifetime": "detached"}, ValueError),
        ({"scheduling_strategy": 1}, TypeError),
        ({"num_gpus": 1.5}, ValueError),
    ],
    ids=str,
)
def test_bad_task_options(options, error):
    with pytest.raises(error):
        ray.remote(**options)(task).remote()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"num_cpus": -1}, ValueError),
        ({"max_restarts": -2}, ValueError),
        ({"max_task_retries": -2}, ValueError),
        ({"max_concurrency": "2"}, TypeError),
        ({"lifetime": "forever"}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"no_such_option": 1}, ValueError),
        ({"num_returns": 2}, ValueError),
        ({"max_calls": 2}, ValueError),
        ({"max_retries": 2}, ValueError),
        ({"name": 1}, TypeError),
        ({"name": ""}, ValueError),
        ({"get_if_exists": True}, ValueError),
        ({"namespace": 1, "name": "x"}, TypeError),
    ],
    ids=str,
)
def test_bad_actor_options(options, error):
    with pytest.raises(error):
        ray.remote(Thing).options(**options).remote()


def test_remote_takes_keywords_or_one_callable():
    with pytest.raises((TypeError, AssertionError)):
        ray.remote(1)
    with pytest.raises((TypeError, AssertionError)):
        ray.remote(1)(task)
    with pytest.raises((TypeError, AssertionError)):
        ray.remote()(task)


def test_unknown_option_in_options():
    with pytest.raises(ValueError):
        ray.remote(task).options(no_such_option=1)


def test_max_calls_and_concurrency_groups_are_not_for_options():
    with pytest.raises(ValueError):
        ray.remote(task).options(max_calls=1)
    with pytest.raises(ValueError):
        ray.remote(Thing).options(concurrency_groups={"a": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0},
        {"num_cpus": 0.5},
        {"num_cpus": None},
        {"num_returns": None},
        {"max_retries": -1},
        {"max_retries": 0},
        {"retry_exceptions": True},
        {"retry_exceptions": [ValueError]},
        {"retry_exceptions": (ValueError, KeyError)},
        {"resources": {}},
        {"name": "a name"},
        {"memory": 1024 * 1024},
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": None},
        {"runtime_env": None},
        {"runtime_env": {}},
        {"enable_task_events": False},
        {"_labels": {"k": "v"}},
        {"max_calls": 3},
    ],
    ids=str,
)
def test_good_task_options(options):
    assert ray.get(ray.remote(**options)(task).remote()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0.5},
        {"max_restarts": -1},
        {"max_task_retries": -1},
        {"max_concurrency": 3},
        {"max_pending_calls": 10},
        {"lifetime": None},
        {"lifetime": "non_detached"},
        {"name": "good-options"},
        {"scheduling_strategy": "SPREAD"},
        {"memory": 1024 * 1024},
    ],
    ids=str,
)
def test_good_actor_options(options):
    actor = ray.remote(Thing).options(**options).remote()
    assert ray.get(actor.m.remote()) == 1
    ray.kill(actor)


def test_options_survive_a_second_options_call():
    f = ray.remote(lambda: (1, 2)).options(num_returns=2)
    assert ray.get(f.remote()) == [1, 2]


def test_num_returns_zero():
    assert ray.remote(task).options(num_returns=0).remote() is None
    assert ray.remote(lambda: None).options(num_returns=0).remote() is None


def test_decorator_options_apply():
    @ray.remote(num_returns=3)
    def three():
        return 1, 2, 3

    refs = three.remote()
    assert isinstance(refs, list) and len(refs) == 3
    assert ray.get(refs) == [1, 2, 3]


def test_method_options():
    @ray.remote(num_cpus=0)
    class A:
        @ray.method(num_returns=2)
        def pair(self):
            return 1, 2

        def triple(self):
            return 1, 2, 3

    a = A.remote()
    assert ray.get(a.pair.remote()) == [1, 2]
    assert ray.get(a.triple.options(num_returns=3).remote()) == [1, 2, 3]
    assert ray.get(a.pair.options(num_returns=1).remote()) == (1, 2)
    ray.kill(a)


def test_method_refuses_unknown_options():
    with pytest.raises((AssertionError, ValueError, TypeError)):

        class A:
            @ray.method(no_such=1)
            def m(self):
                pass
