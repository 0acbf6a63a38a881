"""multiprocessing.Pool and the joblib backend."""

import multiprocessing
import os

import joblib
import pytest
import ray
from coordination import run_driver
from ray.util.multiprocessing import Pool

pytestmark = pytest.mark.usefixtures("cluster")


def square(x):
    return x * x


def add(x, y):
    return x + y


def pid(_=None):
    return os.getpid()


def fail_on_three(x):
    if x == 3:
        raise ValueError("three")
    return x


_initialised = None


def initialise(value):
    global _initialised
    _initialised = value


def read_initialised(_):
    return _initialised


@pytest.fixture(scope="module")
def pool(cluster):
    p = Pool(processes=2)
    yield p
    p.terminate()
    p.join()


def test_apply(pool):
    assert pool.apply(add, (1, 2)) == 3
    assert pool.apply(add, kwargs={"x": 1, "y": 5}) == 6


def test_apply_async(pool):
    result = pool.apply_async(add, (1, 2))
    assert result.get(timeout=30) == 3
    assert result.ready() and result.successful()


def test_other_processes(pool):
    pids = set(pool.map(pid, range(20)))
    assert os.getpid() not in pids and 1 <= len(pids) <= 2


def test_map(pool):
    assert pool.map(square, range(50)) == [x * x for x in range(50)]
    assert pool.map(square, range(50), chunksize=7) == [x * x for x in range(50)]
    assert pool.map(square, []) == []


def test_map_async_and_callbacks(pool):
    from concurrent.futures import Future

    seen = Future()
    result = pool.map_async(square, range(5), callback=seen.set_result)
    assert result.get(timeout=30) == [0, 1, 4, 9, 16]
    assert sorted(seen.result(timeout=30)) == [0, 1, 4, 9, 16]


def test_starmap(pool):
    assert pool.starmap(add, [(i, i) for i in range(10)]) == [2 * i for i in range(10)]
    assert pool.starmap_async(add, [(1, 2)]).get(timeout=30) == [3]


def test_imap(pool):
    assert list(pool.imap(square, range(20), chunksize=3)) == [x * x for x in range(20)]
    assert sorted(pool.imap_unordered(square, range(20))) == [x * x for x in range(20)]


def test_errors(pool):
    with pytest.raises(ValueError):
        pool.map(fail_on_three, range(5))
    result = pool.apply_async(fail_on_three, (3,))
    with pytest.raises(ValueError):
        result.get(timeout=30)
    assert result.ready() and not result.successful()
    assert pool.map(square, [2]) == [4]


def test_error_callback(pool):
    from concurrent.futures import Future

    seen = Future()
    pool.apply_async(fail_on_three, (3,), error_callback=seen.set_result)
    error = seen.result(timeout=30)
    assert isinstance(error, Exception) and "three" in repr(error)


def test_timeout(pool, signal):
    def hold(s):
        ray.get(s.wait.remote())

    result = pool.apply_async(hold, (signal,))
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.2)
    with pytest.raises(ValueError):
        result.successful()
    ray.get(signal.send.remote())
    assert result.get(timeout=30) is None


def test_initializer():
    with Pool(processes=1, initializer=initialise, initargs=("set",)) as p:
        assert p.map(read_initialised, [0]) == ["set"]


def test_closed_pools_refuse_work():
    p = Pool(processes=1)
    assert p.map(square, [3]) == [9]
    p.close()
    with pytest.raises(ValueError):
        p.map(square, [1])
    p.join()


def test_pools_leave_the_cpus_to_others(pool):
    with Pool(processes=4) as p:
        assert ray.get(ray.remote(num_cpus=4)(square).remote(3), timeout=30) == 9
        assert p.map(square, [2]) == [4]


def test_a_context_has_no_effect():
    with Pool(processes=1, context=multiprocessing.get_context("spawn")) as p:
        assert p.map(square, [2]) == [4]


def test_a_pool_starts_a_cluster_that_holds_it():
    code = """
import ray
from ray.util.multiprocessing import Pool
with Pool(processes=5) as p:
    print(p.map(abs, [-1, 2]), ray.cluster_resources()["CPU"])
"""
    status, out = run_driver(code)
    assert status == 0 and out.splitlines()[-1] == "[1, 2] 5.0", out


def test_join_needs_close(pool):
    p = Pool(processes=1)
    with pytest.raises(ValueError):
        p.join()
    p.terminate()
    p.join()


def test_bad_process_count():
    with pytest.raises(ValueError):
        Pool(processes=0)


def test_joblib_backend():
    from ray.util.joblib import register_ray

    register_ray()
    with joblib.parallel_backend("ray", n_jobs=2):
        out = joblib.Parallel()(joblib.delayed(square)(i) for i in range(20))
    assert out == [i * i for i in range(20)]
    with joblib.parallel_backend("ray", n_jobs=2):
        pids = set(joblib.Parallel()(joblib.delayed(pid)(i) for i in range(10)))
    assert os.getpid() not in pids


def test_joblib_backend_with_options_of_its_actors():
    from ray.util.joblib import register_ray
    from ray.util.joblib.ray_backend import RayBackend

    register_ray()
    options = {"runtime_env": {"env_vars": {"OF_THE_POOL": "yes"}}}
    with joblib.parallel_backend("ray", n_jobs=2, ray_remote_args=options):
        seen = joblib.Parallel()(joblib.delayed(os.getenv)("OF_THE_POOL") for _ in range(4))
    assert seen == ["yes"] * 4
    with joblib.parallel_backend(RayBackend(ray_remote_args={"num_cpus": 0}), n_jobs=2):
        call = joblib.Parallel(ray_remote_args=options)  # goes before the backend's
        assert call(joblib.delayed(os.getenv)("OF_THE_POOL") for _ in range(4)) == ["yes"] * 4
