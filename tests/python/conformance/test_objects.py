"""put and get: what is stored, what comes back, what is refused."""

import gc
import sys
import time

import numpy as np
import pytest
import ray
from ray.exceptions import GetTimeoutError

pytestmark = pytest.mark.usefixtures("cluster")

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    2**200,
    -(2**90),
    1.5,
    float("inf"),
    "",
    "text",
    "\u00e9\u4e16\U0001f600",
    b"",
    b"\x00\xff",
    1j,
    (),
    (1, "a"),
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": [1]}, 2: (3,)},
    {1, 2},
    frozenset([1]),
    range(3),
    Ellipsis,
    ValueError("kept"),
    int,
    slice(1, 2, 3),
]


@ray.remote
def identity(x):
    return x


def same(a, b):
    if isinstance(a, BaseException):
        return type(a) is type(b) and a.args == b.args
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v)[:30])
def test_round_trip_by_put(value):
    assert same(value, ray.get(ray.put(value)))


def test_round_trip_by_task():
    got = ray.get([identity.remote(v) for v in VALUES])
    assert len(got) == len(VALUES)
    for i, value in enumerate(VALUES):
        assert same(value, got[i])


def test_nan_and_negative_zero():
    assert np.isnan(ray.get(ray.put(float("nan"))))
    assert str(ray.get(ray.put(-0.0))) == "-0.0"


def test_lone_surrogates():
    assert ray.get(ray.put("\ud800")) == "\ud800"


def test_shared_and_recursive_structure():
    x = [1]
    x.append(x)
    got = ray.get(ray.put(x))
    assert got[1] is got
    shared = np.zeros(3)
    a, b = ray.get(ray.put([shared, shared]))
    assert a is b


def test_put_is_a_snapshot():
    value = [1, 2]
    ref = ray.put(value)
    value.append(3)
    assert ray.get(ref) == [1, 2]
    array = np.zeros(100_000)
    ref = ray.put(array)
    array[:] = 1
    assert ray.get(ref).sum() == 0


def test_arguments_are_snapshots(signal):
    @ray.remote
    def later(x, s):
        ray.get(s[0].wait.remote())
        return x

    value = [1]
    ref = later.remote(value, [signal])
    value.append(2)
    ray.get(signal.send.remote())
    assert ray.get(ref) == [1]


def test_every_get_is_a_fresh_value():
    ref = ray.put([1])
    first = ray.get(ref)
    first.append(2)
    assert ray.get(ref) == [1]
    assert ray.get(ref) is not ray.get(ref)


@pytest.mark.parametrize("dtype", ["i1", "u8", "f4", "f8", "c16", "?", "M8[s]", "S3", "U3", ">i4"])
def test_numpy_dtypes(dtype):
    array = np.zeros((3, 4), dtype=dtype)
    got = ray.get(ray.put(array))
    assert got.dtype == array.dtype and got.shape == array.shape
    assert (got == array).all()


def test_numpy_shapes_and_orders():
    for array in [
        np.array(3),
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(100)[::3],
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        np.array([{"a": 1}, None], dtype=object),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
    ]:
        got = ray.get(ray.put(array))
        assert got.shape == array.shape and got.dtype == array.dtype
        assert (got == array).all()


def test_numpy_scalars_keep_their_type():
    got = ray.get(ray.put(np.float32(1.5)))
    assert type(got) is np.float32 and got == 1.5


def test_large_arrays_are_read_only():
    got = ray.get(ray.put(np.zeros(500_000)))
    assert not got.flags.writeable
    with pytest.raises(ValueError):
        got[0] = 1


def test_large_arrays_are_read_only_in_tasks_and_as_results():
    @ray.remote
    def try_write(x):
        try:
            x[0] = 1
        except ValueError:
            return "read-only"
        return "written"

    @ray.remote
    def make():
        return np.zeros(500_000)

    assert ray.get(try_write.remote(ray.put(np.zeros(500_000)))) == "read-only"
    assert not ray.get(make.remote()).flags.writeable


def test_gets_of_one_array_share_memory():
    ref = ray.put(np.arange(500_000))
    a, b = ray.get(ref), ray.get(ref)
    assert a.__array_interface__["data"][0] == b.__array_interface__["data"][0]


def test_an_array_outlives_its_ref():
    ref = ray.put(np.full(500_000, 7))
    array = ray.get(ref)
    part = array[1000:2000]
    del ref, array
    gc.collect()
    churn = [ray.put(np.zeros(500_000)) for _ in range(5)]
    assert (part == 7).all()
    del churn


