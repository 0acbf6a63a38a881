"""Looks at processes, descriptors, memory files and mounts through /proc, for the fault tests."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def eventually(condition, timeout_s=20, step_s=0.02):
    """Polls for a state that nothing announces; returns the last value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(step_s)


def stat_of(pid):
    """(state, parent, process group, session, start time) or None."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19]


def is_running(pid):
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX"


def marked(mark):
    """Pids of living processes that have `mark` (NAME=value) in their initial environment."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or not is_running(name):
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as f:
                if mark.encode() in f.read().split(b"\0"):
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def descendants(pid):
    """Living processes below `pid`, by parent, whatever session they are in."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = stat_of(name)
            if stat is not None and stat[0] not in "ZX":
                children.setdefault(stat[1], []).append(int(name))
    out, queue = [], list(children.get(pid, []))
    while queue:
        child = queue.pop()
        out.append(child)
        queue += children.get(child, [])
    return out


def command_of(pid):
    """The words of a process's command line; none if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descriptors(pid):
    """What the descriptors of a process point at."""
    out = {}
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return out
    for name in names:
        try:
            out[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return out


def memfd_inodes(pids):
    """Inodes of the memory files that these processes hold open or mapped."""
    found = set()
    for pid in pids:
        for fd, target in descriptors(pid).items():
            if target.startswith("/memfd:"):
                try:
                    found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
                except (FileNotFoundError, ProcessLookupError):
                    continue
        try:
            with open(f"/proc/{pid}/maps") as f:
                for line in f:
                    if "/memfd:" in line:
                        found.add(int(line.split()[4]))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def bytes_on_disk(pids, folder):
    """What these processes hold in files without a name, in `folder`: spilled objects."""
    total = 0
    for pid in pids:
        for fd, target in descriptors(pid).items():
            if target.startswith(f"{folder}/"):
                try:
                    total += os.stat(f"/proc/{pid}/fd/{fd}").st_blocks * 512
                except (FileNotFoundError, ProcessLookupError):
                    continue
    return total


def files_under(folder):
    return sorted(
        os.path.join(parent, name)
        for parent, folders, names in os.walk(folder)
        for name in [*folders, *names]
    )


def thread_sleeps(pid, tid=None):
    stat = None
    try:
        with open(f"/proc/{pid}/task/{tid or pid}/stat") as f:
            stat = f.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return stat == "S"


def stay_asleep(pid, tids=(None,)):
    """Waits until these threads, or the main one, sleep in a call and go on sleeping; False if they do not."""

    def asleep():
        return all(thread_sleeps(pid, tid) for tid in tids)

    return eventually(lambda: asleep() and (time.sleep(0.2), asleep())[1])


class Driver:
    """A Skate program in a process of its own, in a session of its own, with lines as its events.

    Every process that it starts, however it is re-parented, carries the mark in its environment.
    """

    def __init__(self, code, *, env=None, cwd=None, limits=None, wrapper=()):
        self.mark_value = f"{os.getpid()}-{time.monotonic_ns()}"
        self.mark = f"SKATE_FAULT_TEST={self.mark_value}"
        handle, self.path = tempfile.mkstemp(suffix=".py", prefix="driver-")
        with os.fdopen(handle, "w") as f:
            f.write(code)

        def apply_limits():
            for what, value in (limits or {}).items():
                resource.setrlimit(what, (value, value))

        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-u", self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, "SKATE_FAULT_TEST": self.mark_value, **(env or {})},
            preexec_fn=apply_limits if limits else None,
            start_new_session=True,
        )
        self.lines = []

    @property
    def pid(self):
        return self.process.pid

    def processes(self):
        """Everything of this driver that lives, itself included."""
        found = {*marked(self.mark), *descendants(self.pid)}
        return sorted(found | ({self.pid} if is_running(self.pid) else set()))

    def until(self, prefix):
        """Reads lines up to the one that starts with `prefix`; returns what follows it there."""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(prefix):
                return line[len(prefix) :].strip()
        raise AssertionError(f"no line {prefix!r} in:\n{self.text()}")

    def tell(self, line=""):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self, timeout_s=50):
        """Waits for the end; returns (exit code, all output)."""
        self.process.stdin.close()
        # Not communicate(): it would miss what `until` has read ahead.
        rest = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        rest.start()
        code = self.process.wait(timeout=timeout_s)
        rest.join(timeout=timeout_s)
        assert not rest.is_alive(), f"something keeps the output open:\n{self.text()}"
        return code, self.text()

    def text(self):
        return "".join(self.lines)

    def kill(self, signal_number=signal.SIGKILL):
        os.kill(self.pid, signal_number)
        self.process.wait(timeout=30)

    def close(self):
        """Ends whatever is left of this driver, by pid. A second call does nothing."""
        if not os.path.exists(self.path):
            return
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        os.unlink(self.path)


def private_mounts():
    """The command before another that gives it mounts of its own: as root, or by a user namespace. Or None."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None
