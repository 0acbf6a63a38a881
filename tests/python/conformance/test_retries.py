"""Retries of tasks, on exceptions and on the death of a worker."""

import ctypes
import os
import signal as signals
import sys

import pytest
import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")


class Base(Exception):
    pass


class Derived(Base):
    pass


@ray.remote
def fine():
    return "fine"


def attempts_of(tally):
    return len(ray.get(tally.all.remote()))


def test_exceptions_are_not_retried_by_default(tally):
    @ray.remote
    def f(t):
        ray.get(t.add.remote())
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(f.remote(tally))
    assert attempts_of(tally) == 1


def test_retry_exceptions_true(tally):
    @ray.remote(max_retries=2, retry_exceptions=True)
    def f(t):
        if ray.get(t.add.remote()) < 3:
            raise ValueError
        return "third time"

    assert ray.get(f.remote(tally)) == "third time"
    assert attempts_of(tally) == 3


def test_retries_run_out(tally):
    @ray.remote(max_retries=2, retry_exceptions=True)
    def f(t):
        ray.get(t.add.remote())
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(f.remote(tally))
    assert attempts_of(tally) == 3


def test_listed_exceptions_only(tally):
    @ray.remote(max_retries=5, retry_exceptions=[Base])
    def f(t):
        n = ray.get(t.add.remote())
        if n == 1:
            raise Derived
        raise KeyError

    with pytest.raises(KeyError):
        ray.get(f.remote(tally))
    assert attempts_of(tally) == 2


def test_max_retries_zero(tally):
    @ray.remote(max_retries=0, retry_exceptions=True)
    def f(t):
        ray.get(t.add.remote())
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(f.remote(tally))
    assert attempts_of(tally) == 1


def test_unlimited_retries(tally):
    @ray.remote(max_retries=-1, retry_exceptions=True)
    def f(t):
        if ray.get(t.add.remote()) < 8:
            raise ValueError
        return "at last"

    assert ray.get(f.remote(tally)) == "at last"


def test_options_set_retries(tally):
    @ray.remote
    def f(t):
        if ray.get(t.add.remote()) < 2:
            raise ValueError
        return 1

    assert ray.get(f.options(max_retries=1, retry_exceptions=True).remote(tally)) == 1


def die_by_exit():
    os._exit(1)


def die_by_kill():
    os.kill(os.getpid(), signals.SIGKILL)


def die_by_segfault():
    ctypes.string_at(0)


def die_by_abort():
    os.abort()


def die_by_sys_exit():
    sys.exit(1)


DEATHS = [die_by_exit, die_by_kill, die_by_segfault, die_by_abort]


@pytest.mark.parametrize("die", DEATHS)
def test_worker_death_without_retries(die):
    ref = ray.remote(max_retries=0)(die).remote()
    with pytest.raises(WorkerCrashedError):
        ray.get(ref)
    assert ray.get(fine.remote()) == "fine"


def test_sys_exit_in_a_task_is_an_error_without_retries():
    with pytest.raises(RayError):
        ray.get(ray.remote(max_retries=0)(die_by_sys_exit).remote())


@pytest.mark.parametrize("die", DEATHS)
def test_worker_death_is_retried_by_default(die, tally):
    @ray.remote
    def f(t):
        if ray.get(t.add.remote()) < 2:
            die()
        return "second"

    assert ray.get(f.remote(tally)) == "second"
    assert attempts_of(tally) == 2


def test_worker_death_uses_up_retries(tally):
    @ray.remote(max_retries=1)
    def f(t):
        ray.get(t.add.remote())
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        ray.get(f.remote(tally))
    assert attempts_of(tally) == 2


def test_a_death_harms_no_other_task(signal):
    @ray.remote
    def waits(s):
        ray.get(s.wait.remote())
        return "untouched"

    refs = [waits.remote(signal) for _ in range(2)]
    ray.get(signal.until_arrived.remote(2), timeout=30)
    with pytest.raises(WorkerCrashedError):
        ray.get(ray.remote(max_retries=0)(die_by_kill).remote())
    ray.get(signal.send.remote())
    assert ray.get(refs) == ["untouched"] * 2


def test_killed_from_outside(tally):
    @ray.remote(max_retries=0)
    def f(t):
        ray.get(t.add.remote(os.getpid()))
        signals.pause()

    ref = f.remote(tally)
    (pid,) = ray.get(tally.until.remote(1), timeout=30)
    os.kill(pid, signals.SIGKILL)
    with pytest.raises(WorkerCrashedError):
        ray.get(ref)


def test_a_dead_workers_earlier_results_remain():
    @ray.remote
    def make():
        return [ray.put(b"x" * 10), os.getpid()]

    @ray.remote
    def plain():
        return b"y" * 1_000_000, os.getpid()

    value, pid = ray.get(plain.remote())
    ref = plain.remote()
    _, pid = ray.get(ref)
    os.kill(pid, signals.SIGKILL)
    assert len(ray.get(ref)[0]) == 1_000_000


def test_dependents_of_a_crashed_task_fail_with_its_error():
    @ray.remote
    def use(x):
        return x

    ref = use.remote(ray.remote(max_retries=0)(die_by_exit).remote())
    with pytest.raises((WorkerCrashedError, RayTaskError)):
        ray.get(ref)


def test_generators_are_retried(tally):
    @ray.remote(max_retries=1)
    def stream(t):
        attempt = ray.get(t.add.remote())
        for i in range(3):
            if i == 1 and attempt == 1:
                os._exit(1)
            yield i

    assert ray.get(list(stream.remote(tally))) == [0, 1, 2]
    assert attempts_of(tally) == 2


@pytest.mark.parametrize("unread", [-1, 1])
@pytest.mark.parametrize("kept", [True, False])
def test_items_of_a_retried_generator_come_once(tally, kept, unread):
    @ray.remote(max_retries=1, _generator_backpressure_num_objects=unread)
    def stream(t):
        attempt = ray.get(t.add.remote())
        for i in range(5):
            if i == 3 and attempt == 1:
                os._exit(1)
            yield [i, ray.put(i), b"x" * 200_000]

    refs, values = [], []
    for ref in stream.remote(tally):
        value, inner, _ = ray.get(ref)
        values.append((value, ray.get(inner)) if value >= 3 else value)
        if kept:
            refs.append(ref)
        del ref, inner
    assert values == [0, 1, 2, (3, 3), (4, 4)]
    assert [ray.get(ref)[0] for ref in refs] == ([0, 1, 2, 3, 4] if kept else [])
    assert attempts_of(tally) == 2
