"""Both daemons as programs, with Python workers that only register: start, prestart, death of a driver.

The workers come from the real fork server; `skate` on their path is a stand-in whose native half says Hello and
waits, so that this tests the daemons without the worker runtime. SKATED names another binary than the built one.
"""

import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = ROOT / "python" / "skate"
SKATED = os.environ.get("SKATED", str(SOURCE / "bin" / "skated"))

STAND_IN = '''
import os, socket, struct

def text(value):
    return struct.pack("<Q", len(value)) + value.encode()

def hello(kind, token, version, job_json="{}"):
    body = text(version) + struct.pack("<BiQ", kind, os.getpid(), token) + text("python") + text("") + text(job_json) + b"\\0"
    return struct.pack("<I", len(body)) + body

def greet(path, frame):
    """The connected socket and the Welcome's bytes."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall(frame)
    head, fds, _, _ = socket.recv_fds(sock, 4, 8)
    size, = struct.unpack("<I", head)
    body = b""
    while len(body) < size:
        body += sock.recv(size - len(body))
    for fd in fds:
        os.close(fd)
    error_size, = struct.unpack_from("<Q", body)
    if error_size:
        raise RuntimeError(body[8 : 8 + error_size].decode())
    return sock, len(fds)

def run_worker(path, token):
    sock, fds = greet(path, hello(1, token, os.environ["TEST_VERSION"]))
    print("registered with", fds, "descriptors", flush=True)
    while sock.recv(1):
        pass
    return 0
'''


def version() -> str:
    return subprocess.run([SKATED, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]


def eventually(condition, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def descendants(pid: int) -> list[int]:
    out = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    children: dict[int, list[int]] = {}
    for line in out.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


class Cluster:
    def __init__(self, folder: pathlib.Path) -> None:
        self.session = folder / "session"
        self.session.mkdir(mode=0o700)
        package = folder / "path" / "skate"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "_skate.py").write_text(STAND_IN)
        for name in ("_fork_server.py", "_worker_main.py"):
            (package / name).symlink_to(SOURCE / name)
        key = folder / "key"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        self.starter = subprocess.Popen(["sleep", "600"])
        self.env = dict(os.environ, PYTHONPATH=str(folder / "path"), TEST_VERSION=version())
        common = [
            "--session-dir",
            str(self.session),
            "--key-file",
            str(key),
            "--watch-pid",
            str(self.starter.pid),
        ]
        self.address = f"unix:{self.session}/control.sock"
        self.control, _ = self.start(["control", *common, "--listen", self.address])
        options = [
            "--num-cpus",
            "2",
            "--object-store-memory",
            str(64 << 20),
            "--python",
            sys.executable,
            "--head",
        ]
        self.node, ready = self.start(["node", *common, "--control", self.address, *options])
        self.socket = json.loads(ready)["socket"]

    def start(self, arguments: list[str]) -> tuple[subprocess.Popen, str]:
        read, write = os.pipe()
        process = subprocess.Popen(
            [SKATED, *arguments, "--ready-fd", str(write)], pass_fds=[write], env=self.env
        )
        os.close(write)
        with os.fdopen(read) as ready:
            line = ready.readline()
        assert line, "it ended before it was ready"
        return process, line

    def driver(self) -> subprocess.Popen:
        """A process that registers as a driver, says so, and waits."""
        code = (
            "import skate._skate as s, sys, time\n"
            f"sock, fds = s.greet({self.socket!r}, s.hello(0, 0, {self.env['TEST_VERSION']!r}))\n"
            "print(fds, flush=True)\n"
            "time.sleep(600)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=self.env, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        return process

    def registered(self) -> int:
        return sum(
            "registered with 4" in path.read_text() for path in (self.session / "logs").glob("worker-*.out")
        )

    def stop(self) -> None:
        self.starter.kill()
        self.starter.wait()
        assert self.node.wait(10) == 0
        self.control.wait(10)


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    if made.starter.poll() is None:
        made.stop()


def test_workers_are_forked_ahead_and_go_with_their_driver(cluster):
    driver = cluster.driver()
    assert eventually(lambda: cluster.registered() == 2)
    assert len(descendants(cluster.node.pid)) == 3, "the fork server and two workers"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert eventually(lambda: len(descendants(cluster.node.pid)) == 1, 2)


def test_nothing_is_left_when_the_starter_dies(cluster):
    driver = cluster.driver()
    assert eventually(lambda: cluster.registered() == 2)
    ours = descendants(cluster.node.pid)
    cluster.stop()
    assert not cluster.session.exists()
    assert not [pid for pid in ours if pathlib.Path(f"/proc/{pid}").exists()]
    driver.kill()
    driver.wait()


def test_workers_end_when_the_daemon_is_killed(cluster):
    driver = cluster.driver()
    assert eventually(lambda: cluster.registered() == 2)
    ours = descendants(cluster.node.pid)
    cluster.node.kill()
    cluster.node.wait()

    def gone(pid: int) -> bool:
        stat = pathlib.Path(f"/proc/{pid}/stat")
        return not stat.exists() or "Z" in stat.read_text()

    assert eventually(lambda: all(gone(pid) for pid in ours), 5)
    driver.kill()
    driver.wait()
    cluster.starter.kill()
    cluster.starter.wait()
    cluster.control.wait(10)


def test_an_unregistered_stranger_changes_nothing(cluster):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(cluster.socket)
    sock.sendall(struct.pack("<I", 0xFFFFFFFF))
    sock.settimeout(20)
    assert sock.recv(1) == b"", "a frame too large is hung up on"
    cluster.driver().kill()
