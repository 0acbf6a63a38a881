"""Threads that are inside of calls, or begin some, while another one connects or shuts down."""

import json
import os
import signal

import pytest
from os_facts import command_of, eventually, stay_asleep
from programs import NEVER

PRELUDE = """
import asyncio, json, os, sys, threading
import numpy as np
import skate
import skate.util.queue
from skate.util.placement_group import placement_group

def start(function, *args):
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread

def join(threads):
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive(), thread
"""

WAITS = (
    PRELUDE
    + """
skate.init(num_cpus=2, log_to_driver=False)
"""
    + NEVER
    + """
@skate.remote(num_cpus=0)
def take(value):
    return value

never = Never.remote()
skate.get(never.ok.remote())
queue = skate.util.queue.Queue(actor_options={"num_cpus": 0})
queue.put(1)
queue.get()
unready = placement_group([{"CPU": 50}])

async def await_ref():
    await never.wait.remote()

async def iterate():
    async for ref in never.stream.remote():
        return ref

calls = {
    "get": lambda: skate.get(never.wait.remote()),
    "get-list": lambda: skate.get([never.wait.remote() for _ in range(3)]),
    "get-timeout": lambda: skate.get(never.wait.remote(), timeout=500),
    "get-dependent": lambda: skate.get(take.remote(never.wait.remote())),
    "wait": lambda: skate.wait([never.wait.remote()]),
    "wait-timeout": lambda: skate.wait([never.wait.remote()], timeout=500),
    "wait-many": lambda: skate.wait([never.wait.remote() for _ in range(100)]),
    "wait-mixed": lambda: skate.wait([never.wait.remote(), never.stream.remote()]),
    "next": lambda: next(never.stream.remote()),
    "await": lambda: asyncio.run(await_ref()),
    "async-for": lambda: asyncio.run(iterate()),
    "future": lambda: never.wait.remote().future().result(),
    "queue": queue.get,
    "group-wait": lambda: unready.wait(500),
    "group-ready": lambda: skate.get(unready.ready()),
}
outcomes = {}

def run(name):
    try:
        outcomes[name] = ["returned", repr(calls[name]())]
    except Exception as error:
        outcomes[name] = [type(error).__name__, str(error)]

threads = [start(run, name) for name in calls]
print("THREADS", *(thread.native_id for thread in threads))
sys.stdin.readline()
skate.shutdown()
join(threads)
print("OUTCOMES", json.dumps(outcomes))
print("CONNECTED", skate.is_initialized())
sys.stdin.readline()
"""
)


def test_calls_that_wait_are_told_of_the_shutdown(driver):
    d = driver(WAITS)
    tids = d.until("THREADS ").split()
    assert stay_asleep(d.pid, tids)
    d.tell()
    outcomes = json.loads(d.until("OUTCOMES "))
    assert len(outcomes) == len(tids)
    for name, (kind, text) in outcomes.items():
        assert kind == "NotConnectedError", (name, kind, text)
        assert "was shut down, by skate.shutdown() in another thread" in text, (name, text)
    # None of them has connected again.
    assert d.until("CONNECTED ") == "False"
    assert eventually(lambda: d.processes() == [d.pid])
    d.tell()
    assert d.finish()[0] == 0


def test_an_event_loop_goes_on_after_a_shutdown(driver):
    d = driver(
        PRELUDE
        + """
skate.init(num_cpus=1, log_to_driver=False)
"""
        + NEVER
        + """
async def main():
    waits = Never.remote().wait.remote().as_future()
    await asyncio.get_running_loop().run_in_executor(None, skate.shutdown)
    try:
        await waits
    except skate.exceptions.NotConnectedError:
        print("TOLD")

asyncio.run(main())
"""
    )
    d.until("TOLD")
    assert d.finish()[0] == 0


