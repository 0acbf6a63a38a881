"""Processor time and memory of everything that one driver has started, read from /proc.

A process belongs to the run if its environment carries the run's mark, if it descends from one that
does (setting a process title may overwrite the environment), or from the reaper: run.py is a
subreaper, so orphans fall to it.
"""

import os
from dataclasses import dataclass

MARK = "BENCH_RUN"
REAPER = "BENCH_REAPER"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def members(mark=None, reaper=None):
    """Pids of the run's living processes, the driver included, the reaper not."""
    wanted = f"{MARK}={mark or os.environ[MARK]}".encode()
    reaper = int(reaper or os.environ.get(REAPER) or 0)
    found, children = [], {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            with open(f"/proc/{pid}/stat") as f:
                state, parent = f.read().rpartition(")")[2].split()[:2]
            if state == "Z":
                continue
            children.setdefault(int(parent), []).append(pid)
            with open(f"/proc/{pid}/environ", "rb") as f:
                if wanted in f.read().split(b"\0"):
                    found.append(pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    seen, queue = set(), found + (children.get(reaper, []) if reaper else [])
    while queue:
        pid = queue.pop()
        if pid not in seen and pid != reaper:
            seen.add(pid)
            queue += children.get(pid, [])
    return sorted(seen)


@dataclass
class _Entry:
    parent: int
    own_s: float
    children_s: float  # of children that it has waited for


def _read(pid):
    """((pid, start time), entry) of a living process, or None."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    user, system, children_user, children_system = (int(x) / TICKS_PER_S for x in fields[11:15])
    entry = _Entry(int(fields[1]), user + system, children_user + children_system)
    return (pid, fields[19]), entry


class Ledger:
    """Processor time of the run, one account for each process, brought up to date by `total_s`.

    A process that vanishes keeps what was last seen of it. What its parent then gets for having
    waited is counted only beyond that: the rest of its life, and children that came and went between
    two looks. `without` names processes whose own time does not count (the driver's, say).
    """

    def __init__(self, without=()):
        self.without = set(without)
        self.living = {}
        self.gone_s = 0.0

    def total_s(self):
        reaper = int(os.environ.get(REAPER) or 0)
        now = {}
        for pid in [*members(), *([reaper] if reaper else [])]:
            read = _read(pid)
            if read is not None:
                now[read[0]] = read[1]
        pids = {pid for pid, _ in now}
        seen_before = {}  # parent -> seconds already counted of children that have vanished
        for key, entry in self.living.items():
            if key in now:
                continue
            self.gone_s += self._own(key, entry)
            parent = entry.parent if entry.parent in pids else reaper
            counted = entry.own_s + entry.children_s
            seen_before[parent] = seen_before.get(parent, 0.0) + counted
        for key, entry in now.items():
            before = self.living[key].children_s if key in self.living else 0.0
            grown = entry.children_s - before - seen_before.get(key[0], 0.0)
            self.gone_s += max(0.0, grown)
        self.living = now
        return self.gone_s + sum(self._own(key, entry) for key, entry in now.items())

    def _own(self, key, entry):
        hidden = key[0] in self.without or key[0] == int(os.environ.get(REAPER) or 0)
        return 0.0 if hidden else entry.own_s


@dataclass
class Memory:
    """Proportional set sizes in bytes; `shared` is the part in shared memory (the object store)."""

    private: int
    shared: int
    processes: int


def memory(without=()):
    private = shared = processes = 0
    for pid in members():
        if pid in without:
            continue
        try:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                fields = dict(line.split(":", 1) for line in f if ":" in line and "kB" in line)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        kib = {key.strip(): int(value.split()[0]) for key, value in fields.items()}
        if "Pss" not in kib:
            continue
        processes += 1
        shared += kib.get("Pss_Shmem", 0) * 1024
        private += (kib["Pss"] - kib.get("Pss_Shmem", 0)) * 1024
    return Memory(private, shared, processes)


def peak_rss(pid="self"):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0
