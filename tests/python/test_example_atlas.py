"""The main job: its answer, and that it would notice a wrong one."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import atlas_work as work  # noqa: E402  (found by the line above)
import stdlib_atlas  # noqa: E402


def run_atlas(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "stdlib_atlas.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of one module per kind of input that the atlas has to cope with."""
    files = {
        "plain.py": "import os\ndef walk(path):\n    return os.walk(path) if path else os.getcwd()\n",
        "package/__init__.py": "from os import walk\n",
        "package/inner.py": "from . import walk\nclass Path:\n    def walk(self): pass\n",
        "package.py": "hidden = 'by the package of the same name'\n",
        "broken.py": "def walk(:\n",
        "binary.py": "null = '\0'\n",
        "empty.py": "",
        "test/test_plain.py": "walk = 'left out'\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nwalk = '\xe9'\n")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    return tmp_path


def small_atlas(library: Path) -> work.Atlas:
    sources = work.find_sources(library, limit=None)
    return stdlib_atlas.build_in_one_process(sources, shard_count=3, quiet=True)


@pytest.mark.timeout(180)
def test_the_job_agrees_with_one_process() -> None:
    run = run_atlas("--limit", "60", "--workers", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "60 modules" in run.stdout
    assert run.stdout.endswith("The two answers are equal.\n")
    assert "parse    60/60" in run.stderr


def test_the_job_copes_with_odd_files(library: Path) -> None:
    run = run_atlas("--root", str(library), "--workers", "2", "--shards", "3")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "left out: broken: SyntaxError" in run.stdout
    assert "left out: binary: " in run.stdout
    assert run.stdout.endswith("The two answers are equal.\n")


def test_quiet_prints_the_verdict_only(library: Path) -> None:
    run = run_atlas("--root", str(library), "--workers", "2", "--quiet")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "modules" not in run.stdout
    assert "parse" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/nonexistent"], "no Python files below /nonexistent"),
        (["--limit", "0"], "must be at least 1"),
        (["--shards", "many"], "invalid positive value: 'many'"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str) -> None:
    run = run_atlas(*arguments)
    assert run.returncode == 2
    assert message in run.stderr


def test_sources_are_found_as_import_would(library: Path) -> None:
    modules = [source.module for source in work.find_sources(library, limit=None)]
    expected = ["binary", "broken", "empty", "latin", "package", "package.inner", "plain"]
    assert modules == expected
    assert [source.module for source in work.find_sources(library, limit=2)] == expected[:2]


def test_facts_of_one_module(library: Path) -> None:
    facts, names = work.parse_module(work.Source("plain", str(library / "plain.py")))
    assert facts == work.ModuleFacts("plain", 3, ("os",), (work.Function("walk", 2, 2),))
    assert names == {"os": 3, "path": 3, "walk": 2, "getcwd": 1}


def test_methods_carry_their_class(library: Path) -> None:
    facts, _ = work.parse_module(work.Source("inner", str(library / "package/inner.py")))
    assert facts.functions == (work.Function("Path.walk", 3, 1),)
    assert facts.imports == ()


def test_index_and_similarity(library: Path) -> None:
    atlas = small_atlas(library)
    assert atlas.postings["walk"] == {"latin": 1, "package": 1, "package.inner": 2, "plain": 2}
    names = [facts.module for facts in atlas.modules]
    package, plain, empty = map(names.index, ["package", "plain", "empty"])
    assert 0 < atlas.similarity[package, plain] < 1
    assert atlas.similarity[plain, plain] == 1
    assert not atlas.similarity[empty].any()
    assert np.array_equal(atlas.similarity, atlas.similarity.T)


def test_the_number_of_shards_does_not_change_the_answer(library: Path) -> None:
    sources = work.find_sources(library, limit=None)
    one, seven = (stdlib_atlas.build_in_one_process(sources, n, quiet=True) for n in (1, 7))
    assert work.differences(one, seven) == []


def corrupt_order(atlas: work.Atlas) -> None:
    atlas.modules.reverse()


def corrupt_facts(atlas: work.Atlas) -> None:
    atlas.modules[2] = work.ModuleFacts(atlas.modules[2].module, lines=1)


def corrupt_count(atlas: work.Atlas) -> None:
    atlas.postings["walk"]["plain"] += 1


def corrupt_name(atlas: work.Atlas) -> None:
    del atlas.postings["getcwd"]


def corrupt_cell(atlas: work.Atlas) -> None:
    last = len(atlas.modules) - 1
    atlas.similarity[last, last] = np.nextafter(atlas.similarity[last, last], 2)


def corrupt_shape(atlas: work.Atlas) -> None:
    atlas.similarity = atlas.similarity[:-1]


CORRUPTIONS = [
    (corrupt_order, "modules: 7 are not the 7 expected, in order"),
    (corrupt_facts, "facts: 1 modules differ, first empty"),
    (corrupt_count, "index: 1 names differ, first 'walk'"),
    (corrupt_name, "index: 1 names differ, first 'getcwd'"),
    (corrupt_cell, "similarity: 1 cells differ, first plain ~ plain: "),
    (corrupt_shape, "similarity: a matrix of (6, 7), not of (7, 7)"),
]


@pytest.mark.parametrize(("corrupt", "message"), CORRUPTIONS)
def test_a_wrong_answer_is_noticed(library, corrupt, message) -> None:
    reference = small_atlas(library)
    answer = copy.deepcopy(reference)
    assert work.differences(answer, reference) == []
    corrupt(answer)
    (difference,) = work.differences(answer, reference)
    assert difference.startswith(message)


def test_a_wrong_answer_fails_the_job(library, monkeypatch, capsys) -> None:
    def build_wrongly(sources, shard_count, quiet):
        atlas = small_atlas(library)
        corrupt_cell(atlas)
        return atlas, stdlib_atlas.Traffic()

    monkeypatch.setattr(stdlib_atlas, "build_with_skate", build_wrongly)
    assert stdlib_atlas.main(["--root", str(library), "--workers", "1", "--shards", "3"]) == 1
    assert "The two answers differ:\n  similarity: 1 cells differ" in capsys.readouterr().out
