"""Errors name the cause and the next step."""

import ctypes
import os
import signal
import threading
import time

import pytest
import skate
from os_facts import command_of, eventually
from skate.exceptions import ActorDiedError, SkateError, WorkerCrashedError

CLUSTER = {"num_cpus": 4, "num_gpus": 1, "resources": {"widget": 1}}
pytestmark = pytest.mark.usefixtures("cluster")


@skate.remote
def identity(x):
    return x


@pytest.mark.parametrize(
    "die, words",
    [
        (lambda: os._exit(17), ["17"]),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), ["SIGKILL"]),
        (lambda: ctypes.string_at(0), ["SIGSEGV"]),
        (lambda: os.abort(), ["SIGABRT"]),
    ],
    ids=["exit", "kill", "segfault", "abort"],
)
def test_worker_death_names_its_cause_and_shows_the_log(die, words):
    def talks_and_dies():
        print("a line before the end", flush=True)
        die()

    with pytest.raises(WorkerCrashedError) as info:
        skate.get(skate.remote(max_retries=0)(talks_and_dies).remote())
    text = str(info.value)
    for word in [*words, "talks_and_dies", "a line before the end"]:
        assert word in text, text
    assert skate.get(identity.remote(1)) == 1


def test_a_lone_task_is_retried(tmp_path):
    """The worker that died held the only lease: the next run waits for a new one, and gets it."""
    runs = tmp_path / "runs"

    @skate.remote(max_retries=2)
    def dies_alone():
        with open(runs, "a") as f:
            f.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError):
        skate.get(dies_alone.remote(), timeout=30)
    assert runs.read_text() == "xxx"


def test_actor_death_names_its_cause():
    @skate.remote(num_cpus=0)
    class Doomed:
        def die(self):
            print("the actor's last line", flush=True)
            os._exit(9)

    a = Doomed.remote()
    with pytest.raises(SkateError):
        skate.get(a.die.remote())
    with pytest.raises(ActorDiedError) as info:
        skate.get(a.die.remote())
    for word in ("Doomed", "9", "the actor's last line"):
        assert word in str(info.value)


def test_unpicklable_argument_names_the_culprit():
    class Holder:
        def __init__(self):
            self.guard = threading.Lock()

    with pytest.raises(TypeError) as info:
        identity.remote(Holder())
    assert "lock" in str(info.value) and "identity" in str(info.value)
    assert "inspect_serializability" in str(info.value)


def test_unpicklable_result_names_the_function():
    def gives_a_lock():
        return threading.Lock()

    with pytest.raises(TypeError) as info:
        skate.get(skate.remote(max_retries=0)(gives_a_lock).remote())
    assert "gives_a_lock" in str(info.value) and "lock" in str(info.value)


def test_unknown_named_actor_names_the_namespace():
    with pytest.raises(ValueError) as info:
        skate.get_actor("nobody", namespace="nowhere")
    assert "nobody" in str(info.value) and "nowhere" in str(info.value)


def test_no_cluster_to_join_names_the_ways_out(driver):
    code = "import skate\ntry:\n    skate.init(address='auto')\nexcept ConnectionError as e:\n    print('SAID', e)\n"
    rc, out = driver(code).finish()
    assert rc == 0 and "SAID could not find any running" in out, out
    assert "address" in out and "SKATE_ADDRESS" in out, out


def test_get_timeout_names_what_was_late():
    @skate.remote
    def late():
        signal.pause()

    ref = late.remote()
    with pytest.raises(skate.exceptions.GetTimeoutError) as info:
        skate.get(ref, timeout=0.2)
    assert ref.hex() in str(info.value) or "late" in str(info.value)
    skate.cancel(ref, force=True)


