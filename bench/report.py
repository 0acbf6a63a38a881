"""Turns the records of a run into RESULTS.md: medians, spread, ratios against the targets.

python report.py records.jsonl RESULTS.md
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from lines import RATE_LINES
from oneshot import ONE_SHOTS

MEMCPY = ("memcpy_warm_shared_gb_s", "memcpy_warm_4k_gb_s", "memcpy_warm_huge_gb_s")
WAKES = ("futex_round_trip_us", "eventfd_round_trip_us", "socket_round_trip_us")


def warm_memcpy(floors):
    return max(floors[name] for name in MEMCPY)


def wakes_per_s(floors):
    return 1e6 / min(floors[name] for name in WAKES)


@dataclass(frozen=True)
class Target:
    """What one line has to reach: a ratio to Ray, and a bound of Skate's own where there is one."""

    line: str
    title: str
    at_least: float
    figure: str = "value"
    less_is_better: bool = False
    unit: str = ""
    bound: Callable | None = None  # (skate's figure, floors) -> reached?
    bound_text: str = ""
    floor: Callable | None = None  # floors -> the figure that the machine allows
    floor_text: str = ""


SYNC_FLOOR = {"floor": wakes_per_s, "floor_text": "one kernel wake there and back"}

TARGETS = [
    Target("tasks_sync", "tasks sync", 20, **SYNC_FLOOR),
    Target("tasks_async", "tasks async", 25),
    Target("tasks_batch", "tasks and get batch", 25),
    Target("multi_tasks", "multi-client tasks async", 25),
    Target("actor_sync", "1:1 actor calls sync", 15, **SYNC_FLOOR),
    Target("actor_async", "1:1 actor calls async", 20),
    Target("actor_1n", "1:n actor calls async", 20),
    Target("actor_nn", "n:n actor calls async", 20),
    Target("actor_nn_arg", "n:n actor calls with a ref argument", 30),
    Target("async_actor_sync", "1:1 async-actor calls sync", 8, **SYNC_FLOOR),
    Target("async_actor_async", "1:1 async-actor calls async", 15),
    Target("queued", "tasks queued, then drained", 15),
    Target(
        "tasks_async",
        "CPU-seconds per 1M tasks",
        10,
        figure="cpu_s_per_million",
        less_is_better=True,
        unit="s",
    ),
    Target("put_small", "small put", 60),
    Target("get_small", "small get", 30),
    Target(
        "put_gb",
        "put, one client",
        5,
        bound=lambda value, floors: value >= 0.8 * warm_memcpy(floors),
        bound_text="80 % of a warm memcpy",
        floor=warm_memcpy,
        floor_text="warm memcpy",
    ),
    Target("multi_put_gb", "multi-client put", 1.5, floor=warm_memcpy, floor_text="warm memcpy"),
    Target("wait_1k", "submit 1k tasks, wait on each", 20),
    Target(
        "wait_finished_1k",
        "1k waits on finished refs",
        50,
        floor=lambda floors: 1e6 / floors["split_1k_list_us"],
        floor_text="making the two lists of each wait",
    ),
    Target(
        "get_10k_refs",
        "get of an object holding 10k refs",
        30,
        floor=lambda floors: 1e6 / floors["make_10k_ids_us"],
        floor_text="unpickling 10,000 ids",
    ),
    Target(
        "init_first_result",
        "init() to first result",
        15,
        less_is_better=True,
        bound=lambda value, floors: value < 0.4,
        bound_text="under 0.4 s",
    ),
    Target(
        "actors_100",
        "100 actors created and called",
        40,
        less_is_better=True,
        floor=lambda floors: 100 * floors["fork_ms"] / 1e3,
        floor_text="100 forks one after the other",
    ),
    Target(
        "import_time",
        "import",
        5,
        less_is_better=True,
        bound=lambda value, floors: value < 0.1,
        bound_text="under 0.1 s",
    ),
    Target("idle", "idle cluster: memory", 15, less_is_better=True),
    Target(
        "idle",
        "idle cluster: CPU",
        0,
        figure="idle_cpu_percent",
        less_is_better=True,
        unit="% of a core",
        bound=lambda value, floors: value < 1,
        bound_text="under 1 %",
    ),
]


