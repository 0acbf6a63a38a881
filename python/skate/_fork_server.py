"""The fork server: a warm interpreter that the node daemon asks for workers.

Started as ``PYTHON -m skate._fork_server --fd N``, where N is one end of a SOCK_SEQPACKET pair whose other
end the daemon holds. Every message is one packet of JSON.

daemon -> server
    {"token", "socket", "env", "cwd", "sys_path", "argv"} with two descriptors: the worker's stdout and stderr
server -> daemon
    {"ready": pid, "failed": {module: error}}    preloaded; forks begin at once
    {"forked": token, "pid": pid}                the worker runs; answered before the worker does anything
    {"spawn": token, "reason": text}             forking would be wrong: start it afresh
    {"exited": pid, "code": n, "signal": n, "peak_bytes": n}    one of code and signal is 0

The server has one thread, and checks that before each fork; it has no user module, no CUDA and none of
Skate's threads. It ends when the daemon's end of the pair hangs up. Its own death harms no worker: they are
then children of the daemon, which is the subreaper.
"""

from __future__ import annotations

import argparse
import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from skate._worker_main import run_and_exit

_MESSAGE_BYTES_MAX = 256 * 1024

# Native pools read these when they load; held to one thread they start none before a fork.
_POOL_SIZES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
# Read when a process or an allocator starts: only a new process obeys them.
_READ_AT_LOAD = ("LD_", "PYTHON", "MALLOC_", "GLIBC_TUNABLES", "MIMALLOC_", "JEMALLOC_", "TCMALLOC_")
_POOL_PREFIXES = (
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "BLIS_",
    "VECLIB_",
    "NUMEXPR_",
    "KMP_",
    "GOMP_",
    "TBB_",
    "RAYON_",
)
_POOL_LIBRARIES = ("openblas", "libgomp", "libiomp", "libomp", "mkl_", "libblis", "libtbb", "numexpr")


class ForkServer:
    """Owner of the socket; one instance in the process, on its only thread."""

    def __init__(self, sock: socket.socket, entry: str, user_env: dict[str, str]) -> None:
        self._sock = sock
        self._entry = _load(entry)
        self._user_env = user_env
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self, failed: dict[str, str]) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        # Whatever lives now stays for good: the collector must not write to pages that children share.
        gc.collect()
        gc.freeze()
        self._send({"ready": os.getpid(), "failed": failed})
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                    self._reap()
                elif not self._take_request():
                    return

    def _take_request(self) -> bool:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                _MESSAGE_BYTES_MAX, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # it left without reading our last reports
            return False
        if not data:
            return False
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError("a fork request is cut off")
            request = json.loads(data)
            if flags & socket.MSG_CTRUNC or len(fds) != 2:
                self._decline(request, "the fork server has no descriptors left")
            else:
                self._fork(request, fds[0], fds[1])
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], out_fd: int, err_fd: int) -> None:
        try:
            reason = _why_not_fork(request.get("env") or {})
            pid = -1 if reason else os.fork()
        except OSError as error:
            reason = f"fork failed: {error}"
        if reason:
            self._decline(request, reason)
            return
        if pid == 0:
            self._become_worker(request, out_fd, err_fd)
        self._send({"forked": request["token"], "pid": pid})

    def _decline(self, request: dict[str, Any], reason: str) -> None:
        self._send({"spawn": request["token"], "reason": reason})

    def _become_worker(self, request: dict[str, Any], out_fd: int, err_fd: int) -> NoReturn:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.dup2(out_fd, 1)
            os.dup2(err_fd, 2)
            for fd in (out_fd, err_fd, self._wake_read, self._wake_write):
                os.close(fd)
            self._sock.close()
            gc.enable()
            _set_environment(self._user_env, request.get("env") or {})
            _reseed()
            run_and_exit(self._entry, request)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            peak_bytes = used.ru_maxrss * 1024
            self._send({"exited": pid, "code": code, "signal": number, "peak_bytes": peak_bytes})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the daemon is gone


def _why_not_fork(env: dict[str, str | None]) -> str:
    """Empty when a forked child can be what is asked for."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"the fork server has {threads} threads, which a fork would lose"
    changed = [name for name, value in env.items() if os.environ.get(name) != value]
    for name in changed:
        if name.startswith(_READ_AT_LOAD):
            return f"{name} is read when a process starts"
    pools = [name for name in changed if name.startswith(_POOL_PREFIXES)]
    if pools:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            text = maps.read()
        if any(library in text for library in _POOL_LIBRARIES):
            return f"{pools[0]} is read when its library loads, and that is loaded"
    return ""


def _set_environment(user_env: dict[str, str], env: dict[str, str | None]) -> None:
    for name in _POOL_SIZES:  # ours while we served; now what the user has, and for OpenMP one as in Ray
        if name in user_env:
            os.environ[name] = user_env[name]
        elif name != "OMP_NUM_THREADS":
            os.environ.pop(name, None)
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _reseed() -> None:
    """Two children of one server draw different numbers."""
    for name in ("random", "numpy.random"):
        module = sys.modules.get(name)
        if module is not None:
            module.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _load(entry: str) -> Callable[[str, int], int]:
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _preload(modules: list[str]) -> dict[str, str]:
    failed = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            failed[module] = f"{type(error).__name__}: {error}"
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="skate._fork_server")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--preload", default="skate,skate._skate,cloudpickle", help="modules, by commas")
    parser.add_argument("--entry", default="skate._worker_main:main", help="module:function of a worker")
    arguments = parser.parse_args()
    gc.disable()
    user_env = {name: os.environ[name] for name in _POOL_SIZES if name in os.environ}
    for name in _POOL_SIZES:
        os.environ[name] = "1"
    sock = socket.socket(fileno=arguments.fd)
    sock.set_inheritable(False)
    failed = _preload([module for module in arguments.preload.split(",") if module])
    ForkServer(sock, arguments.entry, user_env).serve(failed)


if __name__ == "__main__":
    main()
