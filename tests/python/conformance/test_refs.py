"""Refs as values: identity, pickling, awaiting, and who keeps what alive."""

import asyncio
import concurrent.futures
import copy
import gc
import pickle

import numpy as np
import pytest
import ray
from coordination import eventually

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def identity(x):
    return x


@ray.remote
def fail():
    raise ValueError("bad")


def test_equality_and_hashing():
    a, b = ray.put(1), ray.put(1)
    assert a == a and a != b and a != 1 and a is not None
    assert len({a, b, a}) == 2
    same = ray.ObjectRef(a.binary())
    assert same == a and hash(same) == hash(a)


def test_equality_survives_travel():
    ref = ray.put(1)
    (back,) = ray.get(identity.remote([ref]))
    assert back == ref and hash(back) == hash(ref) and {ref: 1}[back] == 1


def test_hex_and_binary():
    ref = ray.put(1)
    assert bytes.fromhex(ref.hex()) == ref.binary()
    assert len(ref.binary()) == ref.size()
    assert ref.hex() in repr(ref)
    assert repr(ref) == str(ref)
    assert repr(ref).startswith("ObjectRef(")
    assert not ref.is_nil()
    assert ray.ObjectRef.nil().is_nil()


def test_ids_in_a_ref():
    ref = identity.remote(1)
    assert ref.job_id().hex() == ray.get_runtime_context().get_job_id()
    assert isinstance(ref.task_id(), ray.TaskID)
    a, b = ray.remote(lambda: (1, 2)).options(num_returns=2).remote()
    assert a.task_id() == b.task_id() and a != b


def test_subscripting_the_type():
    def f(x: ray.ObjectRef[int]) -> "ray.ObjectRef[str]":
        return x

    assert f.__annotations__


def test_refs_are_neither_iterable_nor_truthful_as_their_values():
    ref = ray.put(0)
    assert ref
    with pytest.raises(TypeError):
        list(ref)
    with pytest.raises(TypeError):
        ref + 1


def test_copies():
    ref = ray.put([1])
    assert copy.copy(ref) == ref
    assert ray.get(copy.copy(ref)) == [1]


def test_plain_pickle_out_of_band():
    ref = ray.put("kept")
    data = ray.cloudpickle.dumps(ref)
    back = ray.cloudpickle.loads(data)
    assert back == ref
    assert ray.get(back) == "kept"
    del ref, back
    gc.collect()
    # What was pickled out of band is pinned, since nobody can know who holds the bytes.
    assert ray.get(pickle.loads(data)) == "kept"


def test_await():
    async def main():
        assert await ray.put(1) == 1
        assert await identity.remote(2) == 2
        return await asyncio.gather(*[identity.remote(i) for i in range(20)])

    assert asyncio.run(main()) == list(range(20))


def test_await_twice_and_wait():
    async def main():
        ref = identity.remote(3)
        assert await ref == 3 and await ref == 3
        tasks = [asyncio.ensure_future(as_coroutine(identity.remote(i))) for i in range(3)]
        done, pending = await asyncio.wait(tasks)
        return sorted(t.result() for t in done), pending

    async def as_coroutine(ref):
        return await ref

    assert asyncio.run(main()) == ([0, 1, 2], set())


def test_await_raises_the_error():
    async def main():
        await fail.remote()

    with pytest.raises(ValueError):
        asyncio.run(main())


def test_await_with_a_timeout(signal):
    async def main():
        ref = signal.wait.remote()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.2)

    asyncio.run(main())


def test_as_future():
    async def main():
        return await asyncio.wrap_future(identity.remote(5).future())

    assert asyncio.run(main()) == 5


def test_future():
    future = identity.remote(4).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=30) == 4
    assert future.done()


def test_future_raises_the_error():
    future = fail.remote().future()
    with pytest.raises(ValueError):
        future.result(timeout=30)
    assert isinstance(future.exception(), ValueError)


def test_futures_complete_out_of_order(signal):
    blocked = signal.wait.remote().future()
    quick = identity.remote(1).future()
    done, _ = concurrent.futures.wait(
        [blocked, quick], timeout=30, return_when=concurrent.futures.FIRST_COMPLETED
    )
    assert done == {quick}
    ray.get(signal.send.remote())
    assert blocked.result(timeout=30) is None


def test_future_callbacks():
    seen = concurrent.futures.Future()
    identity.remote(6).future().add_done_callback(lambda f: seen.set_result(f.result()))
    assert seen.result(timeout=30) == 6


