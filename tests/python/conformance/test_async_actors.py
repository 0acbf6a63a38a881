"""Actors with coroutine methods: one loop, many calls at once."""

import asyncio
import os
import threading

import pytest
import ray
from coordination import eventually, is_running
from ray.exceptions import RayActorError

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def identity(x):
    return x


@ray.remote(num_cpus=0)
class Async:
    def __init__(self):
        self.event = asyncio.Event()
        self.running = 0
        self.most = 0

    async def wait(self):
        await self.event.wait()
        return "released"

    async def set(self):
        self.event.set()

    async def fail(self):
        await asyncio.sleep(0)
        raise KeyError("async")

    async def await_refs(self, refs):
        return await asyncio.gather(*refs)

    async def overlap(self):
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(20):
            await asyncio.sleep(0.001)
        self.running -= 1

    async def peak(self):
        return self.most

    async def thread(self):
        return threading.get_ident()

    async def main_thread(self):
        return threading.current_thread() is threading.main_thread()

    async def loop_id(self):
        return id(asyncio.get_running_loop())

    async def spawn(self):
        self.task = asyncio.get_running_loop().create_task(self.wait())

    async def spawned(self):
        return await self.task

    def sync(self):
        return threading.get_ident()

    async def pid(self):
        return os.getpid()

    async def leave(self):
        ray.actor.exit_actor()


@pytest.fixture
def actor():
    a = Async.remote()
    yield a
    ray.kill(a)


def test_calls_overlap(actor):
    waiting = [actor.wait.remote() for _ in range(5)]
    assert ray.wait(waiting, timeout=0.2)[0] == []
    ray.get(actor.set.remote(), timeout=30)
    assert ray.get(waiting, timeout=30) == ["released"] * 5


def test_awaiting_refs(actor):
    refs = [identity.remote(i) for i in range(10)]
    assert ray.get(actor.await_refs.remote(refs)) == list(range(10))


def test_errors(actor):
    with pytest.raises(KeyError):
        ray.get(actor.fail.remote())
    assert ray.get(actor.peak.remote()) == 0


def test_many_calls_run_at_once_by_default(actor):
    ray.get([actor.overlap.remote() for _ in range(100)])
    assert ray.get(actor.peak.remote()) > 20


def test_max_concurrency():
    a = Async.options(max_concurrency=3).remote()
    ray.get([a.overlap.remote() for _ in range(20)])
    assert 2 <= ray.get(a.peak.remote()) <= 3
    ray.kill(a)


def test_one_loop_one_thread(actor):
    assert len(set(ray.get([actor.thread.remote() for _ in range(5)]))) == 1
    assert len(set(ray.get([actor.loop_id.remote() for _ in range(5)]))) == 1


def test_sync_methods_share_the_actor(actor):
    assert ray.get(actor.sync.remote()) == ray.get(actor.thread.remote())


def test_background_tasks_live_between_calls(actor):
    ray.get(actor.spawn.remote())
    ray.get(actor.set.remote())
    assert ray.get(actor.spawned.remote(), timeout=30) == "released"


def test_kill_while_calls_wait(actor):
    a = Async.remote()
    refs = [a.wait.remote() for _ in range(3)]
    ray.get(a.pid.remote())
    ray.kill(a)
    for ref in refs:
        with pytest.raises(RayActorError):
            ray.get(ref, timeout=30)


def test_exit_actor_in_a_coroutine():
    a = Async.remote()
    pid = ray.get(a.pid.remote())
    with pytest.raises(RayActorError):
        ray.get(a.leave.remote(), timeout=30)
    assert eventually(lambda: not is_running(pid))


def test_async_constructor_helpers():
    @ray.remote(num_cpus=0)
    class A:
        def __init__(self):
            self.loop = asyncio.get_event_loop()

        async def same(self):
            return self.loop is asyncio.get_running_loop()

    a = A.remote()
    assert ray.get(a.same.remote())
    ray.kill(a)


def test_actors_await_each_other(actor):
    @ray.remote(num_cpus=0)
    class Caller:
        async def call(self, other):
            return await other.wait.remote()

    caller = Caller.remote()
    ref = caller.call.remote(actor)
    ray.get(actor.set.remote())
    assert ray.get(ref, timeout=30) == "released"
    ray.kill(caller)


def test_driver_awaits_actor_calls(actor):
    async def main():
        waiting = asyncio.ensure_future(as_coroutine(actor.wait.remote()))
        await actor.set.remote()
        return await waiting

    async def as_coroutine(ref):
        return await ref

    assert asyncio.run(main()) == "released"


def test_runtime_context_differs_between_calls(actor):
    @ray.remote(num_cpus=0)
    class A:
        async def ids(self):
            before = ray.get_runtime_context().get_task_id()
            await asyncio.sleep(0.01)
            return before, ray.get_runtime_context().get_task_id()

    a = A.remote()
    pairs = ray.get([a.ids.remote() for _ in range(5)])
    assert all(x == y for x, y in pairs)
    assert len({x for x, _ in pairs}) == 5
    ray.kill(a)


@pytest.mark.parametrize("end", ["__ray_terminate__", "leave"])
def test_calls_that_run_end_before_the_actor_does(end, signal):
    @ray.remote(num_cpus=0)
    class Actor:
        async def hold(self, s):
            await s.wait.remote()
            return "held"

        async def leave(self):
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
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.hold.remote(signal), timeout=30)


def test_a_stream_comes_to_its_end_before_its_actor_does(signal):
    @ray.remote(num_cpus=0)
    class Actor:
        async def items(self):
            for i in range(5):
                yield i

        async def tell(self, signal):
            await signal.send.remote()

        async def leave(self, signal):
            self.told = asyncio.ensure_future(self.tell(signal))  # runs when this call has ended
            ray.actor.exit_actor()

    actor = Actor.remote()
    stream = actor.items.options(num_returns="streaming", _generator_backpressure_num_objects=1).remote()
    assert ray.get(next(stream)) == 0
    left = actor.leave.remote(signal)
    ray.get(signal.wait.remote(), timeout=30)
    assert [ray.get(ref) for ref in stream] == [1, 2, 3, 4]
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(left, timeout=30)


def test_async_constructor():
    @ray.remote(num_cpus=0)
    class Actor:
        async def __init__(self, x, y=2):
            await asyncio.sleep(0)
            self.sum = x + y

        async def get(self):
            return self.sum

    assert ray.get(Actor.remote(1, y=4).get.remote()) == 5
