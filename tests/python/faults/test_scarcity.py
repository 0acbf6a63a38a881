"""Few descriptors, a full /dev/shm, a full disk, a small store, no memory: errors with a cause."""

import contextlib
import os
import resource
import socket
import struct

import pytest
from os_facts import HERE, command_of, descriptors, eventually

FILLED_SHM = """
import os
with open("/dev/shm/filler", "wb") as f:
    try:
        while True:
            f.write(bytes(65536)); f.flush()
    except OSError:
        pass
assert os.statvfs("/dev/shm").f_bavail == 0
"""


def test_full_dev_shm(driver_with_mount):
    d = driver_with_mount(
        FILLED_SHM
        + """
import numpy as np, skate
skate.init(num_cpus=2, log_to_driver=False)
array = np.arange(10_000_000)
total = skate.remote(lambda x: int(x.sum()))
print("SUM", skate.get(total.remote(skate.put(array))) == int(array.sum()))
print("MANY", skate.get([total.remote(np.ones(200_000, dtype=int)) for _ in range(50)]) == [200_000] * 50)
""",
        "/dev/shm",
        "1m",
    )
    rc, out = d.finish()
    assert rc == 0 and "SUM True" in out and "MANY True" in out, out


SPILL = """
import gc, os
FOLDER = {folder!r}
import numpy as np, skate
from skate.exceptions import ObjectStoreFullError, OutOfDiskError
skate.init(num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False,
           object_spilling_directory=FOLDER)
def block(i):
    return np.full(2_500_000, i)   # 20 MB
refs, error = [], None
try:
    for i in range(40):
        refs.append(skate.put(block(i)))
except (OutOfDiskError, ObjectStoreFullError) as e:
    error = e
"""


def test_full_disk_while_spilling(driver_with_mount, tmp_path):
    d = driver_with_mount(
        SPILL.format(folder=str(tmp_path))
        + """
print("ERROR", type(error).__name__, "|", str(error).replace(chr(10), " "))
print("STORED", len(refs))
print("INTACT", all((skate.get(r) == i).all() for i, r in enumerate(refs)))
print("TASKS", skate.get([skate.remote(lambda x: x).remote(i) for i in range(20)]) == list(range(20)))
del refs
gc.collect()
again = [skate.put(block(i)) for i in range(3)]
print("AGAIN", all((skate.get(r) == i).all() for i, r in enumerate(again)))
""",
        str(tmp_path),
        "60m",
    )
    error = d.until("ERROR ")
    rc, out = d.finish()
    assert rc == 0, out
    assert error.split()[0] in ("OutOfDiskError", "ObjectStoreFullError")
    assert str(tmp_path) in error, "the error names the folder that is full"
    stored = int(next(x for x in out.splitlines() if x.startswith("STORED")).split()[1])
    assert 4 <= stored < 40
    assert "INTACT True" in out and "TASKS True" in out and "AGAIN True" in out


def test_spilling_and_restoring(driver, tmp_path):
    d = driver(
        SPILL.format(folder=str(tmp_path))
        + f"HERE = {HERE!r}\n"
        + """
print("ERROR", error)
import sys
sys.path.insert(0, HERE)
from os_facts import bytes_on_disk, descendants
def spilled():
    return bytes_on_disk(descendants(os.getpid()), FOLDER)
print("ON-DISK", spilled())
print("INTACT", all((skate.get(r) == i).all() for i, r in enumerate(refs)))
first = skate.remote(lambda x: float(x[0]))
print("BY-TASK", skate.get([first.remote(r) for r in refs]) == [float(i) for i in range(40)])
del refs
gc.collect()
import time
deadline = time.monotonic() + 20
while time.monotonic() < deadline and spilled():
    time.sleep(0.05)
print("LEFT", spilled())
"""
    )
    rc, out = d.finish()
    assert rc == 0 and "ERROR None" in out, out
    assert int(next(x for x in out.splitlines() if x.startswith("ON-DISK")).split()[1]) > 600 * 10**6
    assert "INTACT True" in out and "BY-TASK True" in out and "LEFT 0" in out, out


def test_result_larger_than_store_and_disk(driver_with_mount, tmp_path):
    d = driver_with_mount(
        f"FOLDER = {str(tmp_path)!r}"
        + """
import numpy as np, skate
from skate.exceptions import ObjectStoreFullError, OutOfDiskError
skate.init(num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False,
           object_spilling_directory=FOLDER)
huge = skate.remote(max_retries=0)(lambda: np.ones(60_000_000))
try:
    skate.get(huge.remote(), timeout=40)
    print("ERROR none")
except (ObjectStoreFullError, OutOfDiskError) as e:
    print("ERROR", str(e).replace(chr(10), " "))
print("AFTER", skate.get(skate.remote(lambda: 1).remote()))
""",
        str(tmp_path),
        "50m",
    )
    error = d.until("ERROR ")
    rc, out = d.finish()
    assert rc == 0 and "AFTER 1" in out, out
    assert error != "none" and any(c.isdigit() for c in error), "the error names sizes"


