"""What workers print before their results are there is shown, however soon the driver ends after that."""

import pytest

TASK = """
@skate.remote
def last():
    print("last words")
skate.get(last.remote())
"""
ACTOR = """
@skate.remote
class Actor:
    def last(self):
        print("last words")
actor = Actor.remote()
skate.get(actor.last.remote())
"""
SAME_LINE = """
@skate.remote(num_cpus=0)
class Same:
    def say(self):
        print("last words")
skate.get([s.say.remote() for s in [Same.remote() for _ in range(4)]])
"""
RUNS = 4


@pytest.mark.parametrize("end", ["", "skate.shutdown()\n"], ids=["exit", "shutdown"])
@pytest.mark.parametrize("work", [TASK, ACTOR], ids=["task", "actor"])
def test_last_words_are_shown(driver, work, end):
    for _ in range(RUNS):
        code, out = driver("import skate\nskate.init(num_cpus=1)\n" + work + end).finish()
        assert code == 0 and out.count("last words") == 1, out


def test_how_often_a_line_was_repeated_is_shown(driver):
    code, out = driver("import skate\nskate.init(num_cpus=1)\n" + SAME_LINE).finish()
    assert code == 0, out
    assert "last words [repeated 3x across cluster]" in out, out
