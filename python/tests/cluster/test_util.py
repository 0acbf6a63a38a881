"""The helpers of skate.util: they use the public interface only, and the behaviours are Ray's own."""

import asyncio
import io
import multiprocessing
import threading
import time

import pytest
import skate
import skate.util.multiprocessing
import skate.util.queue
from skate.util import (
    ActorPool,
    as_completed,
    deregister_serializer,
    inspect_serializability,
    map_unordered,
    register_serializer,
)
from skate.util.queue import Empty, Full, Queue


@pytest.fixture(scope="module", autouse=True)
def cluster():
    skate.init(num_cpus=4, log_to_driver=False)
    yield
    skate.shutdown()


@skate.remote(num_cpus=0)
class Doubler:
    def double(self, value):
        return 2 * value

    def hold(self, gate, value):
        skate.get(gate.wait.remote())
        return value


@skate.remote(num_cpus=0)
class Gate:
    def __init__(self):
        self.event = asyncio.Event()

    async def wait(self):
        await self.event.wait()

    async def open(self):
        self.event.set()


@skate.remote(num_cpus=0)
def double(value):
    return 2 * value


@skate.remote(num_cpus=0)
def hold(gate, value):
    skate.get(gate[0].wait.remote())
    return value


# --- ActorPool --------------------------------------------------------------------------------


def pool_of(count):
    return ActorPool([Doubler.remote() for _ in range(count)])


def double_on(actor, value):
    return actor.double.remote(value)


def test_pool_map_keeps_the_order():
    assert list(pool_of(2).map(double_on, range(7))) == [0, 2, 4, 6, 8, 10, 12]


def test_pool_map_unordered_gives_all():
    assert sorted(pool_of(2).map_unordered(double_on, range(7))) == [0, 2, 4, 6, 8, 10, 12]


def test_pool_submit_and_get_next():
    pool = pool_of(1)
    for value in (1, 2, 3):
        pool.submit(double_on, value)
    assert pool.has_next()
    assert [pool.get_next(), pool.get_next(), pool.get_next()] == [2, 4, 6]
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_pool_timeouts():
    gate = Gate.remote()
    pool = pool_of(1)
    pool.submit(lambda actor, value: actor.hold.remote(gate, value), 5)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.05)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.05)
    skate.get(gate.open.remote())
    assert pool.get_next(timeout=30) == 5


def test_pool_idle_actors():
    actor = Doubler.remote()
    pool = ActorPool([actor])
    assert pool.has_free()
    with pytest.raises(ValueError):
        pool.push(actor)
    assert pool.pop_idle() == actor
    assert pool.pop_idle() is None
    assert not pool.has_free()
    pool.push(actor)
    pool.submit(double_on, 1)
    assert not pool.has_free()
    assert pool.get_next() == 2
    assert pool.has_free()


# --- as_completed, map_unordered --------------------------------------------------------------


def test_as_completed():
    refs = [double.remote(i) for i in range(25)]
    assert sorted(as_completed(refs)) == [2 * i for i in range(25)]
    assert set(as_completed(refs, chunk_size=3, yield_obj_refs=True)) == set(refs)


def test_as_completed_gives_the_ready_one_first():
    gate = Gate.remote()
    slow, fast = hold.remote([gate], "slow"), double.remote(1)
    results = as_completed([slow, fast], chunk_size=1)
    assert next(results) == 2
    skate.get(gate.open.remote())
    assert next(results) == "slow"


def test_map_unordered():
    assert sorted(map_unordered(double, range(30), backpressure_size=10)) == [2 * i for i in range(30)]
    assert sorted(map_unordered(double, range(3), backpressure_size=1, chunk_size=2)) == [0, 2, 4]


# --- Queue ------------------------------------------------------------------------------------


def test_queue_in_order():
    queue = Queue()
    for i in range(3):
        queue.put(i)
    assert len(queue) == queue.qsize() == queue.size() == 3
    assert not queue.empty()
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    assert queue.empty()
    queue.shutdown()


def test_queue_limits():
    queue = Queue(maxsize=2)
    queue.put_nowait_batch([1, 2])
    assert queue.full()
    with pytest.raises(Full):
        queue.put_nowait(3)
    with pytest.raises(Full):
        queue.put(3, timeout=0.05)
    with pytest.raises(Full):
        queue.put_nowait_batch([3])
    with pytest.raises(Empty):
        queue.get_nowait_batch(3)
    assert queue.get_nowait_batch(2) == [1, 2]
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    with pytest.raises(ValueError):
        queue.get(timeout=-1)
    queue.shutdown(force=True)


def test_queue_travels_and_blocks():
    queue = Queue()

    @skate.remote(num_cpus=0)
    def produce(queue):
        queue.put("item")

    produce.remote(queue)
    assert queue.get(timeout=60) == "item"
    queue.shutdown()


