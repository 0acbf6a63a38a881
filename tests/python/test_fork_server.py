"""The fork server alone, with stand-in workers: the daemon's side of its socket is this test."""

import array
import importlib.util
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "python" / "skate"

TARGETS = """
import json, os, sys, time, threading

def facts(socket_path, token):
    import random
    out = {
        "token": token, "socket": socket_path, "cwd": os.getcwd(), "argv": sys.argv,
        "path0": sys.path[0], "pid": os.getpid(), "sid": os.getsid(0), "random": random.random(),
        "env": os.environ.get("MINE"), "gone": os.environ.get("GONE"),
        "openblas": os.environ.get("OPENBLAS_NUM_THREADS"), "main": sorted(vars(sys.modules["__main__"])),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }
    if "numpy" in sys.modules:
        out["numpy"] = sys.modules["numpy"].random.random()
    print(json.dumps(out))
    return 0

def leave(socket_path, token):
    os._exit(7)

def crash(socket_path, token):
    os.abort()

def fail(socket_path, token):
    raise RuntimeError("no way")

def wait(socket_path, token):
    time.sleep(60)

def nothing(socket_path, token):
    return 0
"""

THREADED = """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""


class Server:
    def __init__(self, folder: pathlib.Path, entry: str, preload: str = "") -> None:
        package = folder / "skate"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        for name in ("_fork_server.py", "_worker_main.py"):
            if not (package / name).exists():
                (package / name).symlink_to(SOURCE / name)
        (folder / "targets.py").write_text(TARGETS)
        (folder / "threaded.py").write_text(THREADED)
        self.mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.mine.settimeout(20)
        env = dict(os.environ, PYTHONPATH=str(folder), GONE="here")
        command = [sys.executable, "-m", "skate._fork_server", "--fd", str(theirs.fileno())]
        command += ["--entry", f"targets:{entry}", "--preload", preload]
        self.process = subprocess.Popen(command, env=env, cwd=folder, pass_fds=[theirs.fileno()])
        theirs.close()
        self.ready = self.receive()
        self.exits: dict[int, dict] = {}

    def receive(self) -> dict:
        data = self.mine.recv(1 << 20)
        assert data, "the fork server is gone"
        return json.loads(data)

    def send(self, token: int, out: int, err: int, **fields) -> None:
        request = {"token": token, "socket": "/nowhere", "env": {}, **fields}
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [out, err]))]
        self.mine.sendmsg([json.dumps(request).encode()], rights)

    def answer(self, token: int) -> dict:
        """The answer to a request; reports of exits that come before are kept."""
        while True:
            message = self.receive()
            if "exited" in message:
                self.exits[message["exited"]] = message
            else:
                assert token in (message.get("forked"), message.get("spawn"))
                return message

    def exit_of(self, pid: int) -> dict:
        while pid not in self.exits:
            message = self.receive()
            assert "exited" in message
            self.exits[message["exited"]] = message
        report = self.exits.pop(pid)
        assert report.pop("peak_bytes") > 1 << 20, "an interpreter has held more than that"
        return report

    def run(self, token: int = 1, **fields) -> tuple[dict, bytes, bytes]:
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        self.send(token, out_write, err_write, **fields)
        os.close(out_write)
        os.close(err_write)
        forked = self.answer(token)
        with os.fdopen(out_read, "rb") as out, os.fdopen(err_read, "rb") as err:
            return forked, out.read(), err.read()

    def stop(self) -> int:
        self.mine.close()
        return self.process.wait(20)


@pytest.fixture
def start(tmp_path):
    servers = []

    def starter(entry: str, preload: str = "") -> Server:
        servers.append(Server(tmp_path, entry, preload))
        return servers[-1]

    yield starter
    for server in servers:
        if server.process.poll() is None:
            assert server.stop() == 0, "the fork server ends when its socket hangs up"


def test_child_is_what_was_asked_for(start, tmp_path):
    server = start("facts")
    assert server.ready == {"ready": server.process.pid, "failed": {}}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    forked, out, err = server.run(
        2**63 + 5,
        env={"MINE": "yes", "GONE": None},
        cwd=str(elsewhere),
        sys_path=["/first"],
        argv=["job.py", "-x"],
    )
    assert err == b""
    facts = json.loads(out)
    assert facts["token"] == 2**63 + 5
    assert facts["socket"] == "/nowhere"
    assert facts["cwd"] == str(elsewhere)
    assert facts["argv"] == ["job.py", "-x"]
    assert facts["path0"] == "/first"
    assert facts["env"] == "yes"
    assert facts["gone"] is None
    assert facts["openblas"] is None
    assert facts["main"] == ["__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"]
    assert facts["pid"] == facts["sid"] == forked["pid"]
    assert facts["threads"] == 1
    assert facts["fds"][:3] == [0, 1, 2]
    assert len(facts["fds"]) == 4, "only the directory that it lists is open besides"
    assert server.exit_of(forked["pid"]) == {"exited": forked["pid"], "code": 0, "signal": 0}


def test_children_draw_different_numbers(start):
    preload = "random,numpy" if importlib.util.find_spec("numpy") else "random"
    server = start("facts", preload)
    drawn = [json.loads(server.run(token)[1]) for token in (1, 2, 3)]
    for name in ("random", "numpy") if "numpy" in preload else ("random",):
        assert len({facts[name] for facts in drawn}) == 3


@pytest.mark.parametrize(
    ("entry", "code", "number"), [("leave", 7, 0), ("crash", 0, signal.SIGABRT), ("fail", 1, 0)]
)
def test_exit_status_is_reported(start, entry, code, number):
    server = start(entry)
    forked, _, err = server.run()
    assert server.exit_of(forked["pid"]) == {"exited": forked["pid"], "code": code, "signal": number}
    assert (b"RuntimeError: no way" in err) == (entry == "fail")


def test_killed_child_is_reported(start):
    server = start("wait")
    out_read, out_write = os.pipe()
    server.send(1, out_write, out_write)
    pid = server.answer(1)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert server.exit_of(pid)["signal"] == signal.SIGKILL
    os.close(out_read)
    os.close(out_write)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONHASHSEED", "MALLOC_ARENA_MAX"])
def test_what_is_read_at_load_is_left_to_a_spawn(start, name):
    server = start("facts")
    out_read, out_write = os.pipe()
    server.send(4, out_write, out_write, env={name: "1"})
    answer = server.answer(4)
    assert answer["spawn"] == 4
    assert name in answer["reason"]
    os.close(out_read)
    os.close(out_write)


def test_no_fork_with_a_second_thread(start):
    server = start("facts", "threaded")
    out_read, out_write = os.pipe()
    server.send(4, out_write, out_write)
    assert "2 threads" in server.answer(4)["reason"]
    os.close(out_read)
    os.close(out_write)


def test_a_module_that_cannot_be_preloaded_is_reported(start):
    server = start("nothing", "no_such_module_at_all")
    assert "ModuleNotFoundError" in server.ready["failed"]["no_such_module_at_all"]
    forked, _, _ = server.run()
    assert server.exit_of(forked["pid"])["code"] == 0


def test_a_hundred_forks_and_no_descriptor_left(start):
    server = start("nothing")
    before = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    null = os.open("/dev/null", os.O_WRONLY)
    pids = []
    for token in range(1, 101):
        server.send(token, null, null)
        pids.append(server.answer(token)["pid"])
    os.close(null)
    assert len(set(pids)) == 100
    assert all(server.exit_of(pid)["code"] == 0 for pid in pids)
    assert len(os.listdir(f"/proc/{server.process.pid}/fd")) == before


def test_server_ends_with_its_socket_and_children_live(start):
    server = start("wait")
    out_read, out_write = os.pipe()
    server.send(1, out_write, out_write)
    pid = server.answer(1)["pid"]
    assert server.stop() == 0
    child = os.pidfd_open(pid)
    assert not select.select([child], [], [], 0)[0], "its death harms no worker"
    os.kill(pid, signal.SIGKILL)
    assert select.select([child], [], [], 10)[0]
    for fd in (child, out_read, out_write):
        os.close(fd)
