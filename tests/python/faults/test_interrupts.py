"""Ctrl-C comes through at once in every call that blocks, and harms nothing."""

import os
import signal
import time

import pytest
from os_facts import eventually, stay_asleep, thread_sleeps
from programs import NEVER

PRELUDE = (
    """
import asyncio, os, sys, time
import numpy as np
import skate
import skate.util.queue

skate.init(num_cpus=2, resources={{"widget": 1}}, object_store_memory=100 * 2**20, log_to_driver=False)
"""
    + NEVER
    + """
@skate.remote(num_cpus=0, resources={{"absent": 1}})
class Unplaced:
    def ok(self):
        return 1

never = Never.remote()
skate.get(never.ok.remote())
ref = never.wait.remote()
queue = skate.util.queue.Queue(maxsize=1)
queue.put(1)
pool = skate.util.ActorPool([never])
{prepare}
print("READY")
try:
    {call}
    print("RETURNED")
except KeyboardInterrupt:
    print("INTERRUPTED", time.monotonic())
print("AFTER", skate.get(never.ok.remote(), timeout=20))
"""
)

CALLS = {
    "get": ("", "skate.get(ref)"),
    "get-list": ("", "skate.get([ref] * 1)"),
    "get-timeout": ("", "skate.get(ref, timeout=500)"),
    "wait": ("", "skate.wait([ref])"),
    "wait-many": ("refs = [never.wait.remote() for _ in range(500)]", "skate.wait(refs, num_returns=500)"),
    "stream": ("items = never.stream.remote()", "next(items)"),
    "future": ("", "ref.future().result()"),
    "await": ("", "asyncio.run(asyncio.wait_for(ref, 500))"),
    "queue-get": ("queue.get()", "queue.get()"),
    "queue-put": ("", "queue.put(2)"),
    "pool": ("pool.submit(lambda a, v: a.wait.remote(), 1)", "pool.get_next()"),
    "as-completed": ("", "list(skate.util.as_completed([ref]))"),
    "unplaced-actor": ("u = Unplaced.remote()", "skate.get(u.ok.remote())"),
    "infeasible-task": (
        "f = skate.remote(resources={'absent': 1})(lambda: 1)",
        "skate.get(f.remote())",
    ),
    "thread": (
        "import threading; t = threading.Thread(target=lambda: skate.get(ref), daemon=True); t.start()",
        "skate.get(ref)",
    ),
}


@pytest.mark.parametrize("prepare, call", CALLS.values(), ids=CALLS.keys())
def test_ctrl_c(driver, prepare, call):
    d = driver(PRELUDE.format(prepare=prepare, call=call))
    d.until("READY")
    # Into the call: the main thread sleeps in it and goes on sleeping.
    assert stay_asleep(d.pid)
    sent = time.monotonic()
    os.kill(d.pid, signal.SIGINT)
    interrupted = float(d.until("INTERRUPTED "))
    assert interrupted - sent < 1
    rc, out = d.finish()
    assert rc == 0 and "AFTER ok" in out, out


def test_ctrl_c_to_the_whole_group_ends_no_worker(driver):
    """A terminal sends SIGINT to the foreground group; only the driver is meant."""
    d = driver(
        PRELUDE.format(prepare="kept = Never.remote(); skate.get(kept.ok.remote())", call="skate.get(ref)")
        + "print('KEPT', skate.get(kept.ok.remote(), timeout=20))\n"
    )
    d.until("READY")
    assert eventually(lambda: thread_sleeps(d.pid))
    os.killpg(d.pid, signal.SIGINT)
    rc, out = d.finish()
    assert rc == 0 and "INTERRUPTED" in out and "KEPT ok" in out, out


def test_an_uncaught_interrupt_ends_the_driver(driver):
    d = driver(PRELUDE.format(prepare="", call="pass") + "print('NOW')\nskate.get(ref)\n")
    d.until("NOW")
    assert eventually(lambda: thread_sleeps(d.pid))
    time.sleep(0.2)
    os.kill(d.pid, signal.SIGINT)
    rc, out = d.finish(timeout_s=20)
    assert rc in (130, -signal.SIGINT), out
    assert "KeyboardInterrupt" in out
    assert eventually(lambda: not d.processes(), timeout_s=2)
