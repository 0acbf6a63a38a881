"""More than one result: static, none, dynamic."""

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")


def test_static():
    @ray.remote(num_returns=3)
    def f():
        return 1, "b", None

    a, b, c = f.remote()
    assert ray.get(b) == "b" and ray.get([a, c]) == [1, None]


def test_static_from_a_list_a_generator_and_an_array():
    @ray.remote(num_returns=2)
    def from_list():
        return [1, 2]

    @ray.remote(num_returns=2)
    def from_generator():
        yield 1
        yield 2

    @ray.remote(num_returns=2)
    def from_array():
        return np.array([1, 2])

    for f in (from_list, from_generator, from_array):
        assert ray.get(f.remote()) == [1, 2]


def test_one_result_may_be_a_tuple():
    @ray.remote(num_returns=1)
    def f():
        return (1, 2)

    assert ray.get(f.remote()) == (1, 2)


@pytest.mark.parametrize("value", [(1,), (1, 2, 3)], ids=["few", "many"])
def test_wrong_count_is_an_error(value):
    @ray.remote(num_returns=2)
    def f(v):
        return v

    for ref in f.remote(value):
        with pytest.raises(ValueError):
            ray.get(ref)


def test_not_iterable_is_an_error():
    @ray.remote(num_returns=2)
    def f():
        return 5

    with pytest.raises((ValueError, TypeError)):
        ray.get(f.remote())


def test_generator_that_yields_too_few():
    @ray.remote(num_returns=3, max_retries=0)
    def f():
        yield 1

    with pytest.raises(ValueError):
        ray.get(f.remote())


def test_what_a_generator_yielded_before_its_error_stays():
    @ray.remote(num_returns=3)
    def f():
        yield 1
        yield np.ones(200_000)
        raise KeyError("x")

    first, second, third = f.remote()
    assert ray.get(first) == 1
    assert ray.get(second).sum() == 200_000
    with pytest.raises(KeyError):
        ray.get(third)


def test_what_a_generator_yielded_before_its_end_stays():
    @ray.remote(num_returns=2, max_retries=0)
    def f():
        yield 1

    first, second = f.remote()
    assert ray.get(first) == 1
    with pytest.raises(ValueError):
        ray.get(second)


def test_the_items_of_a_failed_generator_are_made_again():
    @ray.remote(num_returns=2, retry_exceptions=True, max_retries=3)
    def f():
        yield np.ones(200_000)
        raise KeyError("x")

    first, second = f.remote()
    with pytest.raises(KeyError):
        ray.get(second)
    assert ray.get(first).sum() == 200_000


@pytest.mark.parametrize("value", ["ab", b"ab", {"a": 1, "b": 2}, range(2), np.arange(2)], ids=repr)
def test_any_sequence_will_do(value):
    @ray.remote(num_returns=2)
    def f():
        return value

    assert ray.get(f.remote()) == list(value)


def test_a_generator_gives_its_only_result_first():
    @ray.remote(num_returns=1)
    def f():
        yield 5
        yield 6

    assert ray.get(f.remote()) == 5


def test_a_generator_may_yield_more_than_is_asked_for():
    @ray.remote(num_returns=2)
    def f():
        yield from range(9)

    assert ray.get(f.remote()) == [0, 1]


def test_a_dynamic_generator_that_fails_at_once():
    @ray.remote(num_returns="dynamic")
    def f():
        raise KeyError("x")
        yield

    (only,) = ray.get(f.remote())
    with pytest.raises(KeyError):
        ray.get(only)


def test_the_error_of_a_dynamic_generator_is_its_last_item():
    @ray.remote(num_returns="dynamic")
    def f():
        yield 1
        raise KeyError("x")

    first, second = ray.get(f.remote())
    assert ray.get(first) == 1
    with pytest.raises(KeyError):
        ray.get(second)


def test_an_error_fails_every_result():
    @ray.remote(num_returns=2)
    def f():
        raise KeyError("x")

    for ref in f.remote():
        with pytest.raises(KeyError):
            ray.get(ref)


def test_zero():
    @ray.remote(num_returns=0)
    def f():
        return None

    assert f.remote() is None


def test_results_are_passed_on_singly():
    @ray.remote(num_returns=2)
    def f():
        return np.ones(200_000), 2

    @ray.remote
    def g(x):
        return x.sum()

    big, _ = f.remote()
    assert ray.get(g.remote(big)) == 200_000


def test_dynamic():
    @ray.remote(num_returns="dynamic")
    def f(n):
        for i in range(n):  # noqa: UP028
            yield i

    refs = ray.get(f.remote(4))
    assert len(refs) == 4
    assert [ray.get(r) for r in refs] == [0, 1, 2, 3]


def test_dynamic_travels():
    @ray.remote
    def f(n):
        for i in range(n):
            yield np.full(50_000, i)

    @ray.remote
    def total(refs):
        return [int(ray.get(r)[0]) for r in refs]

    assert ray.get(total.remote(f.options(num_returns="dynamic").remote(3))) == [0, 1, 2]


def test_method_static():
    @ray.remote(num_cpus=0)
    class A:
        @ray.method(num_returns=2)
        def pair(self, x):
            return x, x + 1

        @ray.method(num_returns=0)
        def nothing(self):
            return None

    a = A.remote()
    assert ray.get(a.pair.remote(1)) == [1, 2]
    assert a.nothing.remote() is None
    ray.kill(a)
