"""Runs the benchmark on Ray and on Skate in turn, and writes RESULTS.md.

    python bench/run.py                          # all of it; within an hour
    python bench/run.py --lines tasks_sync,idle  # some of it

Ray gets a virtual environment of its own (.bench-venv) unless RAY_PYTHON names an interpreter that
has it. Each group of lines is a fresh process on a fresh cluster, for Ray and then for Skate, in the
other order in the next round.
"""

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
import uuid

import processes
import report
from lines import RATE_LINES
from oneshot import ONE_SHOTS

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
RAY_VERSION = "2.60.0"
PR_SET_CHILD_SUBREAPER = 36


def ray_python():
    """An interpreter with Ray: RAY_PYTHON, or a virtual environment made on first use."""
    given = os.environ.get("RAY_PYTHON")
    if given:
        return given
    venv = os.path.join(ROOT, ".bench-venv")
    python = os.path.join(venv, "bin", "python")
    probe = [python, "-c", f"import ray, numpy; assert ray.__version__ == {RAY_VERSION!r}"]
    if os.path.exists(python) and subprocess.run(probe, capture_output=True).returncode == 0:
        return python
    numpy = versions(skate_python(), "numpy")["numpy"]
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", f"ray=={RAY_VERSION}", f"numpy=={numpy}"], check=True
    )
    return python


def skate_python():
    return os.environ.get("SKATE_PYTHON") or os.path.join(ROOT, ".venv", "bin", "python")


