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