def load(path):
    """(line, system) -> records, one for each round; and the run's other records by kind."""
    lines, others = defaultdict(list), defaultdict(list)
    with open(path) as f:
        for text in f:
            record = json.loads(text)
            if "kind" not in record:
                if record.get("cpu_s") is not None and record.get("ops"):
                    record["cpu_s_per_million"] = 1e6 * record["cpu_s"] / record["ops"]
                lines[record["line"], record["system"]].append(record)
            else:
                others[record["kind"]].append(record)
    return lines, others


def figures(records, figure):
    return [r[figure] for r in records if r.get(figure) is not None and "error" not in r]


def show(value):
    if value is None or math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def middle(values):
    return median(values) if values else None


def spread(records, figure):
    """Least and greatest of all windows (of all rounds, where a round is one figure)."""
    values = []
    for r in records:
        if "error" not in r and r.get(figure) is not None:
            values += r["windows"] if figure == "value" and r.get("windows") else [r[figure]]
    return f"{show(min(values))} - {show(max(values))}" if values else "-"


def ratio(ray, skate, less_is_better):
    if not ray or not skate:
        return None
    return ray / skate if less_is_better else skate / ray


def unit_of(target):
    line = RATE_LINES.get(target.line) or ONE_SHOTS.get(target.line)
    return target.unit or line.unit


def verdict(target, times, skate, floors):
    """pass; near the floor (within two times of what the machine allows); miss; or not measured."""
    if skate is None:
        return "not measured"
    bound = target.bound is None
    if target.bound is not None:
        try:
            bound = target.bound(skate, floors)
        except (KeyError, ValueError):
            return "floor not measured"
    if target.at_least and times is None:
        return "no ratio"
    if bound and (not target.at_least or times >= target.at_least):
        return "pass"
    if target.floor is not None and bound:
        try:
            limit = target.floor(floors)
        except (KeyError, ValueError):
            return "miss"
        if (skate <= 2 * limit) if target.less_is_better else (skate >= limit / 2):
            return "near the floor"
    return "miss"


def target_rows(lines, floors):
    for t in TARGETS:
        ray = middle(figures(lines[t.line, "ray"], t.figure))
        skate = middle(figures(lines[t.line, "skate"], t.figure))
        times = ratio(ray, skate, t.less_is_better)
        wanted = ", ".join(x for x in (f"{t.at_least:g}x" if t.at_least else "", t.bound_text) if x)
        yield t, ray, skate, times, wanted, verdict(t, times, skate, floors)


def table(header, rows):
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def extra(lines, line, figure, scale=1.0):
    return [
        show(v * scale) if (v := middle(figures(lines[line, s], figure))) is not None else "-"
        for s in ("ray", "skate")
    ]


