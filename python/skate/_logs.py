"""Prints the workers' output at the driver.

Each line is prefixed by who wrote it. A line that several workers write within a few seconds is shown
once, and then how often it was repeated; one that only one worker writes is always shown. Above a rate,
and when the end may wait no longer, lines are left out here (the files have them), and a notice says how
many.
"""

from __future__ import annotations

import collections
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from skate import _config, _skate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LINES_PER_SECOND_MAX = 10_000
_PATTERNS_MAX = 10_000
_BLOCKED_S_MAX = 5.0
_COLORS = ("\033[36m", "\033[35m", "\033[32m", "\033[33m", "\033[34m")
_RESET = "\033[0m"


class _Repeated:
    """A line whose repetitions are being counted."""

    __slots__ = ("until", "source", "count", "last")

    def __init__(self, until: float, source: tuple[int, str]) -> None:
        self.until = until
        self.source = source
        self.count = 0
        self.last: tuple[int, str, bool, str] | None = None


class Deduplicator:
    """Pure: lines and the time in, lines to print out. A line is (pid, name, is_err, text)."""

    def __init__(self, window_s: float, allow: str | None = None, skip: str | None = None) -> None:
        self._window_s = window_s
        self._allow = re.compile(allow) if allow else None
        self._skip = re.compile(skip) if skip else None
        self._seen: collections.OrderedDict[str, _Repeated] = collections.OrderedDict()

    def add(self, line: tuple[int, str, bool, str], now: float) -> list[tuple[Any, ...]]:
        pid, name, _, text = line
        if self._skip is not None and self._skip.search(text):
            return []
        if self._allow is not None and self._allow.search(text):
            return [line]
        if not text.strip():
            return [line]
        key = _canonical(text)
        state = self._seen.get(key)
        if state is None:
            out = self._make_room()
            self._seen[key] = _Repeated(now + self._window_s, (pid, name))
            return [*out, line]
        if state.count == 0 and state.source == (pid, name):
            return [line]
        state.count += 1
        state.last = line
        return []

    def _make_room(self) -> list[tuple[Any, ...]]:
        if len(self._seen) < _PATTERNS_MAX:
            return []
        _, state = self._seen.popitem(last=False)
        return _summary(state)

    def due(self, now: float) -> list[tuple[Any, ...]]:
        """Summaries whose window is over. Windows open in order, so the first open one ends the search."""
        out: list[tuple[Any, ...]] = []
        while self._seen:
            state = next(iter(self._seen.values()))
            if state.until > now:
                break
            self._seen.popitem(last=False)
            out += _summary(state)
        return out

    def next_due(self) -> float | None:
        for state in self._seen.values():
            return state.until
        return None

    def flush(self) -> list[tuple[Any, ...]]:
        out = [line for state in self._seen.values() for line in _summary(state)]
        self._seen.clear()
        return out


def _summary(state: _Repeated) -> list[tuple[Any, ...]]:
    if state.last is None:
        return []
    pid, name, is_err, text = state.last
    if state.count == 1:
        return [state.last]
    return [(pid, name, is_err, text, f"[repeated {state.count}x across cluster]")]


def _canonical(text: str) -> str:
    """Lines that differ in numbers and addresses only count as the same."""
    return " ".join(word for word in text.split() if not any(c.isdigit() for c in word)) or text


class Printer:
    """The thread that prints. Owns the deduplicator."""

    def __init__(
        self,
        next_batch: Callable[[float | None], Any] | None = None,
        now: Callable[[], float] = time.monotonic,
        logs_dir: str = "",
        files_end_with_us: bool = False,
    ) -> None:
        self._logs_dir = logs_dir
        self._files_end_with_us = files_end_with_us
        self._until: float | None = None
        self._next_batch = next_batch or _skate.next_log_batch
        self._now = now
        self._dedup: Deduplicator | None = None
        if _config.env_flag("DEDUP_LOGS", True):
            self._dedup = Deduplicator(
                _config.env_float("DEDUP_LOGS_AGG_WINDOW_S", 5.0),
                _config.env("DEDUP_LOGS_ALLOW_REGEX"),
                _config.env("DEDUP_LOGS_SKIP_REGEX"),
            )
        self._second = 0
        self._shown = 0
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="skate-logs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, until: float, flush: Callable[[], bool]) -> None:
        """Waits till the last batch is printed. What is not by `until` is counted only.

        `flush` ends the batches; it says whether nothing is missing. The connection ends after this.
        """
        self._until = until
        is_whole = flush()
        # One who does not read what we print keeps the end waiting for no longer than this.
        self._thread.join(timeout=_BLOCKED_S_MAX)
        if not is_whole:
            text = "(skate) more worker output may be missing: the node did not send it in time\n"
            _print(sys.stderr, text)

    def _run(self) -> None:
        while True:
            batch = self._next_batch(self._wait_s())
            if batch is None:
                break
            self.take(batch)
        if self._dedup is not None:
            self._write(self._dedup.flush())
        self._notice()

    def _wait_s(self) -> float | None:
        due = self._dedup.next_due() if self._dedup is not None else None
        if self._left_out:
            due = min(due or float("inf"), self._second + 1)
        return None if due is None else max(0.0, due - self._now())

    def take(self, batch: Iterable[tuple[int, str, bool, bytes | None, int]]) -> None:
        now = self._now()
        if int(now) != self._second:
            self._notice()
        for pid, name, is_err, raw, dropped in batch:
            self._left_out += dropped
            if raw is None:
                continue
            line = (pid, name, is_err, raw.decode("utf-8", "replace").rstrip("\r\n"))
            if self._dedup is None:
                self._write([line])
            else:
                self._write(self._dedup.add(line, now))
        if self._dedup is not None:
            self._write(self._dedup.due(now))

    def _write(self, lines: list[tuple[Any, ...]]) -> None:
        for pid, name, is_err, text, *suffix in lines:
            if not self._within_rate():
                continue
            stream = sys.stderr if is_err else sys.stdout
            prefix, tail = f"({name} pid={pid})" if pid else f"({name})", " ".join(["", *suffix])
            if _is_terminal(stream):
                prefix = f"{_COLORS[pid % len(_COLORS)]}{prefix}{_RESET}"
            _print(stream, f"{prefix} {text}{tail}\n")

    def _within_rate(self) -> bool:
        now = self._now()
        if self._until is not None and now >= self._until:
            self._left_out += 1
            return False
        second = int(now)
        if second != self._second:
            self._notice()
            self._second, self._shown = second, 0
        if self._shown >= _LINES_PER_SECOND_MAX:
            self._left_out += 1
            return False
        self._shown += 1
        return True

    def _notice(self) -> None:
        if self._left_out:
            count, self._left_out = self._left_out, 0
            lines = "1 line of worker output was" if count == 1 else f"{count} lines of worker output were"
            at_end = self._until is not None and self._files_end_with_us
            where = (
                "their files end with the session" if at_end else f"the files in {self._logs_dir} have them"
            )
            _print(sys.stderr, f"(skate) {lines} not shown, for there were too many at a time; {where}\n")


def _is_terminal(stream: Any) -> bool:
    if _config.env("COLOR_PREFIX") == "1":
        return True
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False  # replaced, or closed


def _print(stream: Any, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except (AttributeError, OSError, ValueError):
        return  # None under pythonw, a closed pipe or a closed file: nobody reads it


def start_printer(logs_dir: str, files_end_with_us: bool) -> Printer:
    printer = Printer(logs_dir=logs_dir, files_end_with_us=files_end_with_us)
    printer.start()
    return printer
