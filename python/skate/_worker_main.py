"""The entry point of a worker process.

A forked worker gets here by ``main()`` from the fork server, a spawned one by
``python -m skate._worker_main SETUP``, where SETUP is JSON with the same fields as a fork request.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

#: One byte for each of stdout and stderr: whether it was written to since `flush_output` last ran.
unflushed = bytearray(2)
#: What `set_up` could not do; `skate._worker.setup_process` raises it, so that the tasks here get to know.
failure: Exception | None = None


_write = io.BufferedWriter.write


class WorkingDirectoryError(RuntimeError):
    """A worker would have run in another directory than its driver."""


class _Output(io.BufferedWriter):
    """The buffer below stdout or stderr, which tells by `unflushed` that it may hold something."""

    def __init__(self, number: int, name: str) -> None:
        raw = io.FileIO(number + 1, "wb", closefd=False)
        raw.name = name
        super().__init__(raw)
        self._number = number

    def write(self, data: Any) -> int:
        unflushed[self._number] = 1
        return _write(self, data)


def flush_output() -> None:
    """Called after a task that printed: what it left without a newline is in a buffer."""
    unflushed[:] = bytes(2)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # replaced by the user, closed, or read by nobody any more


def _watch_output() -> None:
    for number, name in enumerate(("stdout", "stderr")):
        stream = getattr(sys, name)
        if not isinstance(getattr(stream, "buffer", None), io.BufferedWriter):
            continue  # PYTHONUNBUFFERED, or replaced: there is nothing of ours to flush
        watched = io.TextIOWrapper(
            _Output(number, stream.name),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=True,
            write_through=True,  # or text would wait above the buffer, unseen
        )
        watched.mode = "w"  # type: ignore[misc]
        setattr(sys, name, watched)
        setattr(sys, f"__{name}__", watched)


def main(socket_path: str, start_token: int) -> int:
    """Serves the daemon at `socket_path` until it says to end. Returns the exit code."""
    from skate import _skate

    return int(_skate.run_worker(socket_path, start_token) or 0)


def set_up(request: dict[str, Any]) -> None:
    """Makes this process look as the job's driver and environment want it: cwd, sys.path, sys.argv."""
    global failure
    cwd = request.get("cwd")
    if cwd:
        try:
            os.chdir(cwd)
        except OSError as error:
            failure = WorkingDirectoryError(
                f"a worker cannot enter {cwd!r}, the working directory of the driver: {error.strerror}. Make it "
                "accessible again, start the driver in another one, or name one by "
                "runtime_env={'working_dir': ...}."
            )
    paths = [path for path in request.get("sys_path") or [] if isinstance(path, str)]
    if paths:
        sys.path[:] = paths + [path for path in sys.path if path not in paths]
    argv = request.get("argv")
    if argv:
        sys.argv[:] = argv
    # What the user calls __main__ is in the driver; pickled by value it lands in an empty module.
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _watch_output()


def run_and_exit(entry: Callable[[str, int], int], request: dict[str, Any]) -> None:
    """Runs `entry` and ends the process without unwinding into whoever called."""
    code = 1
    try:
        set_up(request)
        code = entry(request["socket"], request["token"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1  # nobody reads it any more
    os._exit(code & 0xFF)


if __name__ == "__main__":
    from skate import _worker_main  # not the copy called __main__

    _worker_main.run_and_exit(_worker_main.main, json.loads(sys.argv[1]))