@pytest.mark.parametrize("limit", [40, 64, 80, 100, 128, 160, 200, 256, 300, 400, 1024])
def test_low_descriptor_limit(driver, limit):
    """Either all of it works, or the error says what ran out and how to get more; nothing hangs."""
    d = driver(
        """
import skate
from skate.exceptions import SkateError
try:
    skate.init(num_cpus=2, log_to_driver=False)
except Exception as e:
    print("INIT-ERROR", type(e).__name__, str(e).replace(chr(10), " "))
    raise SystemExit(0)

@skate.remote(num_cpus=0)
class A:
    def m(self):
        return 1

actors = [A.remote() for _ in range(100)]
good = bad = 0
for a in actors:
    try:
        good += skate.get(a.m.remote(), timeout=30)
    except SkateError as e:
        bad += 1
        print("CALL-ERROR", type(e).__name__, str(e).replace(chr(10), " "))
print("GOOD", good, "BAD", bad)
del actors
print("AFTER", skate.get(skate.remote(lambda: "works").remote(), timeout=30))
""",
        limits={resource.RLIMIT_NOFILE: limit},
    )
    rc, out = d.finish()
    assert rc == 0, out
    errors = [x for x in out.splitlines() if "-ERROR" in x]
    for line in errors:
        assert "descriptor" in line or "ulimit" in line, line
    if not errors:
        assert "GOOD 100 BAD 0" in out
    if not any(x.startswith("INIT-ERROR") for x in errors):
        assert "AFTER works" in out


def test_strangers_take_all_descriptors(driver):
    """Who comes when the daemon has no descriptor left is told so, and a worker starts again afterwards."""
    limit = 128
    d = driver(
        """
import skate
skate.init(num_cpus=1, log_to_driver=False)
@skate.remote(num_cpus=0)
class A:
    def m(self):
        return 1
print("UP", skate.get(skate.remote(lambda: 1).remote()))
input()
print("AFTER", skate.get(A.remote().m.remote(), timeout=30))
""",
        limits={resource.RLIMIT_NOFILE: limit},
    )
    d.until("UP")
    (daemon,) = [p for p in d.processes() if command_of(p)[1:2] == ["node"]]
    command = command_of(daemon)
    path = os.path.join(command[command.index("--session-dir") + 1], "node.sock")

    def connection():
        out = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        out.connect(path)
        return out

    with contextlib.ExitStack() as silent:
        for _ in range(limit - len(descriptors(daemon))):
            silent.enter_context(connection())
        assert eventually(lambda: len(descriptors(daemon)) == limit)
        with connection() as speaker:
            speaker.sendall(struct.pack("=I", 1) + b"?")
            answer = speaker.makefile("rb").read()
    assert b"Too many open files" in answer and b"ulimit -n" in answer
    d.tell()
    rc, out = d.finish()
    assert rc == 0 and "AFTER 1" in out, out


def test_descriptors_do_not_leak(driver):
    d = driver(
        """
import gc, os, skate
skate.init(num_cpus=2, log_to_driver=False)

@skate.remote(num_cpus=0)
class A:
    def m(self):
        return os.getpid()

def round():
    actors = [A.remote() for _ in range(5)]
    skate.get([a.m.remote() for a in actors])
    for a in actors:
        skate.kill(a)
    gc.collect()

def held():
    return len(os.listdir("/proc/self/fd"))

for _ in range(3):
    round()
before = held()
for _ in range(10):
    round()
import time
deadline = time.monotonic() + 10
while held() > before + 5 and time.monotonic() < deadline:
    time.sleep(0.05)
print("GROWN", held() - before)
"""
    )
    rc, out = d.finish()
    assert rc == 0, out
    assert int(out.split("GROWN")[1]) <= 5


@pytest.fixture
def memory_cgroup():
    """A memory cgroup (v1 or v2) of 2 GiB for one driver; the sandbox of a memory bomb."""
    name = f"skate-fault-{os.getpid()}"
    v1, v2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
    if os.path.isdir(v1):
        folder, limit_file = os.path.join(v1, name), "memory.limit_in_bytes"
    else:
        folder, limit_file = os.path.join(v2, name), "memory.max"
    os.mkdir(folder)
    with open(os.path.join(folder, limit_file), "w") as f:
        f.write(str(2 << 30))
    yield folder
    with open(os.path.join(folder, "cgroup.procs")) as f:
        assert f.read() == "", "the driver's processes are gone before the group is"
    os.rmdir(folder)


def test_out_of_memory(driver, memory_cgroup):
    d = driver(
        """
import skate
from skate.exceptions import OutOfMemoryError, WorkerCrashedError
skate.init(num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False)

@skate.remote(max_retries=0)
def bomb():
    held = []
    while True:
        held.append(bytearray(64 << 20))

@skate.remote(num_cpus=0)
class Bystander:
    def ok(self):
        return "ok"

b = Bystander.remote()
skate.get(b.ok.remote())
try:
    skate.get(bomb.remote(), timeout=50)
except (OutOfMemoryError, WorkerCrashedError) as e:
    print("ERROR", type(e).__name__, str(e).replace(chr(10), " "))
print("BYSTANDER", skate.get(b.ok.remote()))
print("AFTER", skate.get(skate.remote(lambda: 1).remote()))
skate.shutdown()
""",
        wrapper=["sh", "-c", f'echo $$ > {memory_cgroup}/cgroup.procs && exec "$@"', "sh"],
    )
    error = d.until("ERROR ")
    rc, out = d.finish()
    d.close()
    assert rc == 0 and "BYSTANDER ok" in out and "AFTER 1" in out, out
    assert error.startswith("OutOfMemoryError") and "bomb" in error and "iB" in error