def report(path):
    lines, others = load(path)
    run = others["run"][-1]
    floor_records = [r["floors"] for r in others["floors"]]
    floors = {
        key: median([r[key] for r in floor_records if key in r])
        for key in {key for r in floor_records for key in r}
    }
    out = ["# Benchmark results", ""]
    out += [
        f"Written by `bench/run.py` on {run['date']}; do not edit.",
        "",
        f"- machine: {run['machine']}",
        f"- Ray {run['versions'].get('ray', 'not run')}, Skate {run['versions'].get('skate', 'not run')}, "
        f"Python {run['python'].get('ray', '-')} / {run['python'].get('skate', '-')}, "
        f"NumPy {run['numpy'].get('ray', '-')} / {run['numpy'].get('skate', '-')}",
        f"- {run['rounds']} rounds, the systems in turn; warm-up {run['warmup_s']:g} s, "
        f"{run['windows']} windows of {run['window_s']:g} s; load average before: {run['load']}",
        "- a figure is the median over rounds of each round's median window; the spread is the least and "
        "the greatest window of all rounds; CPU-seconds are over driver, daemons and workers",
        "",
        "## Against the targets",
        "",
    ]
    rows, passed, measured = [], 0, 0
    for t, ray, skate, times, wanted, result in target_rows(lines, floors):
        measured += result not in ("not measured", "no ratio")
        passed += result in ("pass", "near the floor")
        rows.append(
            [
                f"{t.title} ({unit_of(t)})",
                show(ray) if ray is not None else "-",
                show(skate) if skate is not None else "-",
                f"{times:.1f}x" if times is not None else "-",
                wanted,
                result,
            ]
        )
    out += table(["line", "Ray", "Skate", "ratio", "target", "result"], rows)
    out += [
        f"{passed} of {len(TARGETS)} targets are reached or near the floor; {measured} were measured.",
        "",
    ]
    out += ["## All lines", ""]
    rows = []
    for line in [*RATE_LINES.values(), *ONE_SHOTS.values()]:
        row = [f"{line.title} ({line.unit})"]
        seen = False
        for system in ("ray", "skate"):
            records = lines[line.name, system]
            errors = [r["error"] for r in records if "error" in r]
            seen |= bool(records)
            value = middle(figures(records, "value"))
            cpu = None if line.unit == "GB/s" else middle(figures(records, "cpu_s_per_million"))
            row += [
                f"error: {errors[0][:80]}".replace("|", "/") if errors else show(value),
                spread(records, "value"),
                show(cpu) if cpu is not None else "-",
            ]
        if seen:
            rows.append(row)
    out += table(["line", "Ray", "spread", "CPU-s per 1M", "Skate", "spread", "CPU-s per 1M"], rows)
    out += ["## Beside the lines", ""]
    rows = [
        ["queued tasks: submitted per second", *extra(lines, "queued", "submit_per_s")],
        ["queued tasks: drained per second", *extra(lines, "queued", "drain_per_s")],
        ["queued tasks: bytes held for each", *extra(lines, "queued", "bytes_per_queued_task")],
        ["queued tasks: driver's peak (MiB)", *extra(lines, "queued", "driver_peak_rss", 2**-20)],
        ["idle: shared memory (MiB)", *extra(lines, "idle", "shared_mib")],
        ["idle: processes besides the driver", *extra(lines, "idle", "processes")],
        ["idle: CPU (% of a core)", *extra(lines, "idle", "idle_cpu_percent")],
        ["100 actors: CPU-seconds", *extra(lines, "actors_100", "cpu_s")],
    ]
    out += table(["figure", "Ray", "Skate"], rows)
    for record in others["queued_once"]:
        if "error" in record:
            out.append(f"- {record['system']}, {record['queued']:,} queued: {record['error']}")
        else:
            out.append(
                f"- {record['system']}, {record['queued']:,} tasks queued at once: "
                f"{show(record['value'])} /s (submitted {show(record['submit_per_s'])} /s, drained "
                f"{show(record['drain_per_s'])} /s), {show(record['bytes_per_queued_task'])} bytes held for "
                f"each, driver's peak {show(record['driver_peak_rss'] / 2**20)} MiB, "
                f"{show(record['cpu_s'])} CPU-seconds"
            )
    out += ["", "## Floors of the machine, in the same run", ""]
    out += table(
        ["floor", "median", "spread"],
        [
            [
                key.replace("_", " "),
                show(floors[key]),
                f"{show(min(v))} - {show(max(v))}"
                if (v := [r[key] for r in floor_records if key in r])
                else "-",
            ]
            for key in sorted(floors)
        ],
    )
    for t in TARGETS:
        skate = middle(figures(lines[t.line, "skate"], t.figure))
        if t.floor is None or skate is None:
            continue
        try:
            limit = t.floor(floors)
        except (KeyError, ValueError):
            continue
        share = limit / skate if t.less_is_better else skate / limit
        out.append(f"- {t.title}: {100 * share:.0f} % of {t.floor_text} ({show(limit)} {unit_of(t)})")
    return "\n".join(out).rstrip() + "\n"


def main():
    records, out = sys.argv[1:3]
    text = report(records)
    with open(out, "w") as f:
        f.write(text)
    print(text)


if __name__ == "__main__":
    main()
