"""What workers print before their results are there is shown, however soon the driver ends after that."""

import re

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


PARTIAL = {
    "task": TASK,
    "actor": ACTOR,
    "threaded": ACTOR.replace("remote\nclass", "remote(max_concurrency=2)\nclass"),
    "asyncio": ACTOR.replace("    def last", "    async def other(self):\n        pass\n    def last"),
    "coroutine": ACTOR.replace("def last", "async def last"),
    "constructor": ACTOR.replace("def last", "def last(self):\n        pass\n    def __init__"),
    "raises": TASK.replace("\nskate.get", "\n    raise ValueError\nskate.wait").replace(
        "last.remote()", "[last.remote()]"
    ),
    "generator": TASK.replace('words")', 'words")\n    yield 1\n    time.sleep(600)').replace(
        "(last.remote())", "(next(last.remote()))"
    ),
}


BUFFERED = {"PYTHONUNBUFFERED": ""}
IN_THE_LOG = """
import glob
logs = skate.init(ignore_reinit_error=True).address_info["session_dir"] + "/logs/worker-*"
until = time.monotonic() + 20
while time.monotonic() < until and not any("last words" in open(path).read() for path in glob.glob(logs)):
    time.sleep(0.02)
print("LOGGED", any("last words" in open(path).read() for path in glob.glob(logs)))
"""


@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
@pytest.mark.parametrize("work", PARTIAL.values(), ids=PARTIAL.keys())
def test_words_without_a_newline_leave_the_worker(driver, work, stream):
    """With the answer, not with the end of the worker, which may be killed before that."""
    work = work.replace('words")', f'words", end="", file={stream})')
    code, out = driver(
        "import sys, time, skate\nskate.init(num_cpus=1)\n" + work + IN_THE_LOG, env=BUFFERED
    ).finish()
    assert code == 0 and "LOGGED True" in out and out.count("last words") == 1, out


def test_bytes_below_the_text_leave_the_worker(driver):
    work = TASK.replace('print("last words")', 'sys.stdout.buffer.write(b"last words")')
    code, out = driver(
        "import sys, time, skate\nskate.init(num_cpus=1)\n" + work + IN_THE_LOG, env=BUFFERED
    ).finish()
    assert code == 0 and "LOGGED True" in out and out.count("last words") == 1, out


def test_a_stream_of_the_users_own_is_left_alone(driver):
    work = TASK.replace(
        'print("last words")', 'sys.stdout = open("/dev/null", "w"); print("nobody"); return 5'
    )
    work += "print('GOT', skate.get(last.remote()))\n"
    code, out = driver("import sys, skate\nskate.init(num_cpus=1)\n" + work, env=BUFFERED).finish()
    assert code == 0 and "GOT 5" in out and "nobody" not in out, out


def test_how_often_a_line_was_repeated_is_shown(driver):
    window = {"SKATE_DEDUP_LOGS_AGG_WINDOW_S": "3600"}  # ends with the driver only
    code, out = driver("import skate\nskate.init(num_cpus=1)\n" + SAME_LINE, env=window).finish()
    assert code == 0, out
    assert "last words [repeated 3x across cluster]" in out, out


MANY = """
import sys, skate
skate.init(num_cpus=1)
@skate.remote
def many(count):
    for i in range(count):
        print("line", i)
skate.get(many.remote({count}))
"""


@pytest.mark.parametrize("end", ["", "skate.shutdown()\n"], ids=["exit", "shutdown"])
@pytest.mark.parametrize("count", [1000, 2300])
def test_all_of_many_last_lines_are_shown(driver, count, end):
    code, out = driver(MANY.replace("{count}", str(count)) + end).finish()
    shown = [line.split(" line ")[1] for line in out.splitlines() if " line " in line]
    assert code == 0 and shown == [str(i) for i in range(count)], out[-2000:]
    assert "not shown" not in out, out[-2000:]


def test_last_lines_beyond_the_rate_are_counted(driver):
    count = 40_000
    code, out = driver(MANY.replace("{count}", str(count))).finish()
    shown = sum(" line " in line for line in out.splitlines())
    left_out = sum(int(found) for found in re.findall(r"\(skate\) (\d+) lines? of worker output w", out))
    assert code == 0 and shown + left_out == count, (shown, left_out, out[-2000:])
