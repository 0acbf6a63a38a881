"""Actors: state, order, handles, classes, endings."""

import os
import signal as signals

import numpy as np
import pytest
import ray
from coordination import eventually, is_running
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote(num_cpus=0)
class Counter:
    """Counts."""

    step = 1

    def __init__(self, start=0, *, by=None):
        self.n = start
        if by is not None:
            self.step = by

    def increment(self, by=None):
        self.n += self.step if by is None else by
        return self.n

    def value(self):
        return self.n

    def pid(self):
        return os.getpid()

    def call(self, other):
        return ray.get(other.increment.remote())

    def me(self):
        return ray.get_runtime_context().current_actor

    def die(self):
        os._exit(1)

    @staticmethod
    def static(x):
        return x + 1

    @classmethod
    def named(cls):
        return cls.__name__

    def __len__(self):
        return self.n


@pytest.fixture
def counter():
    actor = Counter.remote()
    yield actor
    ray.kill(actor)


def test_state_is_kept(counter):
    assert ray.get([counter.increment.remote() for _ in range(3)]) == [1, 2, 3]
    assert ray.get(counter.value.remote()) == 3


def test_constructor_arguments():
    a = Counter.remote(ray.put(10), by=5)
    assert ray.get(a.increment.remote()) == 15
    ray.kill(a)


def test_two_instances_are_two_processes(counter):
    other = Counter.remote()
    pids = ray.get([counter.pid.remote(), other.pid.remote()])
    assert len({os.getpid(), *pids}) == 3
    assert ray.get(counter.pid.remote()) == pids[0]
    ray.kill(other)


def test_wrong_arguments_raise_at_the_call(counter):
    with pytest.raises(TypeError):
        counter.value.remote(1)
    with pytest.raises(TypeError):
        counter.increment.remote(nothing=1)
    with pytest.raises(TypeError):
        Counter.remote(1, 2, 3)


def test_no_such_method(counter):
    with pytest.raises(AttributeError):
        counter.nothing.remote()


def test_direct_calls_are_refused(counter):
    with pytest.raises(TypeError):
        counter.increment()
    with pytest.raises(TypeError):
        Counter()


def test_static_class_and_special_methods(counter):
    assert ray.get(counter.static.remote(1)) == 2
    assert ray.get(counter.named.remote()) == "Counter"
    ray.get(counter.increment.remote())
    assert ray.get(counter.__len__.remote()) == 1


def test_refs_as_arguments(counter):
    assert ray.get(counter.increment.remote(ray.put(4))) == 4
    assert ray.get(counter.increment.remote(by=counter.value.remote())) == 8


def test_calls_of_one_caller_run_in_order():
    @ray.remote(num_cpus=0)
    class Log:
        def __init__(self):
            self.seen = []

        def add(self, i):
            self.seen.append(i)

        def all(self):
            return self.seen

    log = Log.remote()
    for i in range(500):
        log.add.remote(i)
    assert ray.get(log.all.remote()) == list(range(500))
    ray.kill(log)


def test_calls_behind_one_whose_argument_failed_go_on(signal):
    @ray.remote
    def fail(s):
        ray.get(s.wait.remote())
        raise KeyError("argument")

    @ray.remote(num_cpus=0)
    class Echo:
        def echo(self, x):
            return x

    echo = Echo.remote()
    bad = echo.echo.remote(fail.remote(signal))
    behind = [echo.echo.remote(i) for i in range(3)]
    ray.get(signal.until_arrived.remote(1), timeout=30)
    ray.get(signal.send.remote())
    assert ray.get(behind, timeout=30) == [0, 1, 2]
    with pytest.raises(KeyError):
        ray.get(bad)


def test_order_holds_behind_an_argument_that_is_late(signal):
    @ray.remote(num_cpus=0)
    class Log:
        def __init__(self):
            self.seen = []

        def add(self, i, _=None):
            self.seen.append(i)

        def all(self):
            return self.seen

    log = Log.remote()
    log.add.remote("first", signal.wait.remote())
    log.add.remote("second")
    out = log.all.remote()
    assert ray.wait([out], timeout=0.3)[0] == []
    ray.get(signal.send.remote())
    assert ray.get(out, timeout=30) == ["first", "second"]
    ray.kill(log)


def test_calls_of_many_callers_all_arrive(counter):
    @ray.remote
    def work(c, n):
        ray.get([c.increment.remote() for _ in range(n)])

    ray.get([work.remote(counter, 50) for _ in range(4)])
    assert ray.get(counter.value.remote()) == 200


