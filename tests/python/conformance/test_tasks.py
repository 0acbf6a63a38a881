"""Calling functions: arguments, results, nesting, what the function object is."""

import os
import random
import threading

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def identity(x):
    return x


@ray.remote
def describe(a, b=2, *args, c=3, **kwargs):
    return a, b, args, c, kwargs


@ray.remote
def pid():
    return os.getpid()


def test_result_comes_back():
    assert ray.get(identity.remote(41)) == 41


def test_runs_in_another_process():
    assert ray.get(pid.remote()) != os.getpid()


def test_remote_returns_a_ref_at_once(signal):
    @ray.remote
    def blocked(s):
        ray.get(s.wait.remote())
        return "done"

    ref = blocked.remote(signal)
    assert isinstance(ref, ray.ObjectRef)
    assert ray.wait([ref], timeout=0)[0] == []
    ray.get(signal.send.remote())
    assert ray.get(ref) == "done"


def test_positional_keyword_and_starred_arguments():
    assert ray.get(describe.remote(1)) == (1, 2, (), 3, {})
    assert ray.get(describe.remote(1, 5, 6, 7, c=8, d=9)) == (1, 5, (6, 7), 8, {"d": 9})
    assert ray.get(describe.remote(a=1, b=4)) == (1, 4, (), 3, {})


def test_keyword_only_and_positional_only():
    @ray.remote
    def f(a, /, b, *, c):
        return a, b, c

    assert ray.get(f.remote(1, b=2, c=3)) == (1, 2, 3)
    with pytest.raises(TypeError):
        f.remote(a=1, b=2, c=3)
    with pytest.raises(TypeError):
        f.remote(1, 2, 3)


@pytest.mark.parametrize(
    "args, kwargs",
    [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1, 2), {"z": 1}), ((1, 2), {"x": 1})],
)
def test_wrong_arguments_raise_at_the_call(args, kwargs):
    @ray.remote
    def two(x, y):
        return x + y

    with pytest.raises(TypeError):
        two.remote(*args, **kwargs)


def test_direct_call_is_refused():
    with pytest.raises(TypeError):
        identity(1)


def test_top_level_ref_arguments_are_resolved():
    a, b = ray.put(1), identity.remote(2)
    assert ray.get(describe.remote(a, b, ray.put(3), c=ray.put(4), d=ray.put(5))) == (
        1,
        2,
        (3,),
        4,
        {"d": 5},
    )


def test_refs_in_containers_stay_refs():
    @ray.remote
    def inspect(in_list, in_dict, in_tuple):
        refs = [in_list[0], in_dict["k"], in_tuple[0][0]]
        assert all(isinstance(r, ray.ObjectRef) for r in refs)
        return ray.get(refs)

    ref = ray.put("v")
    assert ray.get(inspect.remote([ref], {"k": ref}, ((ref,),))) == ["v"] * 3


def test_only_the_outermost_ref_is_resolved():
    inner = ray.put("inner")
    outer = ray.put([inner])
    (got,) = ray.get(identity.remote(outer))
    assert got == inner
    assert ray.get(got) == "inner"


def test_a_returned_ref_is_a_value():
    @ray.remote
    def make():
        return ray.put("inner")

    got = ray.get(make.remote())
    assert isinstance(got, ray.ObjectRef)
    assert ray.get(got) == "inner"


def test_chain_of_dependencies():
    @ray.remote
    def add(x, y):
        return x + y

    ref = ray.put(0)
    for _ in range(200):
        ref = add.remote(ref, 1)
    assert ray.get(ref) == 200


def test_fan_in_of_many_refs():
    @ray.remote
    def total(*parts):
        return sum(parts)

    assert ray.get(total.remote(*[identity.remote(i) for i in range(100)])) == 4950


def test_nested_tasks():
    @ray.remote
    def fib(n):
        if n < 2:
            return n
        return sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert ray.get(fib.remote(5)) == 5


def test_a_task_may_return_a_ref_and_its_value_outlives_the_task():
    @ray.remote
    def make():
        return [ray.put(np.arange(1000)), identity.remote("small")]

    big, small = ray.get(make.remote())
    assert ray.get(big).sum() == 499500
    assert ray.get(small) == "small"


def test_none_is_returned_by_default():
    @ray.remote
    def nothing():
        pass

    assert ray.get(nothing.remote()) is None


def test_closures_travel():
    captured = {"k": [1, 2]}

    @ray.remote
    def f(x):
        return captured["k"][x]

    assert ray.get(f.remote(1)) == 2


def test_a_closure_is_taken_once():
    captured = [1]

    @ray.remote
    def f():
        return list(captured)

    assert ray.get(f.remote()) == [1]
    captured.append(2)
    assert ray.get(f.remote()) == [1]


