"""ActorPool, Queue, as_completed, map_unordered, and small helpers."""

import asyncio
import threading

import pytest
import ray
from ray.util import ActorPool
from ray.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def double(x):
    return 2 * x


@ray.remote(num_cpus=0)
class Worker:
    def double(self, x):
        return 2 * x

    def fail(self, x):
        raise ValueError(x)

    def exit(self):
        ray.actor.exit_actor()

    def hold(self, item):
        signal, x = item
        if signal is not None:
            ray.get(signal.wait.remote())
        return x


@pytest.fixture
def pool():
    workers = [Worker.remote() for _ in range(2)]
    yield ActorPool(workers)
    for w in workers:
        ray.kill(w)


def test_pool_map_keeps_order(pool):
    assert list(pool.map(lambda a, v: a.double.remote(v), range(10))) == [2 * i for i in range(10)]


def test_pool_map_unordered(pool):
    out = pool.map_unordered(lambda a, v: a.double.remote(v), range(10))
    assert sorted(out) == [2 * i for i in range(10)]


def test_pool_unordered_gives_the_quick_one_first(pool, signal):
    out = pool.map_unordered(lambda a, v: a.hold.remote(v), [(signal, "slow"), (None, "quick")])
    assert next(out) == "quick"
    ray.get(signal.send.remote())
    assert next(out) == "slow"


def test_pool_submit_and_get_next(pool):
    for i in range(4):
        pool.submit(lambda a, v: a.double.remote(v), i)
    assert pool.has_next()
    assert [pool.get_next() for _ in range(4)] == [0, 2, 4, 6]
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_pool_timeout(pool, signal):
    pool.submit(lambda a, v: a.hold.remote(v), (signal, 1))
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.2)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.2)
    ray.get(signal.send.remote())
    assert pool.get_next(timeout=30) == 1


def test_pool_errors(pool):
    pool.submit(lambda a, v: a.fail.remote(v), 1)
    with pytest.raises(ValueError):
        pool.get_next()
    pool.submit(lambda a, v: a.double.remote(v), 2)
    assert pool.get_next() == 4


def test_pool_map_drops_what_was_submitted_before(pool, signal):
    pool.submit(lambda a, v: a.hold.remote(v), (signal, 1))
    pool.submit(lambda a, v: a.hold.remote(v), (signal, 2))
    results = pool.map(lambda a, v: a.double.remote(v), [5, 6])
    ray.get(signal.send.remote())
    assert list(results) == [10, 12]


def test_pool_goes_on_without_a_dead_actor(pool):
    pool.submit(lambda a, v: a.exit.remote(), 0)
    for i in range(4):
        pool.submit(lambda a, v: a.double.remote(v), i)
    with pytest.raises(ray.exceptions.ActorDiedError):
        pool.get_next()
    assert [pool.get_next() for _ in range(4)] == [0, 2, 4, 6]


def test_pool_idle_and_push(pool):
    assert pool.has_free()
    a, b = pool.pop_idle(), pool.pop_idle()
    assert a is not None and b is not None
    assert pool.pop_idle() is None and not pool.has_free()
    pool.push(a)
    with pytest.raises(ValueError):
        pool.push(a)
    assert pool.has_free()


@pytest.fixture
def queue():
    q = Queue(maxsize=2)
    yield q
    q.shutdown()


def test_queue_order_and_size(queue):
    assert queue.empty() and queue.size() == 0
    queue.put(1)
    queue.put(2)
    assert queue.full() and queue.qsize() == 2 and len(queue) == 2
    assert [queue.get(), queue.get()] == [1, 2]


def test_queue_limits(queue):
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.1)
    with pytest.raises(Empty):
        queue.get(block=False)
    queue.put_nowait(1)
    queue.put_nowait(2)
    with pytest.raises(Full):
        queue.put_nowait(3)
    with pytest.raises(Full):
        queue.put(3, timeout=0.1)
    with pytest.raises(Full):
        queue.put(3, block=False)


def test_queue_refuses_negative_timeouts(queue):
    with pytest.raises(ValueError):
        queue.get(timeout=-1)
    with pytest.raises(ValueError):
        queue.put(1, timeout=-1)


def test_queue_batches():
    q = Queue()
    q.put_nowait_batch([1, 2, 3])
    assert q.get_nowait_batch(2) == [1, 2]
    with pytest.raises(Empty):
        q.get_nowait_batch(2)
    with pytest.raises(TypeError):
        q.get_nowait_batch("1")
    bounded = Queue(maxsize=1)
    with pytest.raises(Full):
        bounded.put_nowait_batch([1, 2])
    q.shutdown()
    bounded.shutdown()


def test_queue_blocks_and_wakes(queue):
    got = []
    t = threading.Thread(target=lambda: got.append(queue.get(timeout=40)))
    t.start()
    queue.put("late")
    t.join(45)
    assert got == ["late"]


def test_queue_travels(queue):
    @ray.remote
    def produce(q, n):
        for i in range(n):
            q.put(i)

    @ray.remote
    def consume(q, n):
        return [q.get(timeout=40) for _ in range(n)]

    out = consume.remote(queue, 6)
    ray.get(produce.remote(queue, 6), timeout=50)
    assert ray.get(out, timeout=50) == list(range(6))


def test_queue_async(queue):
    async def main():
        await queue.put_async(1)
        await queue.put_async(2)
        with pytest.raises(Full):
            await queue.put_async(3, timeout=0.1)
        out = [await queue.get_async(), await queue.get_async()]
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.1)
        return out

    assert asyncio.run(main()) == [1, 2]


def test_queue_actor_options():
    q = Queue(actor_options={"name": "the-queue", "num_cpus": 0})
    q.put(5)
    assert ray.get(ray.get_actor("the-queue").qsize.remote()) == 1
    q.shutdown()


def test_as_completed(signal):
    @ray.remote
    def hold(s):
        ray.get(s.wait.remote())
        return "slow"

    slow = hold.remote(signal)
    out = ray.util.as_completed([slow, double.remote(1)], chunk_size=1)
    assert next(out) == 2
    ray.get(signal.send.remote())
    assert list(out) == ["slow"]


def test_as_completed_many():
    refs = [double.remote(i) for i in range(25)]
    assert sorted(ray.util.as_completed(refs)) == [2 * i for i in range(25)]
    out = list(ray.util.as_completed([double.remote(i) for i in range(5)], yield_obj_refs=True))
    assert sorted(ray.get(out)) == [0, 2, 4, 6, 8]


def test_map_unordered():
    out = ray.util.map_unordered(double, range(20), backpressure_size=5)
    assert sorted(out) == [2 * i for i in range(20)]
    w = Worker.remote()
    assert sorted(ray.util.map_unordered(w.double, [1, 2, 3])) == [2, 4, 6]
    ray.kill(w)


def test_log_once():
    from ray.util import log_once
    from ray.util.debug import reset_log_once

    assert log_once("conformance-key") is True
    assert log_once("conformance-key") is False
    reset_log_once("conformance-key")
    assert log_once("conformance-key") is True


def test_node_ip_address():
    assert isinstance(ray.util.get_node_ip_address(), str)