def test_handles_travel(counter):
    @ray.remote
    def use(c):
        return ray.get(c.increment.remote())

    @ray.remote
    def use_nested(d):
        return ray.get(d["handles"][0].increment.remote())

    assert ray.get(use.remote(counter)) == 1
    assert ray.get(use_nested.remote({"handles": [counter]})) == 2
    (back,) = ray.get(ray.put([counter]))
    assert ray.get(back.increment.remote()) == 3
    assert back == counter and hash(back) == hash(counter)


def test_actor_calls_actor(counter):
    other = Counter.remote()
    assert ray.get(other.call.remote(counter)) == 1
    ray.kill(other)


def test_actor_knows_itself(counter):
    me = ray.get(counter.me.remote())
    assert me == counter
    assert ray.get(me.increment.remote()) == 1


def test_handle_made_by_a_task_outlives_it():
    @ray.remote
    def make():
        c = Counter.remote()
        ray.get(c.increment.remote())
        return c

    c = ray.get(make.remote())
    assert ray.get(c.increment.remote()) == 2
    ray.kill(c)


def test_actor_ends_with_its_last_handle():
    c = Counter.remote()
    pid = ray.get(c.pid.remote())
    del c
    assert eventually(lambda: not is_running(pid))


def test_pending_calls_run_before_the_end(tally):
    @ray.remote(num_cpus=0)
    class A:
        def add(self, t, i):
            ray.get(t.add.remote(i))

    a = A.remote()
    for i in range(20):
        a.add.remote(tally, i)
    del a
    assert ray.get(tally.until.remote(20), timeout=30) == list(range(20))