def test_arrays_inside_containers_are_shared_too():
    ref = ray.put({"a": [np.arange(500_000)], "b": "x"})
    got = ray.get(ref)
    assert got["a"][0].sum() == 124999750000
    assert not got["a"][0].flags.writeable


def test_out_of_band_buffers_of_user_classes():
    class Holder:
        def __init__(self, n):
            self.array = np.arange(n)
            self.note = "n"

    got = ray.get(ray.put(Holder(300_000)))
    assert got.note == "n" and got.array[-1] == 299_999
    assert not got.array.flags.writeable


def test_large_bytes():
    data = bytes(range(256)) * 40_000
    assert ray.get(ray.put(data)) == data


def test_big_containers():
    numbers = list(range(100_000))
    assert ray.get(identity.remote(numbers)) == numbers
    table = {str(i): [i, (i,)] for i in range(20_000)}
    assert ray.get(identity.remote(table)) == table


def test_deep_nesting():
    value = x = []
    for _ in range(200):
        x.append([])
        x = x[0]
    got, depth = ray.get(identity.remote(value)), 0
    while got:
        got, depth = got[0], depth + 1
    assert depth == 200


def test_objects_of_user_classes():
    class Node:
        def __init__(self, v, nxt=None):
            self.v, self.nxt = v, nxt

        def __eq__(self, other):
            return self.v == other.v and self.nxt == other.nxt

        __hash__ = None

    assert ray.get(identity.remote(Node(1, Node(2)))) == Node(1, Node(2))


def test_get_of_a_list_keeps_order_and_duplicates():
    a, b = ray.put("a"), ray.put("b")
    assert ray.get([b, a, b, a]) == ["b", "a", "b", "a"]


def test_get_of_an_empty_list():
    assert ray.get([]) == []


@pytest.mark.parametrize("bad", [1, "x", None, {}], ids=repr)
def test_get_refuses_what_is_no_ref(bad):
    with pytest.raises((ValueError, TypeError)):
        ray.get(bad)


@pytest.mark.parametrize("bad", [1, None, "x"], ids=repr)
def test_get_refuses_lists_with_something_else(bad):
    with pytest.raises((ValueError, TypeError)):
        ray.get([ray.put(1), bad])


def test_put_refuses_a_ref():
    with pytest.raises(TypeError):
        ray.put(ray.put(1))
    with pytest.raises(TypeError):
        ray.put()


def test_get_timeout(signal):
    ref = signal.wait.remote()
    start = time.monotonic()
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.2)
    assert 0.15 < time.monotonic() - start < 20
    with pytest.raises(TimeoutError):
        ray.get([ray.put(1), ref], timeout=0.1)
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0)
    ray.get(signal.send.remote())
    assert ray.get(ref, timeout=30) is None


def test_get_with_timeout_of_what_is_ready():
    ref = ray.put(1)
    assert ray.get(ref, timeout=0) == 1
    assert ray.get(ref, timeout=10) == 1
    assert ray.get(ref, timeout=None) == 1


def test_get_raises_for_any_failed_member():
    @ray.remote
    def fail():
        raise KeyError("k")

    with pytest.raises(KeyError):
        ray.get([ray.put(1), fail.remote()])


def test_get_raises_an_error_before_the_others_are_there(signal):
    @ray.remote
    def fail(s):
        ray.get(s.until_arrived.remote(1))
        raise KeyError("k")

    late = signal.wait.remote()
    with pytest.raises(KeyError):
        ray.get([late, fail.remote(signal), late], timeout=30)
    with pytest.raises(KeyError):
        ray.get([late, fail.remote(signal)], timeout=30)


def test_many_puts():
    refs = [ray.put(i) for i in range(2000)]
    assert len(set(refs)) == 2000
    assert ray.get(refs) == list(range(2000))


def test_object_with_many_refs():
    refs = [ray.put(i) for i in range(500)]
    outer = ray.put(refs)
    del refs
    gc.collect()
    assert ray.get(ray.get(outer)) == list(range(500))


def test_user_value_is_dropped_with_the_last_reference():
    array = np.zeros(300_000)
    before = sys.getrefcount(array)
    ref = ray.put(array)
    del ref
    gc.collect()
    assert sys.getrefcount(array) == before
