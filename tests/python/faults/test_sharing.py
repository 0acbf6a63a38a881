"""Drivers that sleep, hold the GIL, fork, run many threads, or share the machine with another."""

import os
import signal

import pytest
from os_facts import command_of, stat_of

PRELUDE = """
import ctypes, os, sys, threading, time
import numpy as np
import skate

skate.init(num_cpus=4, log_to_driver=False)

@skate.remote
def borrow(refs):
    "Reads what the driver owns, and says when it had it."
    values = skate.get(refs)
    return [v if isinstance(v, str) else int(v.sum()) for v in values], time.monotonic()

@skate.remote
def store(path, *results):
    with open(path + ".part", "w") as f:
        f.write(repr(results))
    os.rename(path + ".part", path)
"""

HOLDS = {
    "time.sleep": "time.sleep(6)",
    "gil-held-in-c": "ctypes.PyDLL(None).usleep(6_000_000)",
    "pure-python-loop": "deadline = time.monotonic() + 6\nwhile time.monotonic() < deadline: pass",
    "joins-a-thread": "t = threading.Thread(target=time.sleep, args=(6,)); t.start(); t.join()",
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
def test_others_borrow_from_a_busy_driver(driver, tmp_path, hold):
    path = str(tmp_path / "borrowed")
    d = driver(
        PRELUDE
        + f"""
skate.get(borrow.remote([skate.put("warm")]))
small, large = skate.put("small"), skate.put(np.ones(500_000, dtype=int))
done = store.remote({path!r}, borrow.remote([small, large]))
start = time.monotonic()
{hold}
end = time.monotonic()
print("EXISTS", os.path.exists({path!r}))
skate.get(done)
(values, at), = eval(open({path!r}).read())
print("VALUES", values, "DURING", start - 1 < at < end - 1)
"""
    )
    rc, out = d.finish()
    assert rc == 0, out
    assert "EXISTS True" in out and "VALUES ['small', 500000] DURING True" in out, out


def test_results_are_taken_in_while_the_driver_holds_the_gil(driver, tmp_path):
    """A chain of tasks needs its owner between any two links."""
    path = str(tmp_path / "chain")
    d = driver(
        PRELUDE
        + f"""
step = skate.remote(lambda x: x + 1)
ref = step.remote(0)
for _ in range(50):
    ref = step.remote(ref)
done = store.remote({path!r}, ref)
ctypes.PyDLL(None).usleep(6_000_000)
print("EXISTS", os.path.exists({path!r}))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "EXISTS True" in out, out


def test_eight_threads_submit_and_get(driver):
    d = driver(
        PRELUDE
        + """
identity = skate.remote(lambda x: x)

@skate.remote(num_cpus=0)
class Echo:
    def echo(self, x):
        return x

echo = Echo.remote()
failures, total = [], [0] * 8

def work(n):
    try:
        for i in range(200):
            refs = [identity.remote((n, i, k)) for k in range(10)] + [echo.echo.remote((n, i))]
            ready, rest = skate.wait(refs, num_returns=3)
            assert len(ready) == 3 and len(rest) == 8
            assert skate.get(refs) == [(n, i, k) for k in range(10)] + [(n, i)]
            assert skate.get(skate.put([n, i])) == [n, i]
            total[n] += 1
    except BaseException as e:
        failures.append(repr(e))

threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print("FAILURES", failures, "TOTAL", sum(total))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "FAILURES [] TOTAL 1600" in out, out


def test_threads_that_end_in_a_call_do_not_hold_up_the_exit(driver):
    d = driver(
        PRELUDE
        + """
never = skate.remote(lambda: time.sleep(600)).remote()
threading.Thread(target=lambda: skate.get(never), daemon=True).start()
print("LEAVING")
"""
    )
    d.until("LEAVING")
    rc, out = d.finish(timeout_s=15)
    assert rc == 0, out


FORK = """
array = skate.get(skate.put(np.arange(500_000)))
ref = skate.put("parent's")
"""


def test_fork_after_init_may_read_arrays(driver):
    d = driver(
        PRELUDE
        + FORK
        + """
import multiprocessing
def total(i):
    return int(array.sum())
with multiprocessing.get_context("fork").Pool(3) as pool:
    print("CHILDREN", set(pool.map(total, range(6))) == {int(np.arange(500_000).sum())})
print("PARENT", skate.get(ref), skate.get(skate.remote(lambda: 1).remote()))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "CHILDREN True" in out and "PARENT parent's 1" in out, out


@pytest.mark.parametrize(
    "call",
    [
        "skate.get(ref)",
        "skate.put(1)",
        "skate.wait([ref])",
        "skate.remote(lambda: 1).remote()",
        "skate.cluster_resources()",
        "skate.cancel(ref)",
        "skate.get_actor('x')",
        "skate.nodes()",
        "skate.init()",
        "skate.shutdown(); skate.init(ignore_reinit_error=True)",
    ],
)
def test_a_call_in_a_forked_child_raises(driver, call):
    d = driver(
        PRELUDE
        + FORK
        + f"""
pid = os.fork()
if pid == 0:
    try:
        if skate.is_initialized():
            os.write(1, b"CHILD is initialized\\n")
        {call}
        os.write(1, b"CHILD returned\\n")
    except RuntimeError as e:
        os.write(1, b"CHILD " + str(e).encode().replace(b"\\n", b" ") + b"\\n")
    except BaseException as e:
        os.write(1, b"CHILD other " + repr(e).encode() + b"\\n")
    os._exit(0)
os.waitpid(pid, 0)
print("PARENT", skate.get(ref), skate.get(skate.remote(lambda: 1).remote()))
"""
    )
    said = d.until("CHILD ")
    rc, out = d.finish()
    assert rc == 0 and "PARENT parent's 1" in out, out
    assert "fork" in said and "spawn" in said, said


def test_a_forked_child_that_exits_normally_disturbs_nothing(driver):
    """Exit handlers and destructors of the child must not take the parent's cluster down."""
    d = driver(
        PRELUDE
        + FORK
        + """
pid = os.fork()
if pid == 0:
    del ref, array
    sys.exit(0)
print("STATUS", os.waitpid(pid, 0)[1])
print("PARENT", skate.get(ref), int(array.sum()), skate.get(skate.remote(lambda: 1).remote()))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "STATUS 0" in out and "PARENT parent's 124999750000 1" in out, out


def test_a_childs_pins_outlive_the_parents(driver):
    d = driver(
        PRELUDE
        + """
import gc
array = skate.get(skate.put(np.full(500_000, 7)))
read_end, write_end = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(read_end, 1)
    os._exit(0 if (array == 7).all() else 9)
del array
gc.collect()
churn = [skate.put(np.zeros(500_000)) for _ in range(50)]
del churn
churn = [skate.put(np.zeros(500_000)) for _ in range(50)]
os.write(write_end, b"x")
print("STATUS", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "STATUS 0" in out, out


def test_children_read_on_while_the_parent_overwrites_its_store(driver):
    """Each array is dropped right after a fork; what its child and grandchild read stays as it was."""
    d = driver(
        PRELUDE
        + """
import gc, multiprocessing
skate.shutdown()
skate.init(num_cpus=1, object_store_memory=80 * 2**20, log_to_driver=False)
context = multiprocessing.get_context("fork")
go = context.Event()

def check(array, i, depth):
    if depth:
        child = context.Process(target=check, args=(array, i, depth - 1))
        child.start()
    go.wait()
    good = bool((array == i).all())
    if depth:
        child.join()
        good = good and child.exitcode == 0
    os._exit(0 if good else 9)

children = []
for i in range(12):
    array = skate.get(skate.put(np.full(250_000, i)))  # 2 MB
    children.append(context.Process(target=check, args=(array, i, 1)))
    children[-1].start()
    children[-1]._args = ()  # the parent keeps nothing of it
    del array
    gc.collect()
for i in range(400):
    del_me = skate.put(np.full(250_000, 1000 + i))
go.set()
for child in children:
    child.join()
print("CODES", [child.exitcode for child in children] == [0] * 12)
# Their memory is to be had again: all of the store at once.
del del_me
gc.collect()
whole = [skate.put(np.full(250_000, i)) for i in range(30)]
print("AGAIN", all(bool((skate.get(ref) == i).all()) for i, ref in enumerate(whole)))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "CODES True" in out and "AGAIN True" in out, out


def test_a_child_that_was_forked_between_two_connections(driver):
    """Its parent was connected before, and is no more: it makes a connection of its own."""
    d = driver(
        PRELUDE
        + """
old = skate.put("old")
skate.shutdown()
pid = os.fork()
if pid == 0:
    skate.init(num_cpus=1, log_to_driver=False)
    array = skate.get(skate.put(np.arange(500_000)))
    os.write(1, b"CHILD %d\\n" % skate.get(skate.remote(lambda x: int(x.sum())).remote(array)))
    grandchild = os.fork()
    if grandchild == 0:
        try:
            skate.put(1)
        except RuntimeError as e:
            os.write(1, b"GRANDCHILD " + str(e).encode() + b"\\n")
        os._exit(0)
    os.waitpid(grandchild, 0)
    skate.shutdown()
    os._exit(7)
print("STATUS", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
skate.init(num_cpus=1, log_to_driver=False)
print("PARENT", skate.get(skate.remote(lambda: 1).remote()))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "CHILD 124999750000" in out and "STATUS 7" in out and "PARENT 1" in out, out
    assert "GRANDCHILD this process was forked" in out, out


def test_two_clusters_at_once(driver):
    code = (
        PRELUDE
        + """
print("SESSION", skate.get_runtime_context().get_session_name())
refs = [skate.put(np.full(100_000, os.getpid())) for _ in range(5)]
print("REF", skate.cloudpickle.dumps(refs[0]).hex())
sys.stdin.readline()
print("OWN", all((skate.get(r) == os.getpid()).all() for r in refs))
print("RESULT", skate.get(skate.remote(lambda: 3).remote()))
"""
    )
    first, second = driver(code), driver(code)
    assert first.until("SESSION ") != second.until("SESSION ")
    first.until("REF ")
    second.until("REF ")
    first.tell()
    rc, out = first.finish()
    assert rc == 0 and "OWN True" in out and "RESULT 3" in out, out
    # The end of the one is nothing to the other.
    second.tell()
    rc, out = second.finish()
    assert rc == 0 and "OWN True" in out and "RESULT 3" in out, out


def test_a_killed_cluster_is_nothing_to_its_neighbour(driver):
    code = (
        PRELUDE
        + "print('READY')\nsys.stdin.readline()\n"
        + "print('RESULT', skate.get(skate.remote(lambda: 3).remote()))\n"
    )
    first, second = driver(code), driver(code)
    first.until("READY")
    second.until("READY")
    first.kill()
    second.tell()
    rc, out = second.finish()
    assert rc == 0 and "RESULT 3" in out, out


def test_a_ref_from_another_cluster(driver):
    first = driver(
        PRELUDE
        + "ref = skate.put(1)\nprint('REF', skate.cloudpickle.dumps(ref).hex())\nsys.stdin.readline()\n"
    )
    data = first.until("REF ")
    second = driver(
        PRELUDE
        + f"""
for attempt in ("load", "get", "pass"):
    start = time.monotonic()
    try:
        ref = skate.cloudpickle.loads(bytes.fromhex({data!r}))
        if attempt == "get":
            skate.get(ref)
        elif attempt == "pass":
            skate.get(skate.remote(lambda x: x).remote(ref))
        print("NO-ERROR", attempt)
    except Exception as e:
        print("ERROR", attempt, type(e).__name__, "|", str(e).replace(chr(10), " "))
    assert time.monotonic() - start < 10
print("AFTER", skate.get(skate.remote(lambda: 3).remote()))
"""
    )
    rc, out = second.finish()
    assert rc == 0 and "AFTER 3" in out, out
    assert "NO-ERROR get" not in out and "NO-ERROR pass" not in out, out
    errors = [x for x in out.splitlines() if x.startswith("ERROR")]
    assert errors and all("cluster" in x for x in errors), out


def test_the_fork_servers_death_harms_no_worker(driver):
    d = driver(
        PRELUDE
        + """
@skate.remote(num_cpus=0)
class A:
    def ok(self):
        return os.getpid()

a = A.remote()
before = skate.get(a.ok.remote())
print("READY")
sys.stdin.readline()
print("SAME", skate.get(a.ok.remote()) == before)
b = [A.remote() for _ in range(3)]
print("NEW", len(set(skate.get([x.ok.remote() for x in b], timeout=30))))
"""
    )
    d.until("READY")
    servers = [p for p in d.processes() if any("fork_server" in word for word in command_of(p))]
    assert servers
    # Workers are forked from it and may have the same command line; the server is the eldest.
    os.kill(min(servers, key=lambda p: int(stat_of(p)[4])), signal.SIGKILL)
    d.tell()
    rc, out = d.finish()
    assert rc == 0 and "SAME True" in out and "NEW 3" in out, out


BESIDE_A_LONG_TASK = """
import os, threading
import skate

skate.init(num_cpus=2, log_to_driver=False)

@skate.remote
def f(x=1):
    return x

@skate.remote
def other(x=1):
    return x

@skate.remote
def until_written(path):
    with open(path) as f:
        return f.read()

@skate.remote(num_cpus=1)
class A:
    def m(self):
        return 1

os.mkfifo(FIFO)
long = until_written.remote(FIFO)
skate.get(f.remote())
stop = threading.Event()

def steady():
    while not stop.is_set():
        skate.get(f.remote())

caller = threading.Thread(target=steady)
caller.start()
"""


def test_nobody_waits_for_a_long_task_while_another_cpu_is_shared(driver, tmp_path):
    """A steady caller has the second CPU. The long task ends only when it is told to."""
    fifo = str(tmp_path / "fifo")
    d = driver(
        f"FIFO = {fifo!r}"
        + BESIDE_A_LONG_TASK
        + """
print("OTHER", [skate.get(other.remote(i), timeout=30) for i in range(3)])
print("PIPELINE", [skate.get(other.remote(f.remote(i)), timeout=30) for i in range(20)] == list(range(20)))
actor = A.remote()
print("ACTOR", skate.get(actor.m.remote(), timeout=30))
del actor
stop.set()
caller.join()
print("RUNS", skate.wait([long], timeout=0) == ([], [long]))
with open(FIFO, "w") as f:
    f.write("end")
print("LONG", skate.get(long, timeout=30))
"""
    )
    rc, out = d.finish(timeout_s=120)
    assert rc == 0, out
    for said in ("OTHER [0, 1, 2]", "PIPELINE True", "ACTOR 1", "RUNS True", "LONG end"):
        assert said in out, out


def test_large_tasks_that_a_long_one_holds_back_do_not_stop_the_others(driver, tmp_path):
    """Two of them, so that room is kept for each; they are served once the long task has ended."""
    fifo = str(tmp_path / "fifo")
    d = driver(
        f"""
import os, time
import skate
skate.init(num_cpus=3, log_to_driver=False)
FIFO = {fifo!r}
"""
        + """
def until_written(path):
    with open(path) as f:
        return f.read()

def small(i):
    def work():
        time.sleep(0.05)
        return i
    return skate.remote(work)   # a shape of its own

os.mkfifo(FIFO)
long = skate.remote(until_written).remote(FIFO)
skate.get(small(0).remote())
large = [skate.remote(lambda: 3).options(num_cpus=3).remote(), skate.remote(lambda: 2).options(num_cpus=2.5).remote()]
print("SMALL", [skate.get(small(i).remote(), timeout=30) for i in range(40)] == list(range(40)))
print("WAIT", skate.wait(large, num_returns=2, timeout=0) == ([], large))
with open(FIFO, "w") as f:
    f.write("end")
print("LONG", skate.get(long, timeout=30))
print("LARGE", skate.get(large, timeout=30))
"""
    )
    rc, out = d.finish(timeout_s=120)
    assert rc == 0, out
    for said in ("SMALL True", "WAIT True", "LONG end", "LARGE [3, 2]"):
        assert said in out, out


def test_what_an_idle_lease_holds_is_available(driver):
    d = driver(
        PRELUDE
        + """
f = skate.remote(lambda: 1)
skate.get([f.remote() for _ in range(20)])
print("FREE", skate.available_resources()["CPU"])
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "FREE 4.0" in out, out


WATCH = """
def watch():
    seen, until = set(), time.monotonic() + 1.5  # in which a worker starts, and idle ones are given back
    while time.monotonic() < until:
        seen.add(skate.available_resources().get("CPU"))
        time.sleep(0.02)
    return seen
"""


def test_after_a_workers_death_all_is_available(driver):
    d = driver(
        PRELUDE
        + WATCH
        + """
@skate.remote(max_retries=0)
def die():
    os._exit(1)
for _ in range(3):
    try:
        skate.get(die.remote())
    except skate.exceptions.WorkerCrashedError:
        pass
print("FREE", watch())
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "FREE {4.0}" in out, out


def test_after_a_nested_get_no_more_is_available_than_there_is(driver):
    d = driver(
        PRELUDE
        + WATCH
        + """
child = skate.remote(lambda: time.sleep(0.3))
parent = skate.remote(lambda: skate.get([child.remote() for _ in range(4)]) and None)
skate.get(parent.remote())
print("FREE", watch())
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "FREE {4.0}" in out, out
