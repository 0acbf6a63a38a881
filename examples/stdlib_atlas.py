"""An atlas of Python's standard library, drawn by tasks, actors and shared memory.

The input is the source tree of the running interpreter's own standard library, tests left out.

    sources --> parse_files tasks --> the facts of each file, streamed to this process
                      |
                      v               which module uses which name, and how often
                IndexShard actors --> one matrix of weights each, in the object store
                                              |
                compare_rows tasks <----------+  read the matrices in place, return similarities

Then the same functions (atlas_work.py) do the same work in a plain loop in this process. The two
answers must be equal to the last bit; the exit code is 1 if they are not.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atlas_work as work
import numpy as np
import skate

FILES_PER_TASK = 16
LINES_MIN = 100  # of a module that is worth comparing in the report

IndexShard = skate.remote(work.IndexShard)


@skate.remote(num_returns="streaming")
def parse_files(
    sources: list[work.Source], shards: list[skate.actor.ActorHandle]
) -> Iterator[work.ModuleFacts]:
    """Yields the facts of each file at once; the names go from here straight to the shards."""
    parts: list[work.Postings] = [{} for _ in shards]
    for source in sources:
        facts, names = work.parse_module(source)
        work.split_by_shard(source.module, names, parts)
        yield facts
    # Waiting for the shards makes the end of this stream mean that they have everything.
    skate.get([shard.add.remote(part) for shard, part in zip(shards, parts, strict=True)])


@dataclass
class Block:
    rows: slice
    columns: slice
    cosines: np.ndarray
    bytes_in_place: int  # of the matrices that the task read without copying them


@skate.remote
def compare_rows(matrix_refs: dict[str, list[skate.ObjectRef]], rows: slice, columns: slice) -> Block:
    """Refs inside an object stay refs; `get` maps the matrices, read-only, into this worker."""
    matrices = skate.get(matrix_refs["matrices"])
    bytes_in_place = sum(matrix.nbytes for matrix in matrices if not matrix.flags.owndata)
    return Block(rows, columns, work.cosines(matrices, rows, columns), bytes_in_place)


@dataclass
class Traffic:
    """What the program asked of Skate, by its own count."""

    tasks: int = 0
    actor_calls: int = 0
    objects: int = 0  # results of tasks and actor calls, and what was put
    bytes_stored: int = 0  # of matrices
    bytes_in_place: int = 0


def build_with_skate(sources: list[work.Source], shard_count: int, quiet: bool) -> tuple[work.Atlas, Traffic]:
    traffic = Traffic()
    shards = [IndexShard.remote() for _ in range(shard_count)]

    # Every n-th file to a task, which spreads the large files of one package.
    stream_count = math.ceil(len(sources) / FILES_PER_TASK)
    streams = [parse_files.remote(sources[i::stream_count], shards) for i in range(stream_count)]
    facts: dict[str, work.ModuleFacts] = {}
    with Progress("parse", len(sources), quiet) as progress:
        for fact in results_of(streams):
            facts[fact.module] = fact
            progress.step()

    modules = [source.module for source in sources]
    matrices = [shard.weights.remote(modules) for shard in shards]
    matrix_refs = skate.put({"matrices": matrices})
    blocks = work.blocks_of(len(modules))
    pending = [compare_rows.remote(matrix_refs, rows, columns) for rows, columns in blocks]
    similarity = np.empty((len(modules), len(modules)))
    with Progress("compare", len(blocks), quiet) as progress:
        while pending:
            ready, pending = skate.wait(pending)
            for block in skate.get(ready):
                work.place(similarity, block.rows, block.columns, block.cosines)
                traffic.bytes_stored += block.cosines.nbytes
                traffic.bytes_in_place += block.bytes_in_place
                progress.step()

    postings = work.merged(skate.get([shard.contents.remote() for shard in shards]))
    traffic.bytes_stored += sum(matrix.nbytes for matrix in skate.get(matrices))
    traffic.tasks = len(streams) + len(blocks)
    traffic.actor_calls = len(shards) * (len(streams) + 2)
    traffic.objects = len(sources) + len(blocks) + traffic.actor_calls + 1
    return work.Atlas([facts[module] for module in modules], postings, similarity), traffic


def results_of(streams: list[skate.ObjectRefGenerator]) -> Iterator[Any]:
    """The items of all streams, each as soon as it is there."""
    pending = list(streams)
    while pending:
        (stream,), _ = skate.wait(pending)
        try:
            ref = next(stream)
        except StopIteration:
            pending.remove(stream)
        else:
            yield skate.get(ref)


def build_in_one_process(sources: list[work.Source], shard_count: int, quiet: bool) -> work.Atlas:
    parts: list[work.Postings] = [{} for _ in range(shard_count)]
    facts = []
    with Progress("check", len(sources), quiet) as progress:
        for source in sources:
            fact, names = work.parse_module(source)
            work.split_by_shard(source.module, names, parts)
            facts.append(fact)
            progress.step()
    shards = [work.IndexShard() for _ in parts]
    for shard, part in zip(shards, parts, strict=True):
        shard.add(part)
    matrices = [shard.weights([source.module for source in sources]) for shard in shards]
    similarity = np.empty((len(sources), len(sources)))
    for rows, columns in work.blocks_of(len(sources)):
        work.place(similarity, rows, columns, work.cosines(matrices, rows, columns))
    return work.Atlas(facts, work.merged(shard.contents() for shard in shards), similarity)


class Progress:
    """A bar on standard error if that is a terminal, a closing line if not, nothing if quiet."""

    def __init__(self, label: str, total: int, quiet: bool) -> None:
        self.label = label
        self.total = total
        self.quiet = quiet
        self.done = 0
        self.started_s = self.drawn_s = time.perf_counter()
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def step(self) -> None:
        self.done += 1
        now_s = time.perf_counter()
        if self.terminal and not self.quiet and now_s - self.drawn_s > 0.05:
            self.drawn_s = now_s
            bar = ("#" * (30 * self.done // self.total)).ljust(30, ".")
            line = f"\r{self.label:8} [{bar}] {self.done}/{self.total}"
            print(line, end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if not self.quiet:
            elapsed_s = time.perf_counter() - self.started_s
            clear = "\r\033[K" if self.terminal else ""
            line = f"{clear}{self.label:8} {self.done}/{self.total} in {elapsed_s:.2f} s"
            print(line, file=sys.stderr, flush=True)


def print_findings(atlas: work.Atlas) -> None:
    lines = sum(facts.lines for facts in atlas.modules)
    functions = [(f, facts.module) for facts in atlas.modules for f in facts.functions]
    print(f"{len(atlas.modules)} modules, {lines:,} lines, {len(functions):,} functions,", end=" ")
    print(f"{len(atlas.postings):,} names")
    for facts in atlas.modules:
        if facts.error:
            print(f"  left out: {facts.module}: {facts.error}")

    print("\nModules of different packages that resemble each other most (1 is equal)")
    for cosine, left, right in resembling(atlas)[:8]:
        print(f"  {cosine:.3f}  {left} ~ {right}")

    print("\nNames used most, and where")
    totals = {name: sum(uses.values()) for name, uses in atlas.postings.items() if name != "self"}
    for name in sorted(totals, key=lambda name: (-totals[name], name))[:8]:
        uses = atlas.postings[name]
        most = min(uses, key=lambda module: (-uses[module], module))
        print(f"  {totals[name]:6,}  {name:10} in {len(uses):3} modules,", end=" ")
        print(f"most in {most} ({uses[most]:,})")

    print("\nModules imported by most others")
    imports = Counter(name for facts in atlas.modules for name in facts.imports)
    for name in sorted(imports, key=lambda name: (-imports[name], name))[:5]:
        print(f"  {imports[name]:6,}  {name}")

    print("\nFunctions with the most decision points")
    functions.sort(key=lambda entry: (-entry[0].complexity, entry[1], entry[0].line))
    for function, module in functions[:5]:
        print(f"  {function.complexity:6,}  {module}.{function.name}, line {function.line}")


def resembling(atlas: work.Atlas) -> list[tuple[float, str, str]]:
    pairs = []
    for i, left in enumerate(atlas.modules):
        for j, right in enumerate(atlas.modules[:i]):
            packages = {left.module.split(".")[0], right.module.split(".")[0]}
            if len(packages) == 2 and min(left.lines, right.lines) >= LINES_MIN:
                pairs.append((float(atlas.similarity[i, j]), right.module, left.module))
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError("must be at least 1")
        return int(text)

    shown = "(default: %(default)s)"
    parser = argparse.ArgumentParser(description="Maps Python's standard library with Skate.")
    library = Path(sysconfig.get_path("stdlib"))
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--root", type=Path, default=library, help=f"folder of sources {shown}")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N files")
    parser.add_argument("--workers", type=positive, default=cpus, help=f"CPUs to use {shown}")
    parser.add_argument("--shards", type=positive, default=4, help=f"index actors {shown}")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no findings")
    options = parser.parse_args(arguments)
    options.sources = work.find_sources(options.root, options.limit)
    if not options.sources:
        parser.error(f"no Python files below {options.root}; name another folder with --root")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    start_s = time.perf_counter()
    skate.init(num_cpus=options.workers)
    ready_s = time.perf_counter()
    try:
        atlas, traffic = build_with_skate(options.sources, options.shards, options.quiet)
        done_s = time.perf_counter()
    finally:
        skate.shutdown()

    plain_start_s = time.perf_counter()
    reference = build_in_one_process(options.sources, options.shards, options.quiet)
    plain_s = time.perf_counter() - plain_start_s

    if not options.quiet:
        print_findings(atlas)
    skate_s, init_s = done_s - ready_s, ready_s - start_s
    print(f"\nSkate with {options.workers} CPUs: {skate_s:.2f} s, after {init_s:.2f} s of init")
    print(f"The same in one process: {plain_s:.2f} s, {plain_s / skate_s:.2f} times as long")
    print(f"{traffic.tasks} tasks, {traffic.actor_calls} calls to {options.shards} actors,", end=" ")
    print(f"{traffic.objects:,} objects")
    print(f"{traffic.bytes_stored / 1e6:.1f} MB of matrices stored,", end=" ")
    print(f"{traffic.bytes_in_place / 1e6:.1f} MB of them read in place by tasks")
    if found := work.differences(atlas, reference):
        print("The two answers differ:", *found, sep="\n  ")
        return 1
    print("The two answers are equal.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