def test_an_argument_that_comes_after_the_cancel(tmp_path):
    path = str(tmp_path / "go")

    @skate.remote
    def late(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return "late"

    argument = late.remote(path)
    refs = [identity.remote(argument) for _ in range(20)]
    for ref in refs:
        skate.cancel(ref)
    for ref in refs:
        with pytest.raises(skate.exceptions.TaskCancelledError):
            skate.get(ref, timeout=10)
    open(path, "w").close()
    assert skate.get(argument, timeout=10) == "late"
    assert skate.get(identity.remote(argument), timeout=10) == "late"


@pytest.mark.parametrize(
    "options, what", [({"resources": {"widget": 1}}, "widget"), ({"num_gpus": 1}, "GPU")]
)
def test_a_wait_for_what_one_holds_itself_is_reported(driver, options, what):
    """What cannot be lent makes a cycle; the report names it, with the tasks on it."""
    d = driver(
        f"""
import skate
skate.init(num_cpus=2, num_gpus=1, resources={{"widget": 1}})

@skate.remote(num_cpus=0, **{options!r})
def inner():
    return 1

@skate.remote(num_cpus=0, **{options!r})
def outer():
    return skate.get(inner.remote())

try:
    print("RESULT", skate.get(outer.remote(), timeout=25))
except Exception as e:
    print("ERROR", type(e).__name__, str(e))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "RESULT" not in out, out
    for word in ("inner", "outer", what):
        assert word in out, out
    assert "cycle" in out or "waits for" in out, out


def test_init_refuses_what_one_machine_has_not(driver):
    d = driver(
        """
import skate
for argument in ({"local_mode": True}, {"include_dashboard": True}, {"cgroup_path": "/x"}):
    try:
        skate.init(**argument)
        print("ACCEPTED", argument)
    except Exception as e:
        (name,) = argument
        print("REFUSED", name in str(e))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and out.count("REFUSED True") == 3 and "ACCEPTED" not in out, out


def test_losing_the_node_daemon_is_told_at_once(driver):
    d = driver(
        """
import os, skate, sys, time
skate.init(num_cpus=2, log_to_driver=False)
ref = skate.remote(lambda: time.sleep(600)).remote()
skate.get(skate.remote(lambda: 1).remote())
print("READY")
sys.stdin.readline()
start = time.monotonic()
try:
    skate.get(ref)
except skate.exceptions.SkateError as e:
    print("ERROR", type(e).__name__, time.monotonic() - start < 10)
"""
    )
    d.until("READY")
    daemons = [p for p in d.processes() if command_of(p)[1:2] == ["node"]]
    assert len(daemons) == 1
    os.kill(daemons[0], signal.SIGKILL)
    d.tell()
    rc, out = d.finish()
    assert "ERROR" in out and "True" in out, out
    assert eventually(lambda: not d.processes(), timeout_s=5)


def test_what_ends_with_its_placement_group_names_it(tmp_path):
    from skate.util import placement_group, remove_placement_group
    from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

    started = tmp_path / "started"

    @skate.remote(max_retries=0, resources={"widget": 1}, num_cpus=0)
    def hold():
        started.touch()
        threading.Event().wait()

    group = placement_group([{"widget": 1}])
    running, waiting = [hold.options(scheduling_strategy=InGroup(group, 0)).remote() for _ in range(2)]
    assert eventually(started.exists)
    remove_placement_group(group)
    with pytest.raises(WorkerCrashedError, match=f"placement group {group.id.hex()} was removed"):
        skate.get(running, timeout=30)
    with pytest.raises(skate.exceptions.TaskPlacementGroupRemoved, match=group.id.hex()):
        skate.get(waiting, timeout=30)


def leave(code):
    import sys

    sys.exit(code)


@pytest.mark.parametrize("code, words", [(0, ["code 0"]), (5, ["code 5"]), ("so be it", ["1", "so be it"])])
def test_sys_exit_names_the_code(code, words):
    @skate.remote(num_cpus=0)
    class Leaver:
        leave = staticmethod(leave)

    a = Leaver.remote()
    with pytest.raises(WorkerCrashedError) as of_task:
        skate.get(skate.remote(max_retries=0)(leave).remote(code), timeout=30)
    with pytest.raises(ActorDiedError) as of_actor:
        skate.get(a.leave.remote(code), timeout=30)
    for info, who in ((of_task, "task"), (of_actor, "actor")):
        text = str(info.value)
        assert "max_calls" not in text and "unknown" not in text, text
        for word in [f"the {who} called sys.exit", *words]:
            assert word in text, text


def test_sys_exit_in_a_constructor_names_the_code():
    @skate.remote(num_cpus=0)
    class Leaver:
        def __init__(self):
            leave(7)

        def call(self):
            pass

    with pytest.raises(ActorDiedError, match="SystemExit: 7"):
        skate.get(Leaver.remote().call.remote(), timeout=30)


@pytest.mark.parametrize("groups", [None, {"io": 1}], ids=["plain", "group"])
def test_a_thread_of_an_actor_that_leaves_names_the_code(groups):
    @skate.remote(num_cpus=0, max_concurrency=2, concurrency_groups=groups)
    class Leaver:
        def leave(self):
            leave(6)

    method = Leaver.remote().leave
    if groups:
        method = method.options(concurrency_group="io")
    with pytest.raises(ActorDiedError, match="exit code 6"):
        skate.get(method.remote(), timeout=30)


@skate.remote(num_cpus=0)
class Ender:
    def ready(self):
        return True

    def end(self):
        skate.actor.exit_actor()


@pytest.mark.parametrize(
    "end",
    [
        lambda a: skate.kill(a, no_restart=True),
        lambda a: a.end.remote(),
        lambda a: a.__ray_terminate__.remote(),
    ],
    ids=["kill", "exit_actor", "terminate"],
)
def test_a_wanted_end_of_an_actor_comes_without_advice(end):
    a = Ender.remote()
    skate.get(a.ready.remote())
    end(a)
    with pytest.raises(ActorDiedError) as info:
        skate.get(a.ready.remote(), timeout=30)
    assert "max_restarts" not in str(info.value)


def test_retries_that_were_used_up_are_counted():
    with pytest.raises(WorkerCrashedError) as info:
        skate.get(skate.remote(max_retries=2)(lambda: os._exit(3)).remote(), timeout=50)
    assert "retried 2 times" in str(info.value) and "max_retries" not in str(info.value)


def test_a_value_larger_than_the_store_names_both_sizes(driver):
    d = driver(
        """
import numpy, skate
skate.init(num_cpus=1, object_store_memory=100 << 20, log_to_driver=False)
value = numpy.zeros(200 << 20, numpy.uint8)
try:
    skate.put(value)
except skate.exceptions.ObjectStoreFullError as e:
    print("ERROR", str(e).replace("\\n", " "))
print("SMALL", skate.get(skate.put(value[:1 << 20])).size)
"""
    )
    rc, out = d.finish()
    assert rc == 0 and f"SMALL {1 << 20}" in out, out
    for word in ("bytes", str(100 << 20), "object_store_memory", "spilled"):
        assert word in out, out
    assert "in use" not in out, out


@pytest.mark.parametrize("groups", [None, {"io": 1}], ids=["plain", "group"])
def test_a_queued_actor_call_that_is_cancelled_is_answered_at_once(tmp_path, groups):
    """While the call before it still runs: it ends only after the error was seen."""
    begun, go, ran = tmp_path / "begun", tmp_path / "go", tmp_path / "ran"

    @skate.remote(num_cpus=0, concurrency_groups=groups)
    class Busy:
        def work(self):
            begun.touch()
            while not go.exists():
                time.sleep(0.01)
            return "done"

        def touch(self):
            ran.touch()

    a = Busy.remote()
    group = {"concurrency_group": "io"} if groups else {}
    first, queued = (m.options(**group).remote() for m in (a.work, a.touch))
    streamed = a.touch.options(num_returns="streaming", **group).remote()
    assert eventually(begun.exists)
    for ref in (queued, streamed):
        skate.cancel(ref)
    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(queued, timeout=30)
    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(next(streamed), timeout=30)
    assert skate.wait([first], timeout=0)[0] == []
    go.touch()
    assert skate.get(first, timeout=30) == "done" and not ran.exists()


def test_a_cancelled_actor_call_that_waits_for_an_argument_holds_nothing_up(tmp_path):
    """What was called after it goes ahead, and the argument may still come."""
    go = tmp_path / "go"

    @skate.remote
    def late():
        while not go.exists():
            time.sleep(0.01)
        return "late"

    @skate.remote(num_cpus=0)
    class Echo:
        def echo(self, x):
            return x

    a, argument = Echo.remote(), late.remote()
    waits, later = a.echo.remote(argument), a.echo.remote(2)
    skate.cancel(waits)
    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(waits, timeout=30)
    assert skate.get(later, timeout=30) == 2
    go.touch()
    assert skate.get(a.echo.remote(argument), timeout=30) == "late"


@pytest.mark.parametrize(
    "call", [skate.get, lambda ref, **given: skate.wait([ref], **given)], ids=["get", "wait"]
)
@pytest.mark.parametrize("timeout", ["x", [1]])
def test_a_timeout_that_is_no_number_is_named(call, timeout):
    with pytest.raises(TypeError) as info:
        call(identity.remote(1), timeout=timeout)
    for word in ("timeout", "number of seconds", repr(timeout)):
        assert word in str(info.value)


@pytest.mark.parametrize("count", [1.0, "1", None])
def test_a_number_of_returns_that_is_no_whole_number_is_named(count):
    with pytest.raises(TypeError) as info:
        skate.wait([identity.remote(1)], num_returns=count)
    for word in ("num_returns", "whole number", repr(count)):
        assert word in str(info.value)


def test_numbers_of_returns_from_other_libraries():
    numpy = pytest.importorskip("numpy")
    refs = [identity.remote(i) for i in range(3)]
    ready, others = skate.wait(refs, num_returns=numpy.int64(2), timeout=numpy.float32(30))
    assert (len(ready), len(others)) == (2, 1)


@skate.remote
class Named:
    pass


@pytest.mark.parametrize(
    "use, what",
    [
        (lambda text: Named.options(name=text), "'name'"),
        (lambda text: Named.options(namespace=text), "'namespace'"),
        (lambda text: identity.options(name=text), "'name'"),
        (skate.get_actor, "the name of an actor"),
        (lambda text: skate.get_actor("a", namespace=text), "the namespace"),
    ],
    ids=["actor", "actor's namespace", "task", "get_actor", "get_actor's namespace"],
)
def test_text_that_cannot_be_encoded_is_named(use, what):
    with pytest.raises(ValueError) as info:
        use("ab\udcff")
    assert type(info.value) is ValueError
    for word in (what, "'ab\\udcff'", "index 2", "UTF-8"):
        assert word in str(info.value), str(info.value)


def test_init_in_a_directory_that_is_gone_names_it(driver, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    d = driver(
        f"""
import os, skate
os.chdir({str(gone)!r})
os.rmdir({str(gone)!r})
try:
    skate.init(num_cpus=1)
except FileNotFoundError as e:
    print("SAID", e)
os.chdir("/")
skate.init(num_cpus=1, log_to_driver=False)
print("THEN", skate.get(skate.remote(lambda: os.getcwd()).remote()))
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "THEN /" in out, out
    for word in ("SAID", str(gone), "os.chdir", "deleted"):
        assert word in out, out
