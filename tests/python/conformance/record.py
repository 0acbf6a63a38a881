"""Keeps the record of how the corpus ends on real Ray, and compares another system with it.

python record.py                    # all files, with a Python that has Ray: writes the record
python record.py test_wait.py       # one file, or file::test: the rest of the record stays
python record.py --compare          # with a Python that has Skate: what ends otherwise?
"""

import argparse
import json
import os
import platform
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
RECORD = os.path.join(HERE, "agreed.json")
PAGE = os.path.join(HERE, "AGREED.md")


class Outcomes:
    """A pytest plugin: test id -> passed, failed or skipped; error if it did not get to run."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("conformance/")[2]
        if report.when == "call" or report.outcome == "skipped":
            self.of[name] = report.outcome
        elif report.outcome == "failed":
            self.of[name] = "error" if report.when == "setup" else "failed"


def run(files, timeout=None):
    outcomes = Outcomes()
    paths = [os.path.join(HERE, f) for f in files] or [HERE]
    slow = ["--timeout", timeout] if timeout else []
    arguments = ["-q", "-p", "no:cacheprovider", "--tb=short", *slow, *paths]
    code = pytest.main(arguments, plugins=[outcomes])
    return outcomes.of, code


def load():
    if not os.path.exists(RECORD):
        return {"tests": {}}
    with open(RECORD) as f:
        return json.load(f)


def file_of(name):
    return name.partition("::")[0]


def by_file(tests):
    counts = {}
    for name, outcome in tests.items():
        file = file_of(name)
        counts.setdefault(file, {}).setdefault(outcome, 0)
        counts[file][outcome] += 1
    return counts


def write(files, outcomes):
    import ray

    if not hasattr(ray, "_raylet"):
        sys.exit("the record is of real Ray, and this is not: use --compare")
    # A test whose cluster did not start says nothing about Ray: what is known of it stays.
    unknown = {n for n, o in outcomes.items() if o == "error"}
    whole = {f for f in files if "::" not in f}
    kept = {
        n: o
        for n, o in load()["tests"].items()
        if n in unknown or (files and file_of(n) not in whole and file_of(n) in os.listdir(HERE))
    }
    outcomes = {n: o for n, o in outcomes.items() if n not in unknown}
    tests = dict(sorted({**kept, **outcomes}.items()))
    record = {
        "system": f"Ray {ray.__version__}",
        "python": platform.python_version(),
        "tests": tests,
    }
    with open(RECORD, "w") as f:
        json.dump(record, f, indent=0)
        f.write("\n")
    lines = [
        "# What real Ray does",
        "",
        f"Every test of this folder was run on {record['system']} (Python {record['python']}), not all in",
        "one run; the outcome of each is in `agreed.json`. A behaviour in which Skate differs on",
        "purpose is not asserted here. `record.py --compare` runs the same tests on the installed",
        "system and lists what ends otherwise.",
        "",
        "| file | passed | failed | skipped |",
        "|---|---|---|---|",
    ]
    outcomes_shown = ("passed", "failed", "skipped")
    for file, counts in sorted(by_file(tests).items()):
        lines.append(f"| {file} | " + " | ".join(str(counts.get(k, 0)) for k in outcomes_shown) + " |")
    totals = [list(tests.values()).count(k) for k in outcomes_shown]
    lines.append("| all | " + " | ".join(str(n) for n in totals) + " |")
    with open(PAGE, "w") as f:
        f.write("\n".join(lines) + "\n")


def compare(files, outcomes):
    expected = load()["tests"]
    wrong = 0
    for name in sorted({**expected, **outcomes}):
        if files and file_of(name) not in files and name not in files:
            continue
        then, now = expected.get(name, "not recorded"), outcomes.get(name, "not run")
        if then != now:
            wrong += 1
            print(f"{name}: {then} on Ray, {now} here")
    print(f"{wrong} of {len(expected)} recorded behaviours differ" if wrong else "no difference")
    return 1 if wrong else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*")
    p.add_argument("--compare", action="store_true")
    p.add_argument("--timeout", help="seconds for each test, on a slow machine")
    options = p.parse_args()
    outcomes, code = run(options.files, options.timeout)
    if options.compare:
        return compare(options.files, outcomes)
    write(options.files, outcomes)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
