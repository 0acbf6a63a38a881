"""wait: what is ready, in which order, and what is refused."""

import threading
import time

import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def identity(x):
    return x


def test_ready_and_not_ready(signal):
    never = signal.wait.remote()
    done = ray.put(1)
    ready, rest = ray.wait([never, done])
    assert ready == [done] and rest == [never]


def test_returns_lists_of_the_same_refs():
    refs = [ray.put(i) for i in range(5)]
    ready, rest = ray.wait(refs, num_returns=5)
    assert isinstance(ready, list) and isinstance(rest, list)
    assert set(ready) == set(refs) and rest == []


def test_never_more_than_num_returns():
    refs = [ray.put(i) for i in range(10)]
    ready, rest = ray.wait(refs, num_returns=3)
    assert len(ready) == 3 and len(rest) == 7
    assert set(ready) | set(rest) == set(refs)


def test_both_lists_keep_the_callers_order(signal):
    refs = [identity.remote(i) for i in range(10)]
    ray.get(refs)
    never = [signal.wait.remote() for _ in range(2)]
    mixed = [never[0], *refs[:5], never[1], *refs[5:]]
    ready, rest = ray.wait(mixed, num_returns=12, timeout=1)
    assert ready == refs
    assert rest == never


def test_default_is_one():
    ready, rest = ray.wait([ray.put(1), ray.put(2)])
    assert len(ready) == 1 and len(rest) == 1


def test_timeout_zero_polls(signal):
    never = signal.wait.remote()
    start = time.monotonic()
    assert ray.wait([never], timeout=0) == ([], [never])
    assert time.monotonic() - start < 10


def test_timeout_returns_what_there_is(signal):
    never = signal.wait.remote()
    done = ray.put(1)
    start = time.monotonic()
    ready, rest = ray.wait([never, done], num_returns=2, timeout=0.3)
    assert ready == [done] and rest == [never]
    assert 0.25 < time.monotonic() - start < 20


def test_a_failed_task_is_ready():
    @ray.remote
    def fail():
        raise ValueError

    ref = fail.remote()
    assert ray.wait([ref], timeout=30) == ([ref], [])


def test_wakes_up_when_one_becomes_ready(signal):
    ref = signal.wait.remote()
    got = []
    thread = threading.Thread(target=lambda: got.append(ray.wait([ref], timeout=30)))
    thread.start()
    ray.get(signal.until_arrived.remote(1))
    ray.get(signal.send.remote())
    thread.join(40)
    assert got == [([ref], [])]


def test_empty_list():
    assert ray.wait([]) == ([], [])


@pytest.mark.parametrize("n", [0, -1])
def test_num_returns_must_be_positive(n):
    with pytest.raises(ValueError):
        ray.wait([ray.put(1)], num_returns=n)


def test_num_returns_may_not_exceed_the_list():
    with pytest.raises(ValueError):
        ray.wait([ray.put(1)], num_returns=2)


def test_duplicates_are_refused():
    ref = ray.put(1)
    with pytest.raises(ValueError):
        ray.wait([ref, ref])


def test_two_refs_of_one_object_are_duplicates():
    inner = ray.put(1)
    [again] = ray.get(ray.put([inner]))
    other = ray.put(2)
    assert again is not inner
    for refs in ([inner, other, again], [again, other, inner]):
        with pytest.raises(ValueError):
            ray.wait(refs)
    assert ray.wait([other, again]) == ([other], [again])


def test_a_single_ref_is_refused():
    with pytest.raises(TypeError):
        ray.wait(ray.put(1))


def test_other_things_are_refused():
    with pytest.raises(TypeError):
        ray.wait([1])
    with pytest.raises(TypeError):
        ray.wait("abc")


def test_negative_timeout_is_refused():
    with pytest.raises(ValueError):
        ray.wait([ray.put(1)], timeout=-1)


def test_fetch_local_false():
    ref = identity.remote(b"x" * 1_000_000)
    ready, rest = ray.wait([ref], timeout=30, fetch_local=False)
    assert ready == [ref]
    assert len(ray.get(ref)) == 1_000_000


def test_drain_a_thousand_one_by_one():
    pending = [identity.remote(i) for i in range(1000)]
    seen = []
    while pending:
        ready, pending = ray.wait(pending)
        seen += ray.get(ready)
    assert sorted(seen) == list(range(1000))


def test_wait_inside_a_task():
    @ray.remote
    def f(refs):
        ready, rest = ray.wait(refs, num_returns=len(refs), timeout=30)
        return len(ready), len(rest)

    assert ray.get(f.remote([identity.remote(1), ray.put(2)])) == (2, 0)