def versions(python, *modules):
    code = (
        "import importlib, json, platform, sys; print(json.dumps({'python': platform.python_version(), "
        "**{m: importlib.import_module(m).__version__ for m in sys.argv[1:]}}))"
    )
    done = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def reap(child, deadline):
    """Waits for `child`, and for every orphan that falls to us, so that its time is counted."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.02)


def end_leftovers(mark):
    """Ends what outlived its driver; returns how many processes that were."""
    deadline, left = time.monotonic() + 5, processes.members(mark, os.getpid())
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = processes.members(mark, os.getpid())
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    return len(left)


class Run:
    def __init__(self, options):
        self.options = options
        self.pythons = {}
        if "ray" in options.systems:
            self.pythons["ray"] = ray_python()
        if "skate" in options.systems:
            self.pythons["skate"] = skate_python()
        os.makedirs(os.path.dirname(os.path.abspath(options.records)), exist_ok=True)
        open(options.records, "w").close()

    def record(self, kind, **fields):
        with open(self.options.records, "a") as f:
            f.write(json.dumps({"kind": kind, **fields}) + "\n")

    def header(self):
        o = self.options
        seen = {s: versions(p, s, "numpy") for s, p in self.pythons.items()}
        with open("/proc/cpuinfo") as f:
            model = next((x.split(":")[1].strip() for x in f if x.startswith("model name")), "unknown")
        with open("/proc/meminfo") as f:
            memory_gib = int(f.readline().split()[1]) / 2**20
        self.record(
            "run",
            date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            machine=f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, Linux {platform.release()}",
            versions={s: v[s] for s, v in seen.items()},
            python={s: v["python"] for s, v in seen.items()},
            numpy={s: v["numpy"] for s, v in seen.items()},
            rounds=o.rounds,
            warmup_s=o.warmup_s,
            windows=o.windows,
            window_s=o.window_s,
            load=" ".join(f"{x:.2f}" for x in os.getloadavg()),
        )

    def floors(self):
        done = subprocess.run(
            [next(iter(self.pythons.values())), os.path.join(HERE, "floors.py")],
            stdout=subprocess.PIPE,
            check=True,
        )
        self.record("floors", floors=json.loads(done.stdout))

    def suite(self, system, names, queued, records, limit_s=None):
        """One fresh process of the suite. A line that leaves no record gets one with the error."""
        o, mark = self.options, uuid.uuid4().hex
        command = [self.pythons[system], os.path.join(HERE, "suite.py"), "--system", system]
        command += ["--lines", ",".join(names), "--json", records, "--queued", str(queued)]
        for name in ("warmup_s", "windows", "window_s", "idle_s"):
            command += ["--" + name.replace("_", "-"), str(getattr(o, name))]
        env = {**os.environ, processes.MARK: mark, processes.REAPER: str(os.getpid())}
        env["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere during a measurement
        before = set(self.recorded(records, system))
        print(f"  {system:5} {', '.join(names)}", flush=True)
        with open(o.log, "ab") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
            code = reap(child.pid, time.monotonic() + (limit_s or o.limit_s * max(1, len(names) / 4)))
            child.returncode = code
        left = end_leftovers(mark)
        if left:
            print(f"        {left} processes outlived their driver", flush=True)
        new = [x for x in self.recorded(records, system) if x not in before]
        done = {json.loads(x)["line"] for x in new}
        with open(records, "a") as f:
            for name in names:
                if name not in done:
                    error = f"the suite ended with {code} before this line; see {o.log}"
                    f.write(json.dumps({"line": name, "system": system, "error": error}) + "\n")

    @staticmethod
    def recorded(path, system):
        if not os.path.exists(path):
            return []
        with open(path) as f:
            return [x for x in f if json.loads(x).get("system") == system]

    def all(self):
        o = self.options
        self.header()
        for round_number in range(o.rounds):
            order = list(self.pythons)
            if round_number % 2:
                order.reverse()
            print(f"round {round_number + 1} of {o.rounds}", flush=True)
            self.floors()
            for names in groups(o.names):
                for system in order:
                    self.suite(system, names, o.queued, o.records)
            self.write()
        if "queued" in o.names and o.queued_once:
            print(f"{o.queued_once:,} tasks queued at once", flush=True)
            for system in self.pythons:
                path = o.records + f".once.{system}"
                if os.path.exists(path):
                    os.remove(path)
                self.suite(system, ["queued"], o.queued_once, path, limit_s=3 * o.limit_s)
                for text in self.recorded(path, system):
                    self.record("queued_once", **{**json.loads(text), "queued": o.queued_once})
                os.remove(path)
        return self.write()

    def write(self):
        text = report.report(self.options.records)
        with open(self.options.out, "w") as f:
            f.write(text)
        return text


def groups(names):
    """Rate lines of one group share a process; the others have one each."""
    grouped = {}
    for name in names:
        key = RATE_LINES[name].group if name in RATE_LINES else name
        grouped.setdefault(key, []).append(name)
    return list(grouped.values())


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lines", help="comma-separated; all by default (suite.py --list names them)")
    p.add_argument("--systems", default="ray,skate")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--warmup-s", type=float, default=1)
    p.add_argument("--windows", type=int, default=3)
    p.add_argument("--window-s", type=float, default=1)
    p.add_argument("--idle-s", type=float, default=10)
    p.add_argument("--queued", type=int, default=100_000, help="tasks queued in each round")
    p.add_argument("--queued-once", type=int, default=1_000_000, help="and once at the end; 0: not")
    p.add_argument("--limit-s", type=float, default=900, help="a process of four lines ends after this")
    p.add_argument("--out", default=os.path.join(HERE, "RESULTS.md"))
    p.add_argument("--records", default=os.path.join(ROOT, ".bench", "records.jsonl"))
    p.add_argument("--log", default=os.path.join(ROOT, ".bench", "suite.log"))
    o = p.parse_args()
    o.systems = o.systems.split(",")
    o.names = [n for n in (o.lines or "").split(",") if n] or [*RATE_LINES, *ONE_SHOTS]
    unknown = [n for n in o.names if n not in RATE_LINES and n not in ONE_SHOTS]
    if unknown:
        p.error(f"no such line: {', '.join(unknown)}")
    return o


def compile_skate():
    """What pip does when it installs a wheel, and has done for Ray; here the package lies in its source tree."""
    where = [skate_python(), "-c", "import skate; print(skate.__path__[0])"]
    package = subprocess.run(where, capture_output=True, check=True, text=True).stdout.strip()
    subprocess.run([skate_python(), "-m", "compileall", "-q", package], check=True)


def main():
    options = parse()
    compile_skate()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        print("cannot become a subreaper: time of orphans is not counted", file=sys.stderr)
    start = time.monotonic()
    text = Run(options).all()
    print(text)
    print(f"{(time.monotonic() - start) / 60:.0f} minutes; {options.out}")
    return 1 if "| miss |" in text or "error:" in text else 0


if __name__ == "__main__":
    sys.exit(main())
