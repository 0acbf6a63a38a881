"""cancel: what is pending, what runs, what is nested, actor calls."""

import asyncio
import contextlib
import os
import time

import pytest
import ray
from coordination import eventually, is_running
from ray.exceptions import RayError, TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def identity(x):
    return x


@pytest.fixture
def unready(cluster):
    """A ref that stays unready: Ray 2.60 aborts a driver whose cancelled task gets its argument."""
    return identity.options(resources={"nowhere": 1}).remote(1)


def spin():
    """Runs until interrupted, in steps that let an interrupt in."""
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        time.sleep(0.01)
    return "never interrupted"


def test_pending_on_an_argument(unready):
    ref = identity.remote(unready)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)
    assert ray.wait([unready], timeout=0)[0] == []


def test_waiting_for_a_resource():
    @ray.remote(resources={"nowhere": 1})
    def queued():
        return 1

    ref = queued.remote()
    assert ray.wait([ref], timeout=0.5)[0] == []
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_running(tally):
    @ray.remote
    def runs(t):
        ray.get(t.add.remote())
        return spin()

    ref = runs.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_the_running_function_sees_keyboard_interrupt(tally):
    @ray.remote
    def runs(t):
        try:
            ray.get(t.add.remote("started"))
            spin()
        except KeyboardInterrupt:
            ray.get(t.add.remote("interrupted"))
            raise

    ref = runs.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref)
    assert ray.get(tally.until.remote(2), timeout=20) == ["started", "interrupted"]
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_blocked_in_get(signal):
    @ray.remote
    def runs(s):
        return ray.get(s.wait.remote())

    ref = runs.remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_force_kills_the_worker(tally):
    @ray.remote
    def stubborn(t):
        ray.get(t.add.remote(os.getpid()))
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                spin()

    ref = stubborn.remote(tally)
    (pid,) = ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        ray.get(ref, timeout=20)
    assert eventually(lambda: not is_running(pid))


def test_a_finished_task_keeps_its_result():
    ref = identity.remote(5)
    assert ray.get(ref) == 5
    ray.cancel(ref)
    ray.cancel(ref, force=True)
    assert ray.get(ref) == 5


def test_cancel_twice(unready):
    ref = identity.remote(unready)
    ray.cancel(ref)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_cancelled_is_not_retried(tally):
    @ray.remote(max_retries=5, retry_exceptions=True)
    def runs(t):
        ray.get(t.add.remote())
        return spin()

    ref = runs.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)
    assert len(ray.get(tally.all.remote())) == 1


def test_recursive_by_default(tally):
    @ray.remote
    def child(t):
        try:
            ray.get(t.add.remote("child"))
            spin()
        except KeyboardInterrupt:
            ray.get(t.add.remote("child interrupted"))
            raise

    @ray.remote
    def parent(t):
        return ray.get(child.remote(t))

    ref = parent.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref)
    assert ray.get(tally.until.remote(2), timeout=20)[1] == "child interrupted"
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_not_recursive(tally, signal):
    @ray.remote
    def child(t, s):
        ray.get(t.add.remote("child"))
        ray.get(s.wait.remote())
        ray.get(t.add.remote("child done"))

    @ray.remote
    def parent(t, s):
        return ray.get(child.remote(t, s))

    ref = parent.remote(tally, signal)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref, recursive=False)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)
    ray.get(signal.send.remote())
    assert ray.get(tally.until.remote(2), timeout=20) == ["child", "child done"]


def test_dependents_of_a_cancelled_task(unready):
    ref = identity.remote(unready)
    dependent = identity.remote(ref)
    ray.cancel(ref)
    with pytest.raises(RayError):
        ray.get(dependent, timeout=20)


def test_cancelling_a_put_object_changes_nothing():
    ref = ray.put(1)
    ray.cancel(ref)
    assert ray.get(ref) == 1


def test_only_refs():
    with pytest.raises((TypeError, ValueError)):
        ray.cancel(1)


def test_force_is_refused_for_actor_calls(signal):
    with pytest.raises(ValueError):
        ray.cancel(signal.wait.remote(), force=True)


def test_queued_actor_call(signal, tally):
    @ray.remote(num_cpus=0)
    class A:
        def block(self, s):
            ray.get(s.wait.remote())

        def record(self, t):
            ray.get(t.add.remote("ran"))

    a = A.remote()
    first = a.block.remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    second = a.record.remote(tally)
    ray.cancel(second)
    ray.get(signal.send.remote())
    with pytest.raises(TaskCancelledError):
        ray.get(second, timeout=20)
    ray.get(first, timeout=20)
    assert ray.get(tally.all.remote()) == []
    ray.kill(a)


