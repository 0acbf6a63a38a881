"""Streaming generators, from tasks and actors, sync and async."""

import asyncio
import time

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def count(n):
    for i in range(n):  # noqa: UP028
        yield i


@ray.remote
class Streams:
    def sync(self, n):
        for i in range(n):  # noqa: UP028
            yield i

    async def plain(self):
        return "alive"


@ray.remote
class AsyncStreams:
    async def stream(self, n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def fails(self):
        yield 1
        raise KeyError("inside")


def test_generator_functions_stream_by_default():
    stream = count.remote(3)
    assert isinstance(stream, ray.ObjectRefGenerator)
    refs = list(stream)
    assert all(isinstance(r, ray.ObjectRef) for r in refs)
    assert ray.get(refs) == [0, 1, 2]


def test_explicit_streaming():
    assert ray.get(list(count.options(num_returns="streaming").remote(2))) == [0, 1]


def test_empty_stream():
    assert list(count.remote(0)) == []


def test_next_raises_stop_iteration_again_and_again():
    stream = count.remote(1)
    assert ray.get(next(stream)) == 0
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


def test_items_come_before_the_task_ends(signal):
    @ray.remote
    def stream(s):
        yield "first"
        ray.get(s.wait.remote())
        yield "second"

    items = stream.remote(signal)
    assert ray.get(next(items), timeout=30) == "first"
    ray.get(signal.until_arrived.remote(1), timeout=30)
    ray.get(signal.send.remote())
    assert ray.get(next(items), timeout=30) == "second"


def test_error_in_the_middle():
    @ray.remote
    def stream():
        yield 1
        raise ValueError("broken")

    items = stream.remote()
    assert ray.get(next(items)) == 1
    failed = next(items)
    with pytest.raises(ValueError):
        ray.get(failed)
    with pytest.raises(StopIteration):
        next(items)


def test_error_before_the_first_item():
    @ray.remote
    def stream(x):
        if x:
            raise ValueError("early")
        yield 1

    items = stream.remote(True)
    with pytest.raises(RayTaskError):
        ray.get(next(items))


def test_completed_tells_the_end():
    stream = count.remote(2)
    ray.get(stream.completed(), timeout=30)
    assert ray.get(list(stream)) == [0, 1]
    assert stream.is_finished()


def test_completed_of_a_failed_stream():
    @ray.remote
    def stream():
        yield 1
        raise ValueError("broken")

    items = stream.remote()
    assert ray.wait([items.completed()], timeout=30)[0] == [items.completed()]
    assert ray.get(next(items)) == 1
    with pytest.raises(ValueError):
        ray.get(next(items))


def test_next_ready(signal):
    @ray.remote
    def stream(s):
        yield 1
        ray.get(s.wait.remote())
        yield 2

    items = stream.remote(signal)
    ray.wait([items], timeout=30)
    assert items.next_ready()
    next(items)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    assert not items.next_ready()
    ray.get(signal.send.remote())
    assert ray.get(next(items), timeout=30) == 2


def test_wait_on_streams(signal):
    @ray.remote
    def stream(s):
        ray.get(s.wait.remote())
        yield 1

    blocked, quick = stream.remote(signal), count.remote(1)
    ready, rest = ray.wait([blocked, quick], num_returns=1, timeout=30)
    assert ready == [quick] and rest == [blocked]
    assert ray.wait([blocked], timeout=0) == ([], [blocked])
    ray.get(signal.send.remote())
    assert ray.wait([blocked], timeout=30) == ([blocked], [])


def test_large_items():
    @ray.remote
    def stream(n):
        for i in range(n):
            yield np.full(200_000, i)

    assert [int(ray.get(r)[0]) for r in stream.remote(5)] == list(range(5))


def test_async_iteration():
    async def main():
        out = []
        async for ref in count.remote(4):
            out.append(await ref)
        return out

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_actor_streams():
    actor = Streams.remote()
    assert ray.get(list(actor.sync.remote(3))) == [0, 1, 2]
    assert ray.get(actor.plain.remote()) == "alive"
    ray.kill(actor)


def test_async_actor_streams():
    actor = AsyncStreams.remote()
    assert ray.get(list(actor.stream.remote(3))) == [0, 1, 2]
    items = actor.fails.remote()
    assert ray.get(next(items)) == 1
    with pytest.raises(KeyError):
        ray.get(next(items))
    ray.kill(actor)


def test_async_streams_interleave():
    actor = AsyncStreams.remote()
    streams = [actor.stream.remote(20) for _ in range(5)]
    assert [ray.get(list(s)) for s in streams] == [list(range(20))] * 5
    ray.kill(actor)


def test_back_pressure_of_tasks(tally):
    @ray.remote(_generator_backpressure_num_objects=2)
    def stream(t):
        for i in range(8):
            ray.get(t.add.remote(i))
            yield i

    items = stream.remote(tally)
    ray.get(tally.until.remote(2), timeout=30)
    ahead = []
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        ahead.append(len(ray.get(tally.all.remote())))
    assert max(ahead) <= 3
    assert ray.get(list(items)) == list(range(8))
    assert ray.get(tally.all.remote()) == list(range(8))


def test_back_pressure_of_actors(tally):
    @ray.remote
    class A:
        @ray.method(_generator_backpressure_num_objects=1)
        def stream(self, t):
            for i in range(6):
                ray.get(t.add.remote(i))
                yield i

    actor = A.remote()
    items = actor.stream.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert len(ray.get(tally.all.remote())) <= 2
    assert ray.get(list(items)) == list(range(6))
    ray.kill(actor)


def test_streams_do_not_travel():
    @ray.remote
    def use(s):
        return s

    with pytest.raises(Exception) as info:
        ray.get(use.remote(count.remote(1)))
    assert not isinstance(info.value, ray.exceptions.GetTimeoutError)


def test_dropping_a_stream_stops_nothing_else():
    stream = count.remote(100)
    next(stream)
    del stream
    assert ray.get(list(count.remote(2))) == [0, 1]


def test_streaming_needs_a_generator_function():
    def f():
        return 5

    with pytest.raises(ValueError):
        ray.remote(num_returns="streaming")(f)


def test_many_items():
    assert ray.get(list(count.remote(500))) == list(range(500))