def test_many_threads_connect_at_once(driver):
    d = driver(
        PRELUDE
        + """
outcomes = []
together = threading.Barrier(6)

def run(keep):
    together.wait(40)
    try:
        outcomes.append(id(skate.init(num_cpus=1, log_to_driver=False, ignore_reinit_error=keep)))
    except RuntimeError as error:
        outcomes.append(str(error))

for keep in (False, True):
    outcomes.clear()
    join([start(run, keep) for _ in range(6)])
    made = [o for o in outcomes if isinstance(o, int)]
    refused = [o for o in outcomes if isinstance(o, str)]
    assert len(set(made)) == 1, outcomes
    assert (len(made), len(refused)) == ((6, 0) if keep else (1, 5)), outcomes
    assert all("connected already" in text for text in refused), refused
    assert skate.get(skate.put(1)) == 1
    skate.shutdown()
print("SURVIVED")
sys.stdin.readline()
"""
    )
    d.until("SURVIVED")
    assert eventually(lambda: d.processes() == [d.pid])
    d.tell()
    assert d.finish()[0] == 0


STORM = (
    PRELUDE
    + """
@skate.remote(num_cpus=0)
def same(value):
    return value

@skate.remote(num_cpus=0)
class Actor:
    def same(self, value):
        return value

async def await_ref():
    return await same.remote(1)

array = np.zeros(50_000)
calls = {{
    "put": lambda: skate.get(skate.put(array)),
    "task": lambda: skate.get(same.remote(1)),
    "nested": lambda: skate.get(same.remote([skate.put(1)])),
    "wait": lambda: skate.wait([same.remote(1), skate.put(1)], num_returns=2),
    "actor": lambda: skate.get(Actor.remote().same.remote(array)),
    "await": lambda: asyncio.run(await_ref()),
    "context": lambda: skate.get_runtime_context().get_job_id(),
    "resources": lambda: skate.available_resources(),
    "options": lambda: skate.get(same.options(num_cpus=0).remote(1)),
}}
names = {names}
counts = [0] * len(names)
stop = False

def run(index):
    while not stop:
        try:
            calls[names[index]]()
        except (skate.exceptions.SkateError, RuntimeError, ValueError):
            pass
        counts[index] += 1

threads = []
for _ in range({rounds}):
    skate.init(num_cpus=2, log_to_driver=False, ignore_reinit_error=True)
    threads = threads or [start(run, index) for index in range(len(names))]
    before = list(counts)
    while any(now < was + 3 for now, was in zip(counts, before)):
        threads[0].join(0.01)
    skate.shutdown()
stop = True
join(threads)
skate.shutdown()
print("SURVIVED", len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))
sys.stdin.readline()
"""
)


@pytest.mark.parametrize(
    "names",
    [
        ["task", "task"],
        ["put", "nested", "wait"],
        ["wait", "await", "options"],
        ["actor", "context", "resources"],
    ],
    ids="-".join,
)
def test_calls_while_another_thread_connects_and_shuts_down(driver, names):
    d = driver(STORM.format(names=names, rounds=6))
    _, descriptors = d.until("SURVIVED ").split()
    assert int(descriptors) < 20, "ended connections hold descriptors"
    assert eventually(lambda: d.processes() == [d.pid])
    d.tell()
    assert d.finish()[0] == 0


def test_a_daemon_that_stops_does_not_end_the_driver(driver):
    """As a shutdown stops it while threads still read what it sends."""
    d = driver(
        PRELUDE
        + """
skate.init(num_cpus=1, log_to_driver=False)
"""
        + NEVER
        + """
ref = Never.remote().wait.remote()
print("READY")
try:
    skate.get(ref)
except skate.exceptions.SkateError as error:
    print("TOLD", type(error).__name__)
"""
    )
    d.until("READY")
    assert stay_asleep(d.pid)
    (node,) = [p for p in d.processes() if command_of(p)[1:2] == ["node"]]
    os.kill(node, signal.SIGTERM)
    assert d.until("TOLD ") in ("NodeDiedError", "ActorDiedError")
    assert d.finish()[0] == 0


def test_daemon_threads_in_a_call_do_not_disturb_the_exit(driver):
    """CPython ends a thread that takes the GIL too late by unwinding it."""
    for _ in range(5):
        d = driver(
            """
import threading, time
import skate

skate.init(num_cpus=1, log_to_driver=False)
ref = skate.remote(lambda: time.sleep(1000)).remote()
for _ in range(8):
    threading.Thread(target=skate.get, args=(ref,), daemon=True).start()
"""
        )
        rc, out = d.finish()
        assert rc == 0, out