def test_running_async_actor_call(tally):
    @ray.remote(num_cpus=0)
    class A:
        async def forever(self, t):
            try:
                await t.add.remote("started")
                await asyncio.sleep(50)
            except asyncio.CancelledError:
                await t.add.remote("cancelled")
                raise

        async def ok(self):
            return 1

    a = A.remote()
    ref = a.forever.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref)
    with pytest.raises((TaskCancelledError, ray.exceptions.RayTaskError)):
        ray.get(ref, timeout=20)
    assert ray.get(tally.until.remote(2), timeout=20) == ["started", "cancelled"]
    assert ray.get(a.ok.remote()) == 1
    ray.kill(a)


def test_running_sync_actor_call_sees_is_canceled(tally):
    @ray.remote(num_cpus=0, max_concurrency=2)
    class A:
        def loop(self, t):
            ray.get(t.add.remote("started"))
            deadline = time.monotonic() + 50
            while not ray.get_runtime_context().is_canceled():
                if time.monotonic() > deadline:
                    return "never told"
                time.sleep(0.01)
            ray.get(t.add.remote("told"))
            return "left"

    a = A.remote()
    ref = a.loop.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.cancel(ref)
    assert ray.get(tally.until.remote(2), timeout=20) == ["started", "told"]
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)
    ray.kill(a)


def test_streaming_generator(tally):
    @ray.remote
    def stream(t):
        ray.get(t.add.remote())
        yield 1
        spin()
        yield 2

    items = stream.remote(tally)
    assert ray.get(next(items), timeout=30) == 1
    ray.cancel(items)
    with pytest.raises((TaskCancelledError, StopIteration)):
        ray.get(next(items), timeout=20)


def test_many_pending(unready):
    refs = [identity.remote(unready) for _ in range(50)]
    for ref in refs:
        ray.cancel(ref)
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            ray.get(ref, timeout=20)


@ray.remote(num_cpus=0)
def cancel_borrowed(refs, force):
    """Cancels what another process submitted."""
    ray.cancel(refs[0], force=force)


@pytest.mark.parametrize("force", [False, True])
def test_a_borrower_cancels_a_running_task(tally, force):
    @ray.remote(max_retries=0)
    def runs(t):
        ray.get(t.add.remote(os.getpid()))
        return spin()

    ref = runs.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.get(cancel_borrowed.remote([ref], force), timeout=30)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        ray.get(ref, timeout=20)


def test_a_borrower_cancels_a_waiting_task(unready):
    ref = identity.remote(unready)
    ray.get(cancel_borrowed.remote([ref], False), timeout=30)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_a_borrower_cancels_what_is_finished():
    done, stored = identity.remote(5), ray.put(6)
    assert ray.get(done) == 5
    for ref in (done, stored):
        for force in (False, True):
            ray.get(cancel_borrowed.remote([ref], force), timeout=30)
    assert ray.get([done, stored]) == [5, 6]


def test_an_actor_cancels_what_it_borrowed(tally):
    @ray.remote(num_cpus=0)
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def cancel(self):
            ray.cancel(self.refs[0])

    @ray.remote
    def runs(t):
        ray.get(t.add.remote())
        return spin()

    ref = runs.remote(tally)
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ref]))
    ray.get(tally.until.remote(1), timeout=30)
    ray.get(keeper.cancel.remote())
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)
    ray.kill(keeper)


def test_a_borrower_cancels_a_queued_actor_call(signal, tally):
    @ray.remote(num_cpus=0)
    class A:
        def block(self, s):
            ray.get(s.wait.remote())

        def record(self, t):
            ray.get(t.add.remote("ran"))

    a = A.remote()
    first = a.block.remote(signal)
    ray.get(signal.until_arrived.remote(1), timeout=30)
    second = a.record.remote(tally)
    ray.get(cancel_borrowed.remote([second], False), timeout=30)
    ray.get(signal.send.remote())
    with pytest.raises(TaskCancelledError):
        ray.get(second, timeout=20)
    ray.get(first, timeout=20)
    ray.kill(a)


def test_a_borrower_cancels_a_running_async_actor_call(tally):
    @ray.remote(num_cpus=0)
    class A:
        async def forever(self, t):
            await t.add.remote("started")
            await asyncio.sleep(50)

    a = A.remote()
    ref = a.forever.remote(tally)
    ray.get(tally.until.remote(1), timeout=30)
    ray.get(cancel_borrowed.remote([ref], False), timeout=30)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)
    ray.kill(a)
