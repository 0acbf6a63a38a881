"""Custom serializers, by value and by reference, inspection."""

import collections
import dataclasses
import datetime
import decimal
import enum
import io
import pathlib
import sys
import threading
import uuid

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def identity(x):
    return x


@ray.remote
def type_name(x):
    return type(x).__name__


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Record:
    a: int
    b: list


Pair = collections.namedtuple("Pair", "x y")


class Subclass(list):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Record(1, [2]),
        Pair(1, 2),
        Subclass([1]),
        collections.OrderedDict(a=1, b=2),
        collections.defaultdict(int, a=1),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("aab"),
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        decimal.Decimal("1.1"),
        pathlib.PurePosixPath("/a/b"),
        uuid.UUID(int=5),
        np.int64(5),
        np.datetime64("2020-01-01"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_library_and_user_types(value):
    for got in (ray.get(ray.put(value)), ray.get(identity.remote(value))):
        assert type(got) is type(value) and got == value


def test_subclasses_keep_their_type_in_a_task():
    assert ray.get(type_name.remote(Subclass([1]))) == "Subclass"
    assert ray.get(type_name.remote(Pair(1, 2))) == "Pair"

    class IntLike(int):
        pass

    class StrLike(str):
        pass

    class DictLike(dict):
        pass

    for v, n in [(IntLike(1), "IntLike"), (StrLike("a"), "StrLike"), (DictLike(a=1), "DictLike")]:
        assert ray.get(type_name.remote(v)) == n
        assert ray.get(type_name.remote([v][0])) == n
    got = ray.get(identity.remote([IntLike(1), {"k": DictLike(a=1)}]))
    assert type(got[0]).__name__ == "IntLike" and type(got[1]["k"]).__name__ == "DictLike"


def test_enum_identity():
    assert ray.get(identity.remote(Colour.RED)) is Colour.RED


def test_functions_and_modules():
    assert ray.get(identity.remote(len)) is len
    assert ray.get(identity.remote(np)) is np
    assert ray.get(identity.remote(lambda x: x + 1))(1) == 2


def test_bytes_io():
    got = ray.get(identity.remote(io.BytesIO(b"abc")))
    assert got.read() == b"abc"


def test_numpy_subviews_are_independent():
    base = np.arange(1000)
    got = ray.get(ray.put([base[:10], base[5:15]]))
    assert got[0].tolist() == list(range(10)) and got[1].tolist() == list(range(5, 15))


def test_writable_copy():
    got = ray.get(ray.put(np.zeros(200_000))).copy()
    got[0] = 1
    assert got[0] == 1


class Unpicklable:
    def __init__(self, n):
        self.n = n
        self.lock = threading.Lock()


def test_register_serializer():
    with pytest.raises(TypeError):
        ray.put(Unpicklable(1))
    ray.util.register_serializer(Unpicklable, serializer=lambda u: u.n, deserializer=Unpicklable)
    try:
        got = ray.get(ray.put(Unpicklable(5)))
        assert isinstance(got, Unpicklable) and got.n == 5
        assert ray.get(type_name.remote(Unpicklable(1))) == "Unpicklable"
        assert ray.get(ray.put([Unpicklable(6)]))[0].n == 6
    finally:
        ray.util.deregister_serializer(Unpicklable)
    with pytest.raises(TypeError):
        ray.put(Unpicklable(1))


def test_serializer_for_a_builtin_container_subclass():
    class Tagged(dict):
        pass

    ray.util.register_serializer(
        Tagged, serializer=lambda t: sorted(t), deserializer=lambda keys: Tagged(dict.fromkeys(keys, 0))
    )
    try:
        assert ray.get(ray.put(Tagged(b=1, a=2))) == {"a": 0, "b": 0}
    finally:
        ray.util.deregister_serializer(Tagged)


def test_dunder_reduce():
    class Reduced:
        def __init__(self, x):
            self.x = x

        def __reduce__(self):
            return Reduced, (self.x + 1,)

    assert ray.get(ray.put(Reduced(1))).x == 2


def test_getstate_setstate():
    class Stateful:
        def __init__(self):
            self.a, self.lock = 1, threading.Lock()

        def __getstate__(self):
            return {"a": self.a + 1}

        def __setstate__(self, state):
            self.a, self.lock = state["a"], threading.Lock()

    assert ray.get(ray.put(Stateful())).a == 2


def test_inspect_serializability_good():
    good, failures = ray.util.inspect_serializability([1, 2])
    assert good is True and failures == set()


def test_inspect_serializability_names_the_culprit():
    lock = threading.Lock()

    def uses_it():
        return lock

    good, failures = ray.util.inspect_serializability(uses_it, name="uses_it")
    assert good is False
    assert any(f.obj is lock for f in failures)


def test_inspect_serializability_prints_to_a_file():
    out = io.StringIO()
    good, _ = ray.util.inspect_serializability(threading.Lock(), name="guard", print_file=out)
    assert good is False
    assert "guard" in out.getvalue()


def test_cloudpickle_is_offered():
    f = ray.cloudpickle.loads(ray.cloudpickle.dumps(lambda: 5))
    assert f() == 5


def test_register_pickle_by_value(tmp_path):
    source = tmp_path / "only_here.py"
    source.write_text("def answer():\n    return 42\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here

        ray.cloudpickle.register_pickle_by_value(only_here)
        try:

            @ray.remote
            def f():
                return only_here.answer()

            assert ray.get(f.remote()) == 42
        finally:
            ray.cloudpickle.unregister_pickle_by_value(only_here)
    finally:
        sys.path.remove(str(tmp_path))


def test_handles_and_functions_inside_values():
    @ray.remote(num_cpus=0)
    class A:
        def m(self):
            return 1

    a = A.remote()
    got = ray.get(ray.put({"actor": a, "function": identity}))
    assert ray.get(got["actor"].m.remote()) == 1
    assert ray.get(got["function"].remote(2)) == 2
    ray.kill(a)


def test_actor_handle_pickled_out_of_band():
    @ray.remote(num_cpus=0)
    class A:
        def m(self):
            return 1

    a = A.remote()
    back = ray.cloudpickle.loads(ray.cloudpickle.dumps(a))
    assert ray.get(back.m.remote()) == 1
    ray.kill(a)


def test_generators_are_refused():
    with pytest.raises(TypeError):
        ray.put(x for x in range(3))
