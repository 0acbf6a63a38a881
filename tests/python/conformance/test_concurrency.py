"""Threaded actors, concurrency groups, bounded queues of calls."""

import threading
import time

import pytest
import ray
from ray.exceptions import PendingCallsLimitExceeded, RayError

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote(num_cpus=0)
class Threaded:
    def __init__(self):
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.door = threading.Event()

    def wait(self):
        return self.door.wait(40)

    def open(self):
        self.door.set()

    def overlap(self):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1

    def peak(self):
        return self.most

    def thread(self):
        return threading.get_ident()

    def meet(self, barrier_size):
        with self.lock:
            if not hasattr(self, "barrier"):
                self.barrier = threading.Barrier(barrier_size)
        self.barrier.wait(40)
        return threading.get_ident()


def test_calls_overlap_in_threads():
    a = Threaded.options(max_concurrency=4).remote()
    waiting = [a.wait.remote() for _ in range(3)]
    ray.get(a.open.remote(), timeout=30)
    assert ray.get(waiting, timeout=30) == [True] * 3
    ray.kill(a)


def test_as_many_threads_as_asked_for():
    a = Threaded.options(max_concurrency=4).remote()
    assert len(set(ray.get([a.meet.remote(4) for _ in range(4)], timeout=50))) == 4
    ray.kill(a)


def test_never_more_than_max_concurrency():
    a = Threaded.options(max_concurrency=3).remote()
    ray.get([a.overlap.remote() for _ in range(30)])
    assert ray.get(a.peak.remote()) <= 3
    ray.kill(a)


def test_default_is_one_at_a_time():
    a = Threaded.remote()
    ray.get([a.overlap.remote() for _ in range(10)])
    assert ray.get(a.peak.remote()) == 1
    assert len(set(ray.get([a.thread.remote() for _ in range(5)]))) == 1
    ray.kill(a)


def test_groups_do_not_wait_for_each_other():
    @ray.remote(num_cpus=0, concurrency_groups={"io": 1, "compute": 2})
    class A:
        def __init__(self):
            self.door = threading.Event()

        @ray.method(concurrency_group="io")
        def wait(self):
            return self.door.wait(40)

        @ray.method(concurrency_group="compute")
        def open(self):
            self.door.set()
            return "opened"

        def plain(self):
            return "plain"

    a = A.remote()
    waiting = a.wait.remote()
    assert ray.get(a.plain.remote(), timeout=30) == "plain"
    assert ray.wait([waiting], timeout=0)[0] == []
    assert ray.get(a.open.remote(), timeout=30) == "opened"
    assert ray.get(waiting, timeout=30) is True
    ray.kill(a)


def test_group_chosen_at_the_call():
    @ray.remote(num_cpus=0, concurrency_groups={"side": 1})
    class A:
        def __init__(self):
            self.door = threading.Event()

        def wait(self):
            return self.door.wait(40)

        def open(self):
            self.door.set()

    a = A.remote()
    waiting = a.wait.remote()
    ray.get(a.open.options(concurrency_group="side").remote(), timeout=30)
    assert ray.get(waiting, timeout=30) is True
    ray.kill(a)


def test_group_limits():
    @ray.remote(num_cpus=0, concurrency_groups={"g": 2})
    class A:
        def __init__(self):
            self.lock = threading.Lock()
            self.running = self.most = 0

        @ray.method(concurrency_group="g")
        def overlap(self):
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.02)
            with self.lock:
                self.running -= 1

        def peak(self):
            return self.most

    a = A.remote()
    ray.get([a.overlap.remote() for _ in range(20)])
    assert ray.get(a.peak.remote()) <= 2
    ray.kill(a)


def test_groups_of_async_actors():
    @ray.remote(num_cpus=0, concurrency_groups={"io": 2})
    class A:
        def __init__(self):
            import asyncio

            self.event = asyncio.Event()

        @ray.method(concurrency_group="io")
        async def wait(self):
            await self.event.wait()
            return "released"

        async def plain(self):
            return threading.get_ident()

        async def set(self):
            self.event.set()

    a = A.remote()
    assert ray.get(a.plain.remote(), timeout=30)
    refs = [a.wait.remote()]
    assert ray.wait(refs, timeout=0.2)[0] == []
    assert ray.get(a.plain.remote(), timeout=30)
    ray.kill(a)


def test_unknown_group_is_an_error():
    @ray.remote(num_cpus=0, concurrency_groups={"io": 2})
    class A:
        def m(self):
            return 1

    a = A.remote()
    assert ray.get(a.m.remote(), timeout=30) == 1
    with pytest.raises((RayError, ValueError)):
        ray.get(a.m.options(concurrency_group="none").remote(), timeout=30)
    ray.kill(a)


def test_max_pending_calls(signal):
    @ray.remote(num_cpus=0)
    class A:
        def block(self, s):
            ray.get(s.wait.remote())
            return 1

    a = A.options(max_pending_calls=3).remote()
    refs = [a.block.remote(signal) for _ in range(3)]
    ray.get(signal.until_arrived.remote(1), timeout=30)
    with pytest.raises(PendingCallsLimitExceeded):
        for _ in range(5):
            refs.append(a.block.remote(signal))
    ray.get(signal.send.remote())
    assert set(ray.get(refs, timeout=30)) == {1}
    assert ray.get(a.block.remote(signal), timeout=30) == 1
    ray.kill(a)


def test_get_in_many_threads_of_an_actor():
    @ray.remote
    def identity(x):
        return x

    @ray.remote(num_cpus=0, max_concurrency=8)
    class A:
        def m(self, i):
            return ray.get(identity.remote(i))

    a = A.remote()
    assert ray.get([a.m.remote(i) for i in range(40)], timeout=50) == list(range(40))
    ray.kill(a)


@pytest.mark.parametrize("end", ["__ray_terminate__", "leave"])
def test_threads_end_before_their_actor_does(end, signal):
    @ray.remote(num_cpus=0, max_concurrency=3)
    class Actor:
        def hold(self, s):
            ray.get(s.wait.remote())
            return "held"

        def leave(self):
            ray.actor.exit_actor()

    actor = Actor.remote()
    held = actor.hold.remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    left = getattr(actor, end).remote()
    assert ray.wait([held], timeout=0.5)[0] == []
    ray.get(signal.send.remote())
    assert ray.get(held, timeout=30) == "held"
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(left, timeout=30)