def test_kill():
    c = Counter.remote()
    pid = ray.get(c.pid.remote())
    ray.kill(c)
    with pytest.raises(RayActorError):
        ray.get(c.increment.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        ray.get(c.increment.remote(), timeout=30)
    assert eventually(lambda: not is_running(pid))


def test_kill_fails_running_calls(signal):
    @ray.remote(num_cpus=0)
    class A:
        def block(self, s):
            ray.get(s.wait.remote())

    a = A.remote()
    ref = a.block.remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    ray.kill(a)
    with pytest.raises(RayActorError):
        ray.get(ref, timeout=30)


def test_kill_refuses_what_is_no_actor():
    for bad in (1, "x", ray.put(1)):
        with pytest.raises((TypeError, ValueError)):
            ray.kill(bad)


def test_death_of_the_process():
    c = Counter.remote()
    ref = c.die.remote()
    with pytest.raises(RayActorError):
        ray.get(ref, timeout=30)
    with pytest.raises(ActorDiedError) as info:
        ray.get(c.value.remote(), timeout=30)
    assert "Counter" in str(info.value)


def test_killed_from_outside():
    c = Counter.remote()
    os.kill(ray.get(c.pid.remote()), signals.SIGKILL)
    assert eventually(lambda: _is_dead(c))


def _is_dead(handle):
    try:
        ray.get(handle.value.remote(), timeout=30)
    except RayActorError:
        return True
    return False


def test_failing_constructor():
    @ray.remote(num_cpus=0)
    class Bad:
        def __init__(self):
            raise ValueError("no constructor today")

        def m(self):
            return 1

    bad = Bad.remote()
    with pytest.raises(ActorDiedError) as info:
        ray.get(bad.m.remote(), timeout=30)
    assert "no constructor today" in str(info.value)
    with pytest.raises(RayActorError):
        ray.get(bad.m.remote(), timeout=30)


def test_constructor_argument_that_failed():
    @ray.remote
    def fail():
        raise ValueError("argument failed")

    bad = Counter.remote(fail.remote())
    with pytest.raises((RayActorError, RayTaskError)):
        ray.get(bad.value.remote(), timeout=30)


def test_errors_in_methods_do_not_end_the_actor(counter):
    @ray.remote(num_cpus=0)
    class A:
        def fail(self):
            raise KeyError("k")

        def pid(self):
            return os.getpid()

    a = A.remote()
    pid = ray.get(a.pid.remote())
    for _ in range(3):
        with pytest.raises(KeyError):
            ray.get(a.fail.remote())
    assert ray.get(a.pid.remote()) == pid
    ray.kill(a)


def test_exit_actor():
    @ray.remote(num_cpus=0)
    class A:
        def pid(self):
            return os.getpid()

        def leave(self):
            ray.actor.exit_actor()

    a = A.remote()
    pid = ray.get(a.pid.remote())
    with pytest.raises(RayActorError):
        ray.get(a.leave.remote(), timeout=30)
    assert eventually(lambda: not is_running(pid))
    with pytest.raises(ActorDiedError):
        ray.get(a.pid.remote(), timeout=30)


def test_exit_actor_is_for_actors():
    with pytest.raises(TypeError):
        ray.actor.exit_actor()

    @ray.remote(max_retries=0)
    def f():
        try:
            ray.actor.exit_actor()
        except TypeError:
            return "refused"

    assert ray.get(f.remote()) == "refused"


def test_ray_terminate(tally):
    @ray.remote(num_cpus=0)
    class A:
        def add(self, t, i):
            ray.get(t.add.remote(i))

        def pid(self):
            return os.getpid()

    a = A.remote()
    pid = ray.get(a.pid.remote())
    for i in range(5):
        a.add.remote(tally, i)
    a.__ray_terminate__.remote()
    assert ray.get(tally.until.remote(5), timeout=30) == list(range(5))
    assert eventually(lambda: not is_running(pid))


def test_ray_ready(counter):
    assert ray.get(counter.__ray_ready__.remote(), timeout=30) in (True, None)


def test_ray_call(counter):
    ray.get(counter.increment.remote(5))
    assert ray.get(counter.__ray_call__.remote(lambda self, x: self.n + x, 2)) == 7


def test_plain_class_with_remote():
    class Plain:
        def m(self):
            return "m"

    a = ray.remote(Plain).remote()
    assert ray.get(a.m.remote()) == "m"
    ray.kill(a)
    a = ray.remote(num_cpus=0)(Plain).remote()
    assert ray.get(a.m.remote()) == "m"
    ray.kill(a)


def test_inheritance_of_plain_classes():
    class Parent:
        def hello(self):
            return "parent"

        def inherited(self):
            return "inherited"

    @ray.remote(num_cpus=0)
    class Child(Parent):
        def hello(self):
            return super().hello() + " child"

    c = Child.remote()
    assert ray.get([c.hello.remote(), c.inherited.remote()]) == ["parent child", "inherited"]
    ray.kill(c)


def test_subclassing_an_actor_class_is_refused():
    with pytest.raises(TypeError):

        class Sub(Counter):
            pass


def test_no_constructor_and_slots():
    @ray.remote(num_cpus=0)
    class A:
        __slots__ = ("x",)

        def put(self, x):
            self.x = x
            return self.x

    a = A.remote()
    assert ray.get(a.put.remote(3)) == 3
    ray.kill(a)


def test_large_arguments_and_results():
    @ray.remote(num_cpus=0)
    class A:
        def set(self, array):
            self.array = array

        def get(self):
            return self.array

    a = A.remote()
    data = np.arange(300_000)
    a.set.remote(data)
    got = ray.get(a.get.remote())
    assert (got == data).all() and not got.flags.writeable
    ray.kill(a)


def test_repr_of_the_instance_is_used_in_errors():
    @ray.remote(num_cpus=0)
    class A:
        def __repr__(self):
            return "TheNamedOne"

        def fail(self):
            raise ValueError("x")

    a = A.remote()
    with pytest.raises(ValueError) as info:
        ray.get(a.fail.remote())
    assert "fail" in str(info.value)
    ray.kill(a)


def test_handle_repr_and_names(counter):
    assert "Counter" in repr(counter)
    assert callable(counter.increment.remote)
    assert "increment" in dir(counter)


def test_methods_bound_once_can_be_called_often(counter):
    increment = counter.increment
    assert ray.get([increment.remote(), increment.remote()]) == [1, 2]
    assert ray.get(counter.increment.options(name="renamed").remote()) == 3


def test_many_actors():
    actors = [Counter.remote(i) for i in range(10)]
    assert ray.get([a.value.remote() for a in actors], timeout=55) == list(range(10))
    for a in actors:
        ray.kill(a)


def test_del_and_atexit_of_a_graceful_end(tmp_path):
    mark = tmp_path / "ended"

    @ray.remote(num_cpus=0)
    class A:
        def __init__(self, path):
            import atexit

            atexit.register(lambda: open(path, "w").close())

        def ok(self):
            return 1

    a = A.remote(str(mark))
    ray.get(a.ok.remote())
    a.__ray_terminate__.remote()
    assert eventually(mark.exists)
