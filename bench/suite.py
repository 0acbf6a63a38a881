"""Runs benchmark lines on one system and writes a JSON record for each.

python suite.py --system ray --lines tasks_sync,put_small
"""

import argparse
import importlib
import json
import os
import sys
import time
import traceback
import uuid
from statistics import median

import processes
from lines import RATE_LINES
from oneshot import ONE_SHOTS


class Options(argparse.Namespace):
    def load(self):
        return importlib.import_module(self.system)


def calibrate(step, warmup_s):
    """Runs for the warm-up time; returns how many calls make about a twentieth of a second."""
    if step.warm is not None:
        step.warm()
        return 1
    calls, start = 0, time.perf_counter()
    while True:
        step.run()
        calls += 1
        took = time.perf_counter() - start
        if took >= warmup_s:
            return max(1, int(calls / took / 20))


def measure(step, options):
    """Windows of calls per second, with the processor time that all processes spent in them."""
    calls_per_look = calibrate(step, options.warmup_s)
    run, windows, cpu, ops, elapsed = step.run, [], 0.0, 0.0, 0.0
    ledger = processes.Ledger()
    line_start = time.perf_counter()
    for _ in range(options.windows):
        calls, cpu_before, start = 0, ledger.total_s(), time.perf_counter()
        while True:
            for _ in range(calls_per_look):
                run()
            calls += calls_per_look
            took = time.perf_counter() - start
            if took >= options.window_s:
                break
        cpu += ledger.total_s() - cpu_before
        ops += calls * step.ops
        elapsed += took
        windows.append(calls * step.ops / took)
        step.verify()
        if time.perf_counter() - line_start > options.line_limit_s:
            break  # a call that takes many windows: what is measured is enough
    return {"value": median(windows), "windows": windows, "ops": ops, "cpu_s": cpu, "elapsed_s": elapsed}


def end(api, actors):
    for actor in actors:
        try:
            api.kill(actor)
        except Exception as e:
            print(f"could not end an actor: {e!r}", file=sys.stderr)


def rate_lines(names, options, emit):
    api = options.load()
    running_with = None
    for name in names:
        line = RATE_LINES[name]
        if running_with != line.init:
            if running_with is not None:
                api.shutdown()
            api.init(**line.init)
            running_with = line.init
        step = None
        try:
            step = line.setup(api)
            emit(line, measure(step, options))
        except Exception as e:
            traceback.print_exc()
            emit(line, {"error": f"{type(e).__name__}: {e}"[:500]})
        finally:
            if step is not None:
                end(api, step.keep)
    if running_with is not None:
        api.shutdown()


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--system", required=True, choices=["ray", "skate"])
    p.add_argument("--lines", help="comma-separated; all by default")
    p.add_argument("--list", action="store_true", help="names the lines and ends")
    p.add_argument("--warmup-s", type=float, default=1)
    p.add_argument("--windows", type=int, default=3)
    p.add_argument("--window-s", type=float, default=1)
    p.add_argument("--line-limit-s", type=float, default=20, help="no new window after this")
    p.add_argument("--queued", type=int, default=100_000)
    p.add_argument("--settle-s", type=float, default=4)
    p.add_argument("--idle-s", type=float, default=10)
    p.add_argument("--json", help="file to which records are appended, one a line")
    options = p.parse_args(argv, namespace=Options())
    names = [n for n in (options.lines or "").split(",") if n] or [*RATE_LINES, *ONE_SHOTS]
    unknown = [n for n in names if n not in RATE_LINES and n not in ONE_SHOTS]
    if unknown:
        p.error(f"no such line: {', '.join(unknown)}; --list names them")
    return options, names


def main(argv=None):
    options, names = parse(argv)
    if options.list:
        for line in [*RATE_LINES.values(), *ONE_SHOTS.values()]:
            print(f"{line.name:20} {line.title} ({line.unit})")
        return 0
    if processes.MARK not in os.environ:
        # The mark must be in the initial environment, which is what /proc shows.
        os.environ[processes.MARK] = uuid.uuid4().hex
        os.execv(sys.executable, [sys.executable, *sys.argv])
    failed = False

    def emit(line, figures):
        nonlocal failed
        failed |= "error" in figures
        record = {"line": line.name, "system": options.system, "unit": line.unit, **figures}
        text = json.dumps(record)
        print(text, flush=True)
        if options.json:
            with open(options.json, "a") as f:
                f.write(text + "\n")

    rate_lines([n for n in names if n in RATE_LINES], options, emit)
    for name in names:
        if name in ONE_SHOTS:
            line = ONE_SHOTS[name]
            try:
                emit(line, line.measure(options))
            except Exception as e:
                traceback.print_exc()
                emit(line, {"error": f"{type(e).__name__}: {e}"[:500]})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
