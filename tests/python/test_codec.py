"""The value codec alone: what goes in comes out, by pickle's rules, and bad bytes never crash.

Needs the test module of python/bindings (codec_test_module) on sys.path; the Makefile builds it there.
"""

import dataclasses
import enum
import functools
import gc
import importlib.util
import math
import pathlib
import pickle
import random
import sys
import threading
import types

import cloudpickle
import codec_test_module as codec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

try:
    import skate._pickle  # noqa: F401
except ImportError:
    # The codec without the runtime around it.
    _path = pathlib.Path(__file__).parents[2] / "python" / "skate" / "_pickle.py"
    _spec = importlib.util.spec_from_file_location("skate._pickle", _path)
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    sys.modules["skate"] = types.ModuleType("skate")
    sys.modules["skate._pickle"] = _module

RAW, NATIVE, PICKLE, ERROR, SYSTEM_ERROR = 0, 1, 2, 5, 6


def format_of(value):
    return codec.describe(codec.encode(value))[0]


def round_trip(value):
    return codec.decode(codec.encode(value))


def same(a, b):
    """Equality that tells types, signs of zero and NaNs apart."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def make_ref(seed=0, owner=0):
    rng = random.Random(seed)
    return codec.Ref(rng.randbytes(28), random.Random(1000 + owner).randbytes(28))


# --- native values ----------------------------------------------------------------------------

ATOMS = [
    None, True, False, 0, 1, -1, 127, 128, -128, -129, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1,
    2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**1000, -(2**1000), 10**5000, 0.0, -0.0, 1.5,
    math.inf, -math.inf, math.nan, 5e-324, "", "a", "ascii", "x" * 127, "x" * 128, "x" * 20000, "é", "日本",
    "😀", "\ud800", "mixed\udcff é 😀", "\0", "é" * 10000, b"", b"ok", bytes(range(256)), b"x" * 10000,
    (), [], {}, set(), frozenset(), (1,), [1, [2, [3, []]]], {"a": 1, 2: [3]}, {1, 2, 3},
    frozenset({"a", ("b", 1)}), {(1, 2): {"x": (None, True)}}, [b"y" * 9000, "z" * 9000],
]  # fmt: skip


@pytest.mark.parametrize("decode", [codec.decode, codec.decode_copied])
@pytest.mark.parametrize(
    "value", ATOMS, ids=lambda v: repr(v)[:24] if not isinstance(v, int) else hex(v)[:24]
)
def test_native_values(value, decode):
    data = codec.encode(value)
    assert codec.describe(data)[0] == (RAW if type(value) is bytes else NATIVE)
    assert same(decode(data), value)


native = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.text())
    ),
    max_leaves=60,
)


@given(native)
@settings(max_examples=400, deadline=None)
def test_any_native_value(value):
    assert same(round_trip(value), value)
    assert same(round_trip(value), pickle.loads(pickle.dumps(value)))


def test_large_containers():
    numbers = list(range(200_000))
    assert round_trip(numbers) == numbers
    table = {f"key{i}": (i, float(i)) for i in range(50_000)}
    assert round_trip(table) == table
    assert format_of(table) == NATIVE


def test_big_bytes_are_one_buffer():
    for size in (64 * 1024, 1 << 20):
        value = random.Random(1).randbytes(size)
        data = codec.encode(value)
        assert codec.describe(data) == (RAW, 1, 0, 0, 0)
        assert codec.decode(data) == value


def test_values_are_fresh():
    data = codec.encode([[1], {"a": [2]}])
    first, second = codec.decode(data), codec.decode(data)
    first[0].append(9)
    first[1]["a"].append(9)
    assert second == [[1], {"a": [2]}]


def test_put_is_a_snapshot():
    inner = [1]
    array = np.zeros(4)
    data = codec.encode([inner, array])
    inner.append(2)
    array[:] = 7
    back = codec.decode(data)
    assert back[0] == [1]
    assert back[1].tolist() == [0, 0, 0, 0]


# --- identity ---------------------------------------------------------------------------------


def test_shared_containers_stay_shared():
    for shared in ([1], {"a": 1}, {1}, ([],), frozenset({1})):
        value = [shared, shared]
        assert format_of(value) == PICKLE
        back = round_trip(value)
        assert back[0] is back[1]
        assert back == value


def test_shared_through_a_tuple():
    inner = ([],)
    value = [inner, 1, inner]
    back = round_trip(value)
    assert back[0][0] is back[2][0]


def test_many_live_containers_need_no_pickle():
    parts = [[i] for i in range(1000)]
    keep = list(parts)  # each is referenced twice, yet met once
    assert format_of(parts) == NATIVE
    assert round_trip(parts) == keep
    parts.append(parts[500])
    back = round_trip(parts)
    assert format_of(parts) == PICKLE
    assert back[500] is back[1000]


def test_cycles():
    value = [1]
    value.append(value)
    back = round_trip(value)
    assert back[0] == 1
    assert back[1] is back
    table = {}
    table["self"] = table
    back = round_trip(table)
    assert back["self"] is back


def test_shared_arrays_stay_shared():
    array = np.arange(3)
    back = round_trip([array, array])
    assert back[0] is back[1]


def test_a_repeated_large_string_is_written_once():
    for text in ("x" * 100_000, b"x" * 100_000, "é" * 100_000):
        data = codec.encode([text] * 100)
        assert len(data) < 400_000
        assert codec.decode(data) == [text] * 100


def test_exponential_sharing_stays_small():
    value = ()
    for _ in range(60):
        value = (value, value)
    assert len(codec.encode(value)) < 2000


def test_depth():
    for depth in (10, 120, 127, 128, 129, 300):
        value = []
        for _ in range(depth):
            value = [value]
        assert format_of(value) == (NATIVE if depth < 128 else PICKLE)
        assert round_trip(value) == value


def test_too_deep_is_a_clear_error():
    value = []
    for _ in range(200_000):
        value = [value]
    with pytest.raises(TypeError, match="nested too deeply"):
        codec.encode(value)
    while value:
        value = value.pop()


# --- exact types only -------------------------------------------------------------------------


class Text(str):
    pass


class Table(dict):
    pass


class Number(int):
    pass


class Colour(enum.IntEnum):
    RED = 1


class SubArray(np.ndarray):
    pass


@dataclasses.dataclass
class Point:
    x: int
    y: object


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a

    def __eq__(self, other):
        return type(other) is Slotted and other.a == self.a


Pair = __import__("collections").namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [Text("a"), Table(a=1), Number(3), Colour.RED, Pair(1, [2]), Point(1, [2]), Slotted(4), 1j, range(3),
     bytearray(b"abc"), slice(1, 2), ValueError("x", 1).args, types.SimpleNamespace(a=1), int, Ellipsis,
     NotImplemented, type(None), types.FunctionType, math.sin, functools.partial(max, 1).func,
     [Point(1, 2), {"p": Pair(1, 2)}]],
    ids=lambda v: f"{type(v).__name__}",
)  # fmt: skip
def test_other_types_are_pickled(value):
    back = round_trip(value)
    assert type(back) is type(value)
    assert back == value


def test_array_subclass():
    back = round_trip(np.arange(3).view(SubArray))
    assert type(back) is SubArray
    assert back.tolist() == [0, 1, 2]


# --- numpy ------------------------------------------------------------------------------------

DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("decode", [codec.decode, codec.decode_copied])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 0, 3), (2, 3, 4)])
def test_plain_arrays(dtype, shape, decode):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    for value in (array, np.asfortranarray(array), array.T):
        data = codec.encode(value)
        assert codec.describe(data)[:2] == (NATIVE, 1)
        back = decode(data)
        assert type(back) is np.ndarray
        assert same(back, value)
        assert back.flags.c_contiguous == value.flags.c_contiguous
        assert back.flags.f_contiguous == value.flags.f_contiguous
        assert not back.flags.writeable
        with pytest.raises(ValueError, match="read-only|WRITEABLE"):
            back[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            back.flags.writeable = True


@pytest.mark.parametrize(
    "array",
    [np.arange(10)[::2], np.arange(12).reshape(3, 4)[:, ::2], np.array([1, "a", None], dtype=object),
     np.array(["abc", "de"]), np.array(["2020-01-01"], dtype="M8[D]"), np.arange(3, dtype=">i4"),
     np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), np.array([1], dtype="longdouble"),
     np.arange(3, dtype=np.longlong)],
    ids=str,
)  # fmt: skip
def test_other_arrays_are_pickled(array):
    assert format_of(array) == PICKLE
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert (back == array).all()


def test_arrays_within_pickles_are_zero_copy_and_read_only():
    data = codec.encode(Point(1, np.arange(1000)))
    assert codec.describe(data)[:2] == (PICKLE, 1)
    back = codec.decode(data)
    assert (back.y == np.arange(1000)).all()
    assert not back.y.flags.writeable
    assert codec.pin_count() == 1
    del back
    assert codec.pin_count() == 0


def test_alignment():
    back = round_trip([np.arange(n, dtype="u1") for n in (1, 63, 64, 65, 1000)])
    assert all(array.ctypes.data % 64 == 0 for array in back)


def test_the_pin_lasts_as_long_as_any_view():
    assert codec.pin_count() == 0
    back = round_trip({"a": np.arange(100), "b": [np.ones(5)]})
    assert codec.pin_count() == 1
    view = back["b"][0][2:]
    del back
    assert codec.pin_count() == 1
    assert view.tolist() == [1, 1, 1]
    memory = memoryview(view)
    del view
    assert codec.pin_count() == 1
    assert memory.tolist() == [1, 1, 1]
    del memory
    assert codec.pin_count() == 0


def test_without_buffers_nothing_stays_pinned():
    back = round_trip([1, "a", b"b" * 20_000])
    assert codec.pin_count() == 0
    assert len(back) == 3


def test_numpy_scalars():
    for value in (np.float64(1.5), np.int32(3), np.bool_(True)):
        back = round_trip(value)
        assert type(back) is type(value)
        assert back == value


# --- refs -------------------------------------------------------------------------------------


def test_refs():
    ref = make_ref()
    assert round_trip(ref) == ref
    value = {"a": [ref, make_ref(1, owner=1)], "b": (make_ref(2),)}
    data = codec.encode(value)
    assert codec.describe(data)[:4] == (NATIVE, 0, 3, 2)
    assert codec.decode(data) == value


def test_refs_as_keys_and_in_sets():
    value = {make_ref(i): {make_ref(i + 100)} for i in range(20)}
    assert round_trip(value) == value


def test_refs_inside_pickles():
    refs = [make_ref(i, owner=i % 3) for i in range(10)]
    value = Point(refs[0], {"more": refs})
    data = codec.encode(value)
    assert codec.describe(data)[0] == PICKLE
    assert codec.describe(data)[2] >= 10
    assert codec.decode(data) == value


class ReducesItself:
    def __init__(self, ref):
        self.ref = ref

    def __reduce__(self):
        return _rebuild, (pickle.dumps(self.ref),)


def _rebuild(data):
    return ReducesItself(pickle.loads(data))


def test_refs_in_a_pickle_within_a_pickle():
    ref = make_ref(5)
    assert round_trip([ReducesItself(ref)])[0].ref == ref


def test_a_ref_outside_of_a_value():
    with pytest.raises(RuntimeError):
        pickle.dumps(make_ref())
    data = codec.encode_payload(ERROR, lambda: pickle.dumps(("text", make_ref(3))))
    assert codec.describe(data)[2] == 1
    payload = codec.decode(data)
    with pytest.raises(RuntimeError, match="as part of that value"):
        pickle.loads(payload)


def test_ten_thousand_refs():
    refs = [make_ref(i) for i in range(10_000)]
    data = codec.encode(refs)
    assert codec.describe(data)[:4] == (NATIVE, 0, 10_000, 1)
    assert codec.decode(data) == refs


def test_nested_encode_inside_reduce():
    class Puts:
        def __reduce__(self):
            inner = codec.encode([make_ref(1), Point(1, make_ref(2))])
            return bytes, (inner,)

    data = codec.encode([Puts(), make_ref(3)])
    assert codec.describe(data)[2] == 1
    inner, ref = codec.decode(data)
    assert codec.decode(inner) == [make_ref(1), Point(1, make_ref(2))]
    assert ref == make_ref(3)


# --- code, by cloudpickle's rules -------------------------------------------------------------


def pickled_bytes(value):
    return codec.encode(value)


def importable_function():
    return 1


def test_importable_code_goes_by_reference():
    for value in (importable_function, Point, pathlib.Path, json_dumps(), Outer.Inner, Outer.method):
        assert len(pickled_bytes(value)) < 200
        assert round_trip(value) is value


class Outer:
    class Inner:
        pass

    def method(self):
        pass


def json_dumps():
    import json

    return json.dumps


def test_lambdas_and_closures():
    base = 10
    assert round_trip(lambda x: x + base)(1) == 11
    functions = round_trip([lambda: base, lambda: base + 1])
    assert [f() for f in functions] == [10, 11]


def test_local_classes():
    class Local:
        def __init__(self):
            self.value = 1

        def more(self):
            return super().__init__() or self.value + 1

    back = round_trip(Local())
    assert back.more() == 2
    assert type(back).__name__ == "Local"


def test_main_goes_by_value():
    main = sys.modules["__main__"]
    namespace = {"__name__": "__main__"}
    exec("limit = 5\ndef f(): return limit\ndef g(): return limit\nclass C:\n  x = 2\n", namespace)
    try:
        for name in ("limit", "f", "g", "C"):
            setattr(main, name, namespace[name])
        data = codec.encode([namespace["f"], namespace["g"], namespace["C"]()])
    finally:
        for name in ("limit", "f", "g", "C"):
            delattr(main, name)
    f, g, c = codec.decode(data)
    assert f() == g() == 5
    assert f.__globals__ is g.__globals__  # one module's functions share their globals
    assert c.x == 2


def test_registered_modules_go_by_value():
    module = types.ModuleType("registered_for_value")
    exec("def f(): return 42\nclass C:\n  x = 3\n", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        by_reference = codec.encode([module.f, module.C])
        cloudpickle.register_pickle_by_value(module)
        by_value = codec.encode([module.f, module.C])
        cloudpickle.unregister_pickle_by_value(module)
    finally:
        del sys.modules[module.__name__]
    f, c = codec.decode(by_value)
    assert f() == 42
    assert c.x == 3
    with pytest.raises(ModuleNotFoundError):
        codec.decode(by_reference)


def test_cloudpickles_own_reducers():
    table = {"a": 1}
    assert list(round_trip(table.keys())) == ["a"]
    assert round_trip(types.MappingProxyType(table)) == table
    assert round_trip(memoryview(b"abc")) == b"abc"
    assert round_trip(sys) is sys
    bound = round_trip(Outer().method)
    assert bound.__func__ is Outer.method


# --- custom serializers -----------------------------------------------------------------------


class Handle:
    def __init__(self, name):
        self.name = name
        self.lock = threading.Lock()


def test_custom_serializer():
    prefix = "got "
    codec.register_serializer(Handle, lambda h: h.name, lambda name: Handle(prefix + name))
    try:
        assert round_trip([Handle("a")])[0].name == "got a"
    finally:
        codec.deregister_serializer(Handle)
    with pytest.raises(TypeError):
        codec.encode(Handle("a"))
    codec.deregister_serializer(Handle)  # again: nothing to forget


def test_custom_serializer_for_arrays():
    codec.register_serializer(np.ndarray, np.ndarray.tolist, tuple)
    try:
        assert round_trip(np.arange(3)) == (0, 1, 2)
        assert round_trip([np.arange(2)]) == [(0, 1)]
    finally:
        codec.deregister_serializer(np.ndarray)
    assert type(round_trip(np.arange(3))) is np.ndarray


def test_custom_serializer_must_be_callable():
    with pytest.raises(TypeError):
        codec.register_serializer(Handle, 1, 2)


# --- errors -----------------------------------------------------------------------------------


def test_unpicklable_names_the_place():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\]\.y.*_thread\.lock") as caught:
        codec.encode({"a": [1, Point(1, lock)]})
    assert "register_serializer" in str(caught.value)
    assert "cannot pickle '_thread.lock' object" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(TypeError, match=r"\.<lock>"):
        codec.encode(lambda: lock)


class Raises:
    def __reduce__(self):
        raise ZeroDivisionError("mine")


def test_what_user_code_raises_propagates():
    with pytest.raises(ZeroDivisionError, match="mine"):
        codec.encode([Raises()])


class BreaksOnLoad:
    def __reduce__(self):
        return int, ("not a number",)


def test_what_user_code_raises_on_load_propagates():
    with pytest.raises(ValueError, match="not a number"):
        round_trip(BreaksOnLoad())


def test_the_codec_works_on_after_an_error():
    for _ in range(3):
        with pytest.raises(TypeError):
            codec.encode([make_ref(), threading.Lock()])
        assert round_trip([make_ref()]) == [make_ref()]
        assert not codec.encode([make_ref()]) == b""


def test_pinned_memory_does_not_pickle():
    back = round_trip(np.arange(3))
    exporter = back.base
    while not type(exporter).__name__ == "PinnedBuffer":
        exporter = exporter.obj if isinstance(exporter, memoryview) else exporter.base
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(exporter)


# --- bad bytes --------------------------------------------------------------------------------


def samples():
    return [
        [
            None,
            True,
            1,
            300,
            2**40,
            2**100,
            1.5,
            "abc",
            "é",
            b"xyz",
            (1, 2),
            {"a": [1]},
            {1, 2},
            frozenset("ab"),
        ],
        {"array": np.arange(12.0).reshape(3, 4), "f": np.asfortranarray(np.ones((2, 2))), "z": np.zeros(0)},
        [make_ref(1), (make_ref(2, owner=1),), "x" * 9000, b"y" * 9000],
        b"raw",
    ]


@pytest.mark.parametrize("index", range(4))
def test_mutated_bytes_never_crash(index):
    value = samples()[index]
    good = codec.encode(value)
    rng = random.Random(index)
    outcomes = set()
    head = min(len(good), 600)
    for _ in range(6000):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            data[rng.randrange(head)] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        for decode in (codec.decode, codec.decode_copied):
            try:
                decode(data)
                outcomes.add("read")
            except codec.CorruptValueError:
                outcomes.add("refused")
            except (pickle.UnpicklingError, ValueError, EOFError):
                # Its format byte became that of another codec.
                assert data[1] != good[1]
    assert outcomes == {"read", "refused"}
    assert codec.pin_count() == 0


def test_every_truncation_is_refused():
    for value in samples():
        good = codec.encode(value)
        for size in range(min(len(good), 1200)):
            with pytest.raises(codec.CorruptValueError):
                codec.decode(good[:size])


def native_value(inband):
    """A value of the native format with these in-band bytes, which the layout itself finds sound."""
    size = 32 + len(inband)
    return (
        bytes([0xD5, NATIVE, 1, 0])
        + bytes(12)
        + len(inband).to_bytes(8, "little")
        + size.to_bytes(8, "little")
        + inband
    )


def test_layout_of_the_test_itself():
    assert native_value(b"\0") == codec.encode(None)


@given(st.binary(max_size=80))
@settings(max_examples=1500, deadline=None)
def test_any_native_bytes(inband):
    try:
        value = codec.decode(native_value(inband))
    except codec.CorruptValueError:
        return
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    "inband",
    [
        b"",
        b"\x08\x80",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x01\xff",
        b"\x09\x01\xff",
        b"\x63",
        b"\x0e\xff\xff\xff\xff\x7f",
        b"\x0f\x01\x0e\x00\x00",
        b"\x10\x01\x0e\x00",
        b"\x12\x00",
        b"\x0b\x00",
        b"\x00\x00",
        b"\x0e\x01" * 5000 + b"\x00",
        b"\x13\x0bC\x00\x00",
        b"\x13\x0bX\x00\x00",
        b"\x13\x0bC\xff",
    ],
    ids=lambda b: b[:12].hex(),
)
def test_bad_native_bytes(inband):
    with pytest.raises(codec.CorruptValueError):
        codec.decode(native_value(inband))


def test_corrupt_is_a_value_error():
    assert issubclass(codec.CorruptValueError, ValueError)


# --- memory -----------------------------------------------------------------------------------


def test_nothing_leaks():
    values = [*ATOMS, *samples(), Point(1, np.arange(5)), lambda: 1, [make_ref(), Point(1, make_ref())]]
    lock = threading.Lock()

    def work():
        for value in values:
            data = codec.encode(value)
            codec.decode(data)
            codec.decode_copied(data)
        with pytest.raises(TypeError):
            codec.encode([np.arange(4), make_ref(), lock])
        with pytest.raises(codec.CorruptValueError):
            codec.decode(codec.encode([1, 2, 3])[:-1])
        with pytest.raises(codec.CorruptValueError):
            codec.decode(native_value(b"\x0e\x03\x08\x01a\x0e\x00"))

    def counts():
        gc.collect()  # first: errors and their frames are cycles
        counted = (None, Point, np.ndarray, codec.Ref)
        return [*map(sys.getrefcount, counted), sys.getallocatedblocks()]

    for _ in range(20):
        work()
    before = counts()
    for _ in range(100):
        work()
    grown = [b - a for a, b in zip(before, counts(), strict=True)]
    assert max(grown[:-1]) < 50
    assert grown[-1] < 1000
    assert codec.pin_count() == 0


def test_threads():
    failures = []

    def work(seed):
        value = [make_ref(seed), Point(seed, [make_ref(seed + 1)]), np.full(1000, seed)]
        for _ in range(200):
            back = round_trip(value)
            if back[:2] != value[:2] or back[2][0] != seed:
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(i * 10,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
