"""The floors of this machine: floors.cc, and what bare Python costs. Prints one JSON object."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from statistics import median


def native(folder):
    """Builds and runs the C++ probe; without a compiler there is none of its figures."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        print("no C++ compiler: memory and wake-up floors are not measured", file=sys.stderr)
        return {}
    here = os.path.dirname(os.path.abspath(__file__))
    binary = os.path.join(folder, "floors")
    subprocess.run([compiler, "-std=c++20", "-O2", "-o", binary, os.path.join(here, "floors.cc")], check=True)
    return json.loads(subprocess.run([binary], capture_output=True, check=True).stdout)


def each_us(call, n=20_000):
    """Microseconds of one call: the median of five loops."""
    runs = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(n):
            call()
        runs.append((time.perf_counter() - start) / n * 1e6)
    return median(runs)


def split_1k_list_us():
    """Takes a list of 1,000 apart, one at a time, as repeated waits do: makes both lists 1,000 times."""
    thousand = [bytes([i % 256]) * 64 for i in range(1_000)]

    def split():
        rest = thousand
        for _ in range(1_000):
            _first, rest = rest[:1], rest[1:]

    return each_us(split, 100)


def start_python_ms():
    runs = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-S", "-c", ""], check=True)
        runs.append((time.perf_counter() - start) * 1e3)
    return median(runs)


def fork_ms():
    """Fork of this interpreter, with NumPy in it, until the child is gone again."""
    import numpy  # noqa: F401

    runs = []
    for _ in range(20):
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        runs.append((time.perf_counter() - start) * 1e3)
    return median(runs)


def main():
    def nothing():
        return b"ok"

    ten_thousand = [b"x" * 28] * 10_000
    listed = pickle.dumps([bytes([i % 256]) * 28 for i in range(10_000)], protocol=5)
    with tempfile.TemporaryDirectory() as folder:
        figures = native(folder)
    figures |= {
        "python_call_us": each_us(nothing),
        "pickle_ok_us": each_us(lambda: pickle.loads(pickle.dumps(b"ok", protocol=5))),
        "make_10k_ids_us": each_us(lambda: pickle.loads(listed), 50),
        "copy_10k_list_us": each_us(lambda: list(ten_thousand), 50),
        "split_1k_list_us": split_1k_list_us(),
        "start_python_ms": start_python_ms(),
        "fork_ms": fork_ms(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
