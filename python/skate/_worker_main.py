"""The entry point of a worker process.

A forked worker gets here by ``main()`` from the fork server, a spawned one by
``python -m skate._worker_main SETUP``, where SETUP is JSON with the same fields as a fork request.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any


def main(socket_path: str, start_token: int) -> int:
    """Serves the daemon at `socket_path` until it says to end. Returns the exit code."""
    from skate import _skate

    return int(_skate.run_worker(socket_path, start_token) or 0)


def set_up(request: dict[str, Any]) -> None:
    """Makes this process look as the job's driver and environment want it: cwd, sys.path, sys.argv."""
    cwd = request.get("cwd")
    if cwd:
        try:
            os.chdir(cwd)
        except OSError as error:
            print(f"skate: the worker stays in {os.getcwd()}: cannot enter {cwd}: {error}", file=sys.stderr)
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
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)


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
    from skate._worker_main import main as _entry  # not the copy called __main__

    run_and_exit(_entry, json.loads(sys.argv[1]))
