"""Ctrl-C in calls that block, in a driver of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

PRELUDE = """
import os, ray, sys
ray.init(num_cpus=2, log_to_driver=False)

@ray.remote(num_cpus=0)
class Never:
    async def wait(self):
        import asyncio
        await asyncio.Event().wait()

    async def ok(self):
        return 1

never = Never.remote()
ray.get(never.ok.remote())
ref = never.wait.remote()
print("READY", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
# The cluster goes on.
print("AFTER", ray.get(never.ok.remote(), timeout=30), flush=True)
"""

CALLS = {
    "get": "ray.get(ref)",
    "get-many": "ray.get([ref, ray.put(1)])",
    "get-timeout": "ray.get(ref, timeout=100)",
    "wait": "ray.wait([ref])",
    "wait-timeout": "ray.wait([ref], timeout=100)",
    "next": "next(ray.util.as_completed([ref]))",
    "await": "import asyncio; asyncio.run(asyncio.wait_for(ref, 100))",
    "future": "ref.future().result()",
    "infeasible": "ray.get(ray.remote(resources={'none': 1})(lambda: 1).remote())",
    "queue": "import ray.util.queue as q; q.Queue().get()",
}


def blocked_in_kernel(pid):
    """True once the driver's main thread sleeps, two looks in a row."""
    looks = []
    for _ in range(2):
        with open(f"/proc/{pid}/task/{pid}/stat") as f:
            looks.append(f.read().rpartition(")")[2].split()[0])
        time.sleep(0.1)
    return looks == ["S", "S"]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_ctrl_c(call):
    driver = subprocess.Popen(
        [sys.executable, "-u", "-c", PRELUDE.format(call=call)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        lines = []
        for line in driver.stdout:
            lines.append(line)
            if line.startswith("READY"):
                break
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not blocked_in_kernel(driver.pid):
            pass
        time.sleep(0.5)  # Into the call: a signal before `try` would prove nothing.
        start = time.monotonic()
        driver.send_signal(signal.SIGINT)
        rest, _ = driver.communicate(timeout=40)
        took = time.monotonic() - start
        assert "INTERRUPTED" in rest, "".join(lines) + rest
        assert "AFTER 1" in rest, rest
        assert driver.returncode == 0, rest
        assert took < 30
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
