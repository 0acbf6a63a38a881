"""Lines that need a process, or a cluster, of their own. Each returns a dictionary of figures."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import processes
from lines import elsewhere, need


@dataclass(frozen=True)
class OneShot:
    name: str
    title: str
    unit: str
    measure: Callable[[Any], dict]


ONE_SHOTS: dict[str, OneShot] = {}


def one_shot(title, unit):
    def register(measure):
        name = measure.__name__
        ONE_SHOTS[name] = OneShot(name, title, unit, measure)
        return measure

    return register


@one_shot("import", "s")
def import_time(options):
    """Seconds of the import statement in a fresh interpreter: best page cache, median of five."""
    code = f"import time; t = time.perf_counter(); import {options.system}; print(time.perf_counter() - t)"
    samples = []
    for i in range(6):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        if i:  # the first reads the files
            samples.append(float(out.stdout.split()[-1]))
    return {"value": median(samples), "windows": samples}


@one_shot("init() to first result", "s")
def init_first_result(options):
    api = options.load()

    @api.remote
    def pid():
        return os.getpid()

    start = time.perf_counter()
    api.init()
    reply = api.get(pid.remote())
    took = time.perf_counter() - start
    elsewhere([reply])
    api.shutdown()
    return {"value": took}


@one_shot("100 actors created and called", "s")
def actors_100(options):
    api = options.load()
    api.init()

    @api.remote(num_cpus=0)
    class Actor:
        def pid(self):
            return os.getpid()

    first = Actor.remote()  # the class goes out, the cluster is up
    api.get(first.pid.remote())
    ledger = processes.Ledger()
    cpu = ledger.total_s()
    start = time.perf_counter()
    actors = [Actor.remote() for _ in range(100)]
    pids = api.get([a.pid.remote() for a in actors])
    took = time.perf_counter() - start
    cpu = ledger.total_s() - cpu
    elsewhere(pids)
    need(len(set(pids)) == 100, "every actor has a process")
    api.shutdown()
    return {"value": took, "cpu_s": cpu}


@one_shot("tasks queued, then drained", "1/s")
def queued(options):
    """Every CPU is held while `options.queued` no-op tasks are submitted; then all are got in order.

    The holders block in the kernel on a file lock: a task that waits through the API would lend its
    CPU out.
    """
    api = options.load()
    api.init()
    n = options.queued
    with tempfile.TemporaryDirectory() as folder:
        lock_path, begun_path = os.path.join(folder, "lock"), os.path.join(folder, "begun")
        lock = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)

        @api.remote
        def hold(i):
            open(f"{begun_path}{i}", "w").close()
            with open(lock_path) as f:
                fcntl.flock(f, fcntl.LOCK_SH)

        @api.remote
        def nothing(want_pid=False):
            return os.getpid() if want_pid else None

        cpus = int(api.cluster_resources()["CPU"])
        elsewhere(api.get([nothing.remote(True) for _ in range(4)]))
        holders = [hold.remote(i) for i in range(cpus)]
        deadline = time.monotonic() + 60
        while not all(os.path.exists(f"{begun_path}{i}") for i in range(cpus)):
            need(time.monotonic() < deadline, "every CPU is held")
            time.sleep(0.01)
        driver = os.getpid()
        ledger = processes.Ledger()
        before, cpu = processes.memory(), ledger.total_s()
        start = time.perf_counter()
        refs = [nothing.remote() for _ in range(n)]
        submitted = time.perf_counter()
        full = processes.memory()
        release = time.perf_counter()
        fcntl.flock(lock, fcntl.LOCK_UN)
        refs.reverse()
        for _ in range(n):
            need(api.get(refs.pop()) is None, "reply")
        end = time.perf_counter()
        cpu = ledger.total_s() - cpu
        api.get(holders)
        elsewhere(api.get([nothing.remote(True) for _ in range(4)]))
        os.close(lock)
    grown = full.private + full.shared - before.private - before.shared
    took = (submitted - start) + (end - release)
    api.shutdown()
    return {
        "value": n / took,
        "ops": n,
        "cpu_s": cpu,
        "submit_per_s": n / (submitted - start),
        "drain_per_s": n / (end - release),
        "bytes_per_queued_task": grown / n,
        "driver_peak_rss": processes.peak_rss(driver),
    }


@one_shot("idle cluster: memory", "MiB")
def idle(options):
    """Proportional memory and processor time of everything but the driver, at rest."""
    api = options.load()
    api.init()

    @api.remote
    def pid():
        return os.getpid()

    elsewhere([api.get(pid.remote())])
    time.sleep(options.settle_s)
    driver = {os.getpid()}
    ledger = processes.Ledger(driver)
    cpu, start = ledger.total_s(), time.perf_counter()
    time.sleep(options.idle_s)
    cpu, took = ledger.total_s() - cpu, time.perf_counter() - start
    memory = processes.memory(driver)
    api.shutdown()
    return {
        "value": memory.private / 2**20,
        "shared_mib": memory.shared / 2**20,
        "processes": memory.processes,
        "idle_cpu_percent": 100 * cpu / took,
    }
