"""Actors that let a test wait for something that happens in another process, without sleeping."""

import asyncio
import os
import subprocess
import sys
import time

import ray


@ray.remote(num_cpus=0, max_concurrency=100)
class Signal:
    """A door: `wait` returns once `send` was called. It counts those that have come to wait."""

    def __init__(self):
        self.door = asyncio.Event()
        self.arrived = 0
        self.changed = asyncio.Condition()

    async def send(self):
        self.door.set()

    async def wait(self):
        async with self.changed:
            self.arrived += 1
            self.changed.notify_all()
        await self.door.wait()

    async def until_arrived(self, n):
        async with self.changed:
            await self.changed.wait_for(lambda: self.arrived >= n)
        return self.arrived


@ray.remote(num_cpus=0, max_concurrency=100)
class Tally:
    """A list that grows; `until` waits for its n-th entry."""

    def __init__(self):
        self.entries = []
        self.changed = asyncio.Condition()

    async def add(self, entry=None):
        async with self.changed:
            self.entries.append(entry)
            self.changed.notify_all()
        return len(self.entries)

    async def all(self):
        return list(self.entries)

    async def until(self, n):
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.entries) >= n)
        return list(self.entries)


def eventually(condition, timeout_s=30):
    """Polls for a state that nothing announces; returns the last value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.05)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_driver(code, timeout_s=170, env=None, cwd=None):
    """Runs `code` as a driver of its own; returns (exit code, stdout + stderr).

    The test's own time limit comes first; this one only bounds a run without it.
    """
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    return done.returncode, done.stdout