def test_queue_async():
    queue = Queue()

    async def both():
        await queue.put_async(1)
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.05) and await queue.get_async(timeout=0.05)
            await queue.get_async(block=False)
        await queue.put_async(2)
        return await queue.get_async()

    assert asyncio.run(both()) == 2


# --- multiprocessing.Pool ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    pool = skate.util.multiprocessing.Pool(2)
    yield pool
    pool.terminate()


def test_mp_map(pool):
    assert pool.map(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    assert pool.map(lambda x: x, []) == []
    assert pool.starmap(lambda a, b: a - b, [(5, 3), (1, 1)]) == [2, 0]
    assert pool.apply(lambda a, b=0: a + b, (1,), {"b": 2}) == 3


def test_mp_imap(pool):
    assert list(pool.imap(str, range(9), chunksize=2)) == [str(i) for i in range(9)]
    assert sorted(pool.imap_unordered(abs, [-3, 1, -2])) == [1, 2, 3]


def test_mp_errors(pool):
    def fail(x):
        if x == 3:
            raise KeyError(x)
        return x

    with pytest.raises(KeyError):
        pool.map(fail, range(5))
    result = pool.map_async(fail, range(5))
    result.wait(60)
    assert result.ready()
    assert not result.successful()


def test_mp_async(pool):
    gate = Gate.remote()

    def blocked(gate):
        skate.get(gate.wait.remote())
        return "done"

    result = pool.apply_async(blocked, (gate,))
    assert not result.ready()
    with pytest.raises(ValueError):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.05)
    skate.get(gate.open.remote())
    assert result.get(timeout=60) == "done"
    assert result.successful()


def test_mp_callbacks(pool):
    seen = []
    done = threading.Event()

    def note(value):
        seen.append(value)
        done.set()

    pool.apply_async(len, ("abc",), callback=note)
    assert done.wait(60)
    assert seen == [3]


def test_mp_errors_are_those_of_multiprocessing(pool):
    """Ray hands out its PoolTaskError here, where multiprocessing.Pool has the function's own error."""

    def fail(x):
        if x == 3:
            raise KeyError(x)
        return x

    results = pool.imap(fail, [2, 3, 4], chunksize=1)
    assert next(results) == 2
    with pytest.raises(KeyError):
        next(results)
    assert next(results) == 4
    seen = []
    done = threading.Event()

    def note(error):
        seen.append(error)
        done.set()

    pool.apply_async(fail, (3,), error_callback=note)
    assert done.wait(60)
    assert isinstance(seen[0], KeyError)


def test_mp_life_cycle():
    with pytest.raises(ValueError):
        skate.util.multiprocessing.Pool(0)

    def initialize(value):
        import builtins

        builtins.pool_value = value

    def read(_):
        import builtins

        return builtins.pool_value

    pool = skate.util.multiprocessing.Pool(1, initialize, (7,), maxtasksperchild=2)
    assert pool.map(read, range(6), chunksize=1) == [7] * 6
    with pytest.raises(ValueError):
        pool.join()
    pool.close()
    with pytest.raises(ValueError):
        pool.map(read, [1])
    pool.join()


# --- serializers ------------------------------------------------------------------------------


class Locked:
    def __init__(self, value):
        self.value = value
        self.lock = threading.Lock()


def test_register_serializer():
    register_serializer(Locked, serializer=lambda o: o.value, deserializer=Locked)
    try:
        assert skate.get(skate.put([Locked(5)]))[0].value == 5

        @skate.remote(num_cpus=0)
        def value_of(locked):
            return locked.value

        assert skate.get(value_of.remote(Locked(6))) == 6
    finally:
        deregister_serializer(Locked)
    with pytest.raises(TypeError):
        skate.put(Locked(5))
    deregister_serializer(Locked)


def test_inspect_serializability():
    assert inspect_serializability(3, print_file=io.StringIO()) == (True, set())
    lock = threading.Lock()

    def captures():
        return lock

    report = io.StringIO()
    ok, failures = inspect_serializability(captures, name="captures", print_file=report)
    assert not ok
    assert [failure.obj for failure in failures] == [lock]
    assert "lock" in report.getvalue()
    ok, failures = inspect_serializability(Locked(1), name="locked", print_file=io.StringIO())
    assert not ok
    assert len(failures) == 1


def test_log_once():
    from skate.util import log_once

    key = f"key-{time.monotonic()}"
    assert log_once(key)
    assert not log_once(key)


def test_joblib():
    import joblib

    module = __import__("skate.util.joblib", fromlist=["x"])
    name = "skate" if hasattr(module, "register_skate") else "ray"
    getattr(module, f"register_{name}")()
    with joblib.parallel_backend(name, n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(10)) == list(range(10))

        def fail(i):
            raise KeyError(i)

        with pytest.raises(KeyError):
            joblib.Parallel()(joblib.delayed(fail)(i) for i in range(3))