def test_borrowed_ref_outlives_the_owners_handle(signal):
    @ray.remote
    def use(refs, s):
        ray.get(s.wait.remote())
        return int(ray.get(refs[0]).sum())

    ref = ray.put(np.ones(200_000, dtype=int))
    out = use.remote([ref], signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    del ref
    gc.collect()
    ray.get(signal.send.remote())
    assert ray.get(out) == 200_000


def test_argument_in_flight_keeps_its_object():
    @ray.remote
    def total(x):
        return int(x.sum())

    outs = []
    for _ in range(20):
        outs.append(total.remote(ray.put(np.ones(100_000, dtype=int))))
    gc.collect()
    assert ray.get(outs) == [100_000] * 20


def test_ref_kept_in_actor_state():
    @ray.remote(num_cpus=0)
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def read(self):
            return [int(v.sum()) for v in ray.get(self.refs)]

        def give_back(self):
            return self.refs

    keeper = Keeper.remote()
    ref = ray.put(np.ones(200_000, dtype=int))
    ray.get(keeper.keep.remote([ref, identity.remote(np.ones(10, dtype=int))]))
    del ref
    gc.collect()
    assert ray.get(keeper.read.remote()) == [200_000, 10]
    back = ray.get(keeper.give_back.remote())
    assert ray.get(back[0]).shape == (200_000,)
    ray.kill(keeper)


def test_refs_travel_through_three_processes():
    @ray.remote
    def pass_on(refs, depth):
        if depth == 0:
            return refs
        return ray.get(pass_on.remote(refs, depth - 1))

    @ray.remote
    def make():
        return [ray.put("deep")]

    (ref,) = ray.get(pass_on.remote(ray.get(make.remote()), 2))
    assert ray.get(ref) == "deep"


def test_nested_refs_are_kept_by_the_outer_object():
    outer = ray.put([ray.put([ray.put("core")])])
    gc.collect()
    assert ray.get(ray.get(ray.get(outer)[0])[0]) == "core"


def test_dropping_refs_before_they_are_ready(signal):
    @ray.remote
    def blocked(s):
        ray.get(s.wait.remote())

    for _ in range(3):
        blocked.remote(signal)
    gc.collect()
    ray.get(signal.send.remote())
    assert ray.get(identity.remote(1), timeout=40) == 1


@ray.remote(num_cpus=0)
class Child:
    def ready(self):
        return True


@ray.remote(num_cpus=0)
class Maker:
    def make(self, name):
        self.child = Child.options(name=name).remote()
        ray.get(self.child.ready.remote())
        return [self.child]

    def drop(self):
        self.child = None
        gc.collect()


@ray.remote(num_cpus=0)
class Giver:
    """Passes on what neither it nor its caller owns."""

    def one(self, box):
        return box

    def two(self, box, s):
        ray.get(s.wait.remote())
        return box, 1

    def items(self, box):
        yield box
        yield box

    def ready(self):
        gc.collect()
        return True


def takes_a_result(giver, box, _):
    ray.get(giver.one.remote(box))


def takes_one_of_two(giver, box, signal):
    first, second = giver.two.options(num_returns=2).remote(box, signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    del first
    gc.collect()
    ray.get(signal.send.remote())
    assert ray.get(second) == 1


def takes_the_other_of_two(giver, box, signal):
    first, second = giver.two.options(num_returns=2).remote(box, signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    del second
    gc.collect()
    ray.get(signal.send.remote())
    ray.get(first)


def takes_items(giver, box, _):
    for ref in giver.items.options(num_returns="streaming").remote(box):
        ray.get(ref)


def takes_the_first_item(giver, box, _):
    ray.get(next(giver.items.options(num_returns="streaming").remote(box)))


@pytest.mark.parametrize(
    "take",
    [
        takes_a_result,
        takes_one_of_two,
        takes_the_other_of_two,
        takes_items,
        takes_the_first_item,
    ],
)
def test_what_a_third_process_passed_on_is_let_go(take, signal):
    name = f"child-{take.__name__}"

    def is_gone():
        gc.collect()
        try:
            ray.get_actor(name)
        except ValueError:
            return True
        return False

    maker, giver = Maker.remote(), Giver.remote()
    box = ray.get(maker.make.remote(name))
    take(giver, box, signal)
    ray.get(maker.drop.remote())
    assert ray.get(box[0].ready.remote())
    del box
    assert eventually(is_gone)
    assert ray.get(giver.ready.remote())


def test_id_types_parse():
    with pytest.raises((ValueError, TypeError)):
        ray.ObjectRef(b"short")
    job = ray.JobID.from_int(7)
    assert job.int() == 7 and ray.JobID.from_hex(job.hex()) == job
    node = ray.NodeID.from_hex(ray.get_runtime_context().get_node_id())
    assert node.hex() == ray.get_runtime_context().get_node_id()
    assert not node.is_nil() and ray.NodeID.nil().is_nil()