def test_captured_refs_stay_alive():
    ref = ray.put(np.ones(200_000))

    @ray.remote
    def f():
        return float(ray.get(ref).sum())

    del_me = f.remote()
    assert ray.get(del_me) == 200_000
    assert ray.get(f.remote()) == 200_000


def test_lambdas_and_local_classes():
    class Point:
        def __init__(self, x):
            self.x = x

    f = ray.remote(lambda p: Point(p.x + 1))
    assert ray.get(f.remote(Point(1))).x == 2


def test_remote_as_a_plain_function():
    def double(x):
        return 2 * x

    assert ray.get(ray.remote(double).remote(4)) == 8
    assert ray.get(ray.remote(num_cpus=1)(double).remote(4)) == 8


def test_remote_function_travels_as_an_argument_and_in_a_closure():
    @ray.remote
    def call(f, x):
        return ray.get(f.remote(x))

    assert ray.get(call.remote(identity, 7)) == 7

    @ray.remote
    def call_closure(x):
        return ray.get(identity.remote(x))

    assert ray.get(call_closure.remote(8)) == 8


def test_options_override_and_leave_the_original():
    @ray.remote
    def two():
        return 1, 2

    a, b = two.options(num_returns=2).remote()
    assert ray.get([a, b]) == [1, 2]
    assert ray.get(two.remote()) == (1, 2)


def test_wrapped_function_is_kept():
    def original(x):
        return x

    wrapped = ray.remote(original)
    assert wrapped._function is original


def test_large_arguments():
    data = np.arange(500_000)

    @ray.remote
    def total(x):
        return int(x.sum())

    assert ray.get(total.remote(data)) == int(data.sum())
    assert ray.get(total.remote(ray.put(data))) == int(data.sum())


def test_many_small_tasks():
    assert ray.get([identity.remote(i) for i in range(1000)]) == list(range(1000))


def test_workers_are_reused():
    seen = set()
    for _ in range(40):
        seen.add(ray.get(pid.remote()))
    assert len(seen) < 20


def test_module_state_lives_as_long_as_the_worker():
    @ray.remote
    def bump():
        os.environ["CONFORMANCE_N"] = str(int(os.environ.get("CONFORMANCE_N", "0")) + 1)
        return os.getpid(), int(os.environ["CONFORMANCE_N"])

    first = ray.get(bump.remote())
    seen = [first]
    for _ in range(30):
        seen.append(ray.get(bump.remote()))
    by_pid = {}
    for worker, n in seen:
        by_pid.setdefault(worker, []).append(n)
    for counts in by_pid.values():
        assert counts == list(range(1, len(counts) + 1))


def test_a_parameter_may_be_called_self():
    @ray.remote
    def f(self, x):
        return self, x

    assert ray.get(f.remote(self=1, x=2)) == (1, 2)


def test_max_calls_makes_the_worker_exit():
    @ray.remote(max_calls=1)
    def own_pid():
        return os.getpid()

    pids = ray.get([own_pid.remote() for _ in range(4)])
    assert len(set(pids)) == 4


def test_max_calls_counts_failures_and_each_function_by_itself():
    @ray.remote(max_calls=2, num_cpus=4)
    def counted(fail):
        if fail:
            raise ValueError(str(os.getpid()))
        return os.getpid()

    @ray.remote(num_cpus=4)
    def other():
        return os.getpid()

    def pid_of(ref):
        try:
            return ray.get(ref)
        except ValueError as error:
            return int(str(error).split()[-1])

    pids = []
    for fail in (True, False, True, True):
        pids.append(pid_of(counted.remote(fail)))
        ray.get(other.remote())
    assert max(pids.count(pid) for pid in pids) <= 2


def test_random_numbers_differ_between_workers(signal):
    @ray.remote(num_cpus=1)
    def draw(s):
        ray.get(s.wait.remote())
        return os.getpid(), random.random(), float(np.random.rand()), os.urandom(8)

    refs = [draw.remote(signal) for _ in range(3)]
    ray.get(signal.until_arrived.remote(3), timeout=40)
    ray.get(signal.send.remote())
    drawn = ray.get(refs)
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == 3


def test_runs_on_the_main_thread():
    @ray.remote
    def where():
        return threading.current_thread() is threading.main_thread()

    assert ray.get(where.remote())


def test_async_functions_are_refused():
    async def f():
        return 1

    with pytest.raises(ValueError):
        ray.remote(f).remote()


def test_threads_of_the_driver_submit_and_get():
    failures = []

    def work(n):
        try:
            for i in range(20):
                assert ray.get(identity.remote((n, i))) == (n, i)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_threads_inside_a_task():
    @ray.remote
    def f():
        out = []
        lock = threading.Lock()

        def work(i):
            value = ray.get(identity.remote(i))
            with lock:
                out.append(value)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return sorted(out)

    assert ray.get(f.remote()) == [0, 1, 2, 3, 4]
