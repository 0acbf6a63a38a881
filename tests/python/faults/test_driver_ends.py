"""However a driver ends, two seconds later nothing of it is left: processes, memory, files."""

import os
import signal
import tempfile
import time

import pytest
from os_facts import bytes_on_disk, command_of, eventually, files_under, is_running, memfd_inodes

GONE_WITHIN_S = 2

PRELUDE = """
import os, subprocess, sys, time
import numpy as np
import skate

context = skate.init(num_cpus=2, log_to_driver=False{init})
print("SESSION", context.address_info["session_dir"])

@skate.remote
def pid():
    return os.getpid()

@skate.remote(num_cpus=0)
class Actor:
    def __init__(self):
        self.array = skate.put(np.ones(1_000_000))

    def pid(self):
        return os.getpid()

    def sleep(self):
        time.sleep(600)
"""

BUSY = {
    "idle": "skate.get(pid.remote())\n",
    "actors-with-objects": (
        "actors = [Actor.remote() for _ in range(3)]\n"
        "skate.get([a.pid.remote() for a in actors])\n"
        "kept = [skate.put(np.ones(1_000_000)) for _ in range(5)]\n"
    ),
    "running": (
        "a = Actor.remote(); skate.get(a.pid.remote()); a.sleep.remote()\n"
        "spin = skate.remote(lambda: [x for x in iter(int, 1)])\n"
        "refs = [spin.remote() for _ in range(4)]\n"
    ),
    "detached-actor": (
        "a = Actor.options(name='d', lifetime='detached').remote(); skate.get(a.pid.remote())\n"
    ),
    "children-of-workers": (
        "def child():\n"
        "    return subprocess.Popen(['sleep', '600'], start_new_session=True).pid\n"
        "skate.get(skate.remote(child).remote())\n"
    ),
}


def start(driver, work, init=""):
    d = driver(PRELUDE.format(init=init) + work + "print('READY')\nsys.stdin.readline()\n")
    session = d.until("SESSION ")
    d.until("READY")
    return d, session


def assert_nothing_left(d, session, members, inodes, since):
    left = eventually(
        lambda: not [p for p in members if is_running(p)] and not d.processes(),
        timeout_s=GONE_WITHIN_S - (time.monotonic() - since),
    )
    assert left, {p: command_of(p) for p in d.processes()}
    everyone = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    assert not inodes & memfd_inodes(everyone)
    assert eventually(
        lambda: not os.path.exists(session), timeout_s=GONE_WITHIN_S - (time.monotonic() - since)
    ), files_under(session)


@pytest.mark.parametrize("work", BUSY.values(), ids=BUSY.keys())
def test_killed(driver, work):
    d, session = start(driver, work)
    members = d.processes()
    inodes = memfd_inodes(members)
    assert len(members) > 3 and inodes
    since = time.monotonic()
    d.kill()
    assert_nothing_left(d, session, members, inodes, since)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGSEGV])
def test_ended_by_another_signal(driver, number):
    d, session = start(driver, BUSY["actors-with-objects"])
    members = d.processes()
    inodes = memfd_inodes(members)
    since = time.monotonic()
    d.kill(number)
    assert_nothing_left(d, session, members, inodes, since)


@pytest.mark.parametrize(
    "end, code", [("", 0), ("sys.exit(3)", 3), ("os._exit(4)", 4), ("raise ValueError('x')", 1)]
)
def test_ended_by_itself(driver, end, code):
    d = driver(
        PRELUDE.format(init="")
        + BUSY["actors-with-objects"]
        + "print('READY')\nsys.stdin.readline()\n"
        + end
        + "\n"
    )
    session = d.until("SESSION ")
    d.until("READY")
    members = d.processes()
    inodes = memfd_inodes(members)
    d.tell()
    rc, out = d.finish()
    assert rc == code, out
    assert_nothing_left(d, session, members, inodes, time.monotonic())


def test_killed_with_objects_on_disk(driver, tmp_path):
    d, session = start(
        driver,
        "kept = [skate.put(np.full(2_500_000, i)) for i in range(10)]\n",
        init=f", object_store_memory=100 * 2**20, object_spilling_directory={str(tmp_path)!r}",
    )
    members = d.processes()
    on_disk = bytes_on_disk(members, tmp_path)
    assert on_disk > 90 * 10**6, "200 MB in a store of 100 MiB: the rest must be on disk"
    since = time.monotonic()
    d.kill()
    assert_nothing_left(d, session, members, set(), since)
    assert eventually(
        lambda: not [f for f in files_under(tmp_path) if os.path.isfile(f)], timeout_s=GONE_WITHIN_S
    ), files_under(tmp_path)


@pytest.mark.parametrize("after_s", [0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4])
def test_killed_during_init(driver, after_s):
    tmp_path = tempfile.mkdtemp(prefix="k")  # pytest's are too long for the path of a socket
    d = driver(
        "import skate, time\nprint('IMPORTED')\n"
        f"skate.init(num_cpus=2, _temp_dir={tmp_path!r})\ntime.sleep(60)\n"
    )
    d.until("IMPORTED")
    time.sleep(after_s)
    d.kill()
    # Both at once: a process that is being started is not seen for a moment.
    assert eventually(lambda: not d.processes() and not os.listdir(tmp_path), timeout_s=GONE_WITHIN_S), (
        d.processes(),
        files_under(tmp_path),
    )
    os.rmdir(tmp_path)


def test_shutdown_leaves_nothing_but_the_driver(driver):
    d = driver(
        PRELUDE.format(init="")
        + BUSY["actors-with-objects"]
        + "print('READY')\nsys.stdin.readline()\nskate.shutdown()\nprint('DOWN')\nsys.stdin.readline()\n"
    )
    session = d.until("SESSION ")
    d.until("READY")
    members = [p for p in d.processes() if p != d.pid]
    d.tell()
    d.until("DOWN")
    assert eventually(lambda: not [p for p in members if is_running(p)], timeout_s=GONE_WITHIN_S)
    assert eventually(lambda: d.processes() == [d.pid], timeout_s=GONE_WITHIN_S)
    assert not os.path.exists(session)
    d.tell()
    assert d.finish()[0] == 0
