"""Few descriptors, a full /dev/shm, a full disk, a small store, no memory: errors with a cause."""

import contextlib
import os
import re
import resource
import socket
import struct
import uuid

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
        assert "RuntimeEnvSetupError" not in line and "runtime environment" not in line, line
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
    """Makes memory cgroups (v1 or v2) of a size for one driver each: the sandbox of a memory bomb.

    Ask for it before `driver`: a group goes only when its processes have gone.
    """
    v1, v2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
    root, limit_file = (v1, "memory.limit_in_bytes") if os.path.isdir(v1) else (v2, "memory.max")
    made = []

    def make(size_bytes):
        folder = os.path.join(root, f"skate-fault-{uuid.uuid4().hex}")
        try:
            os.mkdir(folder)
            made.append(folder)
            with open(os.path.join(folder, limit_file), "w") as f:
                f.write(str(size_bytes))
        except OSError as e:
            pytest.skip(f"no memory cgroup can be made here, and the bomb needs one: {e}")
        return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]

    yield make
    for folder in made:
        with open(os.path.join(folder, "cgroup.procs")) as f:
            assert f.read() == "", "the driver's processes are gone before the group is"
        os.rmdir(folder)


BOMB = """
import os
import skate
from skate.exceptions import SkateError
skate.init(num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False)

def burst():
    with open(os.environ["RUNS"], "a") as f:
        f.write("x")
    held = []
    while True:
        held.append(bytearray(16 << 20))

def failure(ref):
    try:
        return "none", skate.get(ref)
    except SkateError as e:
        return type(e).__name__, str(e).replace(chr(10), " ")

@skate.remote(num_cpus=0)
class Bystander:
    def ok(self):
        return "ok"

bystander = Bystander.remote()
skate.get(bystander.ok.remote())
"""
AFTERWARDS = """
print("BYSTANDER", skate.get(bystander.ok.remote()))
print("AFTER", skate.get(skate.remote(lambda: 1).remote()))
skate.shutdown()
"""


def oom_score(pid):
    with open(f"/proc/{pid}/oom_score_adj") as f:
        return int(f.read())


def may_lower_oom_score():
    cap_sys_resource = 1 << 24
    with open("/proc/self/status") as f:
        held = next(line.split()[1] for line in f if line.startswith("CapEff:"))
    return bool(int(held, 16) & cap_sys_resource)


def daemons_of(d):
    return [p for p in d.processes() if os.path.basename("".join(command_of(p)[:1])) == "skated"]


def test_out_of_memory(memory_cgroup, driver, tmp_path):
    """2 GiB are used up: the task fails with a table of who used them, and nobody else is harmed."""
    runs = tmp_path / "runs"
    d = driver(
        BOMB
        + """
print("UP")
input()
bomb = skate.remote(max_retries=0)(burst).options(name="bomb")
print("ERROR", *failure(bomb.remote()))
"""
        + AFTERWARDS,
        wrapper=memory_cgroup(2 << 30),
        env={"RUNS": str(runs)},
    )
    d.until("UP")
    daemons = daemons_of(d)
    assert len(daemons) == 2
    workers = [p for p in d.processes() if oom_score(p) == 1000]
    assert workers and all(oom_score(w) > oom_score(other) for w in workers for other in [*daemons, d.pid])
    if may_lower_oom_score():
        assert all(oom_score(p) < 0 for p in daemons), "they are the last that the kernel takes"
    d.tell()
    error = d.until("ERROR ")
    assert daemons_of(d) == daemons
    rc, out = d.finish()
    assert rc == 0 and "BYSTANDER ok" in out and "AFTER 1" in out, out
    assert error.startswith("OutOfMemoryError") and "memory ran out" in error and "num_cpus" in error
    assert re.search(r"2\.0 GiB in all", error), error
    assert re.search(r" (1\.[5-9]|2\.0) GiB  pid \d+  bomb, which was killed", error), error
    for row in ("Bystander", "driver", "object store", "node daemon"):
        assert re.search(rf"iB  (pid \d+  )?{row}", error) or re.search(rf" B  {row}", error), (row, error)
    assert runs.read_text() == "x"


def test_out_of_memory_is_retried(memory_cgroup, driver, tmp_path):
    runs = tmp_path / "runs"
    d = driver(
        BOMB + 'print("ERROR", *failure(skate.remote(max_retries=2)(burst).remote()))' + AFTERWARDS,
        wrapper=memory_cgroup(384 << 20),
        env={"RUNS": str(runs)},
    )
    error = d.until("ERROR ")
    rc, out = d.finish()
    assert rc == 0 and "BYSTANDER ok" in out and "AFTER 1" in out, out
    assert error.startswith("OutOfMemoryError") and "384.0 MiB in all" in error
    assert runs.read_text() == "xxx", "one run and two retries"


def test_out_of_memory_in_several(memory_cgroup, driver, tmp_path):
    """Two tasks and an actor burst at a time: each one's death has its cause, also if they coincide."""
    d = driver(
        BOMB
        + """
@skate.remote(num_cpus=0)
class Bomb:
    def burst(self):
        burst()

task = skate.remote(num_cpus=0, max_retries=0)(burst)
refs = [task.remote(), task.remote(), Bomb.remote().burst.remote()]
for ref in refs:
    print("ERROR", *failure(ref))
"""
        + AFTERWARDS,
        wrapper=memory_cgroup(384 << 20),
        env={"RUNS": str(tmp_path / "runs")},
    )
    errors = [d.until("ERROR ") for _ in range(3)]
    rc, out = d.finish()
    assert rc == 0 and "BYSTANDER ok" in out and "AFTER 1" in out, out
    for error in errors:
        assert error.startswith("OutOfMemoryError") and "which was killed" in error, errors
