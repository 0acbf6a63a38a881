"""What README.md and docs/guide say is run: Python blocks, `make` targets, file names and links.

A Python block is a program of its own. The comment after a `print(...)` call at the end of a line is
what the call prints. Those lines have to come in that order; what workers log may come in between.
A block that cannot run by itself is preceded by `<!-- not run: why -->`.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\n\Z")
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str) -> list[Block]:
    blocks = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        runs = NOT_RUN.search(before) is None
        blocks.append(Block(page, before.count("\n") + 1, match[1], match[2], runs))
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page, page.read_text())]
PROGRAMS = [block for block in BLOCKS if block.language == "python" and block.runs]
COMMANDS = [block for block in BLOCKS if block.language == "sh"]


def run(program: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=program.parent, check=False
    )


def test_blocks_are_found() -> None:
    page = ROOT / "README.md"
    text = "a\n```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n```python\ny\n```\n"
    assert blocks_of(page, text) == [
        Block(page, 2, "python", "x = 1\n", runs=True),
        Block(page, 6, "python", "y\n", runs=False),
    ]
    assert {block.page for block in PROGRAMS} == set(PAGES)


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_block_runs(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "block.py"
    program.write_text(block.text)
    done = run(program)
    assert done.returncode == 0, f"{block} failed:\n{done.stdout}{done.stderr}"
    output = iter(done.stdout.splitlines())
    missing = [line for line in PRINTED.findall(block.text) if line not in output]
    assert not missing, f"{block} does not print {missing[0]!r} where it says so:\n{done.stdout}"


@pytest.mark.parametrize("name", ["monte_carlo_pi", "actor_counter", "streaming"])
def test_small_example_runs(name: str) -> None:
    printed = {
        "monte_carlo_pi": r"pi is about 3\.1\d\d\n",
        "actor_counter": r"\[\('the', 3\), \('sat', 2\)\]\n",
        "streaming": r"2 3 5 7 11 13 17 19 23 29 \n",
    }
    done = run(ROOT / "examples" / f"{name}.py")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed[name], done.stdout)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+)(?:\s+[\w-]+)*\s*:", makefile, re.MULTILINE))
    text = "".join(block.text for block in COMMANDS)
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets, f"the Makefile lacks {sorted(named - targets)}"


def test_named_files_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for target in LINK.findall(text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for name in re.findall(r"\bexamples/\w+\.py", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
