"""The work of stdlib_atlas.py: plain functions and a plain class, which know nothing of Skate."""

from __future__ import annotations

import ast
import io
import keyword
import math
import tokenize
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROWS_PER_BLOCK = 128
WEIGHT_SCALE = 64
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)
BRANCHES = (ast.If, ast.IfExp, ast.ExceptHandler, ast.Assert)

Postings = dict[str, dict[str, int]]  # name -> module -> number of uses


@dataclass(frozen=True)
class Source:
    module: str
    path: str


@dataclass(frozen=True)
class Function:
    name: str
    line: int
    complexity: int  # decision points + 1, those of nested functions included


@dataclass(frozen=True)
class ModuleFacts:
    module: str
    lines: int
    imports: tuple[str, ...] = ()
    functions: tuple[Function, ...] = ()
    error: str | None = None  # why the file could not be read or parsed


@dataclass
class Atlas:
    """The whole answer. `similarity[i, j]` is the cosine between `modules[i]` and `modules[j]`."""

    modules: list[ModuleFacts]
    postings: Postings
    similarity: np.ndarray


def find_sources(root: Path, limit: int | None) -> list[Source]:
    """Each module once, by name. A package hides a file of its name, as it does for `import`."""
    paths: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if path.is_file() and not EXCLUDED_FOLDERS.intersection(parts[:-1]):
            if parts[-1] == "__init__" and len(parts) > 1:
                parts = parts[:-1]
            paths.setdefault(".".join(parts), str(path))
    return [Source(module, paths[module]) for module in sorted(paths)[:limit]]


def parse_module(source: Source) -> tuple[ModuleFacts, Counter[str]]:
    """The facts of one file, and how often it uses each name."""
    lines = 0
    try:
        text = Path(source.path).read_bytes()
        lines = text.count(b"\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files hold escapes that today's parser warns of
            tree = ast.parse(text)
        tokens = list(tokenize.tokenize(io.BytesIO(text).readline))
    except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        facts = ModuleFacts(source.module, lines, error=f"{type(error).__name__}: {error}")
        return facts, Counter()

    words = (token.string for token in tokens if token.type == tokenize.NAME)
    names = Counter(word for word in words if not keyword.iskeyword(word))
    imports: set[str] = set()
    functions: list[Function] = []
    unvisited: list[tuple[ast.AST, str]] = [(tree, "")]
    while unvisited:
        node, prefix = unvisited.pop()
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports.add(node.module)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(Function(prefix + node.name, node.lineno, complexity_of(node)))
            prefix += node.name + "."
        elif isinstance(node, ast.ClassDef):
            prefix += node.name + "."
        unvisited.extend((child, prefix) for child in ast.iter_child_nodes(node))
    functions.sort(key=lambda function: (function.line, function.name))
    return ModuleFacts(source.module, lines, tuple(sorted(imports)), tuple(functions)), names


def complexity_of(function: ast.AST) -> int:
    complexity = 1
    for node in ast.walk(function):
        if isinstance(node, LOOPS + BRANCHES):
            complexity += 1
        elif isinstance(node, ast.BoolOp):
            complexity += len(node.values) - 1
    return complexity


class IndexShard:
    """The part of the inverted index that holds the names which `shard_of` sends here."""

    def __init__(self) -> None:
        self.postings: Postings = {}

    def add(self, postings: Postings) -> None:
        """Adding the same uses again changes nothing, so a task that is retried does no harm."""
        for name, uses in postings.items():
            self.postings.setdefault(name, {}).update(uses)

    def weights(self, modules: Sequence[str]) -> np.ndarray:
        """A row per module, a column per name of this shard that more than one module uses.

        The weights (TF-IDF) are rounded to whole numbers: float64 adds and multiplies whole numbers
        exactly below 2**53, so the order in which products are summed cannot change a bit.
        """
        rows = {module: row for row, module in enumerate(modules)}
        names = sorted(name for name, uses in self.postings.items() if len(uses) > 1)
        matrix = np.zeros((len(modules), len(names)))
        for column, name in enumerate(names):
            uses = self.postings[name]
            rarity = math.log(len(modules) / len(uses))
            for module, count in uses.items():
                matrix[rows[module], column] = round(WEIGHT_SCALE * (1 + math.log(count)) * rarity)
        return matrix

    def contents(self) -> Postings:
        return self.postings


def shard_of(name: str, shards: int) -> int:
    """Not by `hash()`, which differs from process to process."""
    return zlib.crc32(name.encode()) % shards


def split_by_shard(module: str, names: Counter[str], parts: Sequence[Postings]) -> None:
    """Adds the names of one module to the part of each shard."""
    for name, count in names.items():
        parts[shard_of(name, len(parts))].setdefault(name, {})[module] = count


def merged(parts: Iterable[Postings]) -> Postings:
    return {name: uses for part in parts for name, uses in part.items()}


def blocks_of(modules: int) -> list[tuple[slice, slice]]:
    """Row ranges whose products make up the upper half of the similarity matrix."""
    starts = range(0, modules, ROWS_PER_BLOCK)
    bands = [slice(start, min(start + ROWS_PER_BLOCK, modules)) for start in starts]
    return [(rows, columns) for i, rows in enumerate(bands) for columns in bands[i:]]


def cosines(matrices: Sequence[np.ndarray], rows: slice, columns: slice) -> np.ndarray:
    """The similarity of the modules in `rows` to those in `columns`: one block of the matrix."""
    products = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
    row_squares = np.zeros(products.shape[0])
    column_squares = np.zeros(products.shape[1])
    for matrix in matrices:
        left, right = matrix[rows], matrix[columns]
        products += left @ right.T
        row_squares += (left**2).sum(axis=1)
        column_squares += (right**2).sum(axis=1)
    lengths = np.sqrt(np.outer(row_squares, column_squares))
    lengths[lengths == 0] = 1  # of modules that share no name with any other
    block: np.ndarray = products / lengths
    return block


def place(similarity: np.ndarray, rows: slice, columns: slice, block: np.ndarray) -> None:
    similarity[rows, columns] = block
    similarity[columns, rows] = block.T


def differences(answer: Atlas, reference: Atlas) -> list[str]:
    """One sentence for each part of the two answers that is not exactly equal."""
    modules = [facts.module for facts in reference.modules]
    if [facts.module for facts in answer.modules] != modules:
        return [f"modules: {len(answer.modules)} are not the {len(modules)} expected, in order"]
    found = []
    pairs = zip(answer.modules, reference.modules, strict=True)
    if facts := [theirs.module for ours, theirs in pairs if ours != theirs]:
        found.append(f"facts: {len(facts)} modules differ, first {facts[0]}")
    names = answer.postings.keys() | reference.postings.keys()
    uses = [name for name in names if answer.postings.get(name) != reference.postings.get(name)]
    if uses:
        found.append(f"index: {len(uses)} names differ, first {min(uses)!r}")
    ours, theirs = answer.similarity, reference.similarity
    if ours.shape != theirs.shape:
        found.append(f"similarity: a matrix of {ours.shape}, not of {theirs.shape}")
    elif len(cells := np.argwhere(ours != theirs)):
        i, j = cells[0]
        first = f"{modules[i]} ~ {modules[j]}: {ours[i, j]}, not {theirs[i, j]}"
        found.append(f"similarity: {len(cells)} cells differ, first {first}")
    return found
