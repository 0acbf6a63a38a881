"""What workers print reaches the driver, with a prefix."""

import os
import subprocess
import sys

import pytest
import ray
from coordination import run_driver

TASKS = """
import os, sys, logging, ray
ray.init(num_cpus=2{init})

@ray.remote
def talk(i):
    print("out-line", i)
    print("err-line", i, file=sys.stderr)
    sys.stdout.flush()
    return os.getpid()

@ray.remote(num_cpus=0)
class Talker:
    def say(self, what):
        print(what)
        return os.getpid()

    def __repr__(self):
        return "TheTalker"
"""

ENV = {"RAY_DEDUP_LOGS_AGG_WINDOW_S": "3", "NO_COLOR": "1"}


def output_with(code, *texts, env=None):
    """Output of a driver that goes on until each of `texts` has come in a line of its own."""
    driver = subprocess.Popen(
        [sys.executable, "-u", "-c", code + "\nimport sys\nsys.stdin.readline()\nray.shutdown()\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENV, **(env or {})},
    )
    try:
        out, missing = "", list(texts)
        while missing and (line := driver.stdout.readline()):
            out += line
            found = next((text for text in missing if text in line), None)
            if found is not None:
                missing.remove(found)
        rest, _ = driver.communicate("\n")
        assert driver.returncode == 0, out + rest
        return out + rest
    finally:
        driver.kill()
        driver.wait()


def lines_with(out, text):
    return [line for line in out.splitlines() if text in line]


def test_task_output_has_name_and_pid():
    code = TASKS.format(init="") + "print('PID', ray.get(talk.remote(1)))\n"
    out = output_with(code, "PID ", "out-line 1", "err-line 1")
    pid = lines_with(out, "PID ")[0].split()[-1]
    (line,) = lines_with(out, "out-line 1")
    assert f"(talk pid={pid})" in line
    (line,) = lines_with(out, "err-line 1")
    assert f"(talk pid={pid})" in line


def test_actor_output_has_class_and_pid():
    code = """
@ray.remote(num_cpus=0)
class Plain:
    def say(self, what):
        print(what)
        return os.getpid()

a, b = Plain.remote(), Talker.remote()
print("PIDS", *ray.get([a.say.remote("plain says"), b.say.remote("talker says")]))
"""
    out = output_with(TASKS.format(init="") + code, "PIDS ", "plain says", "talker says")
    plain, talker = lines_with(out, "PIDS ")[0].split()[1:]
    assert f"(Plain pid={plain})" in lines_with(out, "plain says")[0]
    assert f"pid={talker})" in lines_with(out, "talker says")[0]


def test_log_to_driver_false():
    rc, out = run_driver(
        TASKS.format(init=", log_to_driver=False") + "ray.get(talk.remote(1))\nray.shutdown()\n", env=ENV
    )
    assert rc == 0, out
    assert "out-line" not in out and "err-line" not in out


def test_repeated_lines_are_folded():
    code = """
@ray.remote(num_cpus=0)
class Same:
    def ready(self):
        return True

    def say(self):
        print("the very same line")
actors = [Same.remote() for _ in range(6)]
ray.get([a.ready.remote() for a in actors])
ray.get([a.say.remote() for a in actors])
"""
    out = output_with(TASKS.format(init="") + code, "the very same line")
    assert 1 <= len(lines_with(out, "the very same line")) <= 3


def test_folding_can_be_turned_off():
    code = """
@ray.remote(num_cpus=0)
class Same:
    def ready(self):
        return True

    def say(self):
        print("the very same line")
actors = [Same.remote() for _ in range(4)]
ray.get([a.ready.remote() for a in actors])
ray.get([a.say.remote() for a in actors])
"""
    out = output_with(TASKS.format(init="") + code, *["the very same line"] * 4, env={"RAY_DEDUP_LOGS": "0"})
    assert len(lines_with(out, "the very same line")) == 4


def test_last_lines_before_a_crash_arrive():
    code = """
@ray.remote(max_retries=0)
def crash():
    print("famous last words", flush=True)
    os._exit(1)
try:
    ray.get(crash.remote())
except ray.exceptions.WorkerCrashedError:
    print("CRASHED")
"""
    out = output_with(TASKS.format(init="") + code, "CRASHED", "famous last words")
    assert "CRASHED" in out and lines_with(out, "famous last words")


def test_logging_config_json():
    code = """
import json
ray.init(num_cpus=1, logging_config=ray.LoggingConfig(encoding="JSON", log_level="INFO",
         additional_log_standard_attrs=["name"]))

@ray.remote
def f():
    logging.getLogger("mine").info("structured message", extra={"k": 5})
    return ray.get_runtime_context().get_task_id()

print("TASK", ray.get(f.remote()))
"""
    out = output_with("import logging, ray" + code, "TASK ", "structured message")
    import json

    task = lines_with(out, "TASK ")[0].split()[-1]
    line = next(x for x in lines_with(out, "structured message"))
    record = json.loads(line[line.index("{") :])
    assert record["message"] == "structured message"
    assert record["levelname"] == "INFO"
    assert record["task_id"] == task
    assert record["k"] == 5 and record["name"] == "mine"
    assert "job_id" in record and "worker_id" in record and "node_id" in record


def test_logging_config_text_level():
    code = """
ray.init(num_cpus=1, logging_config=ray.LoggingConfig(log_level="WARNING"))

@ray.remote
def f():
    logging.getLogger("mine").info("quiet message")
    logging.getLogger("mine").warning("loud message")

ray.get(f.remote())
"""
    out = output_with("import logging, ray" + code, "loud message")
    assert lines_with(out, "loud message") and not lines_with(out, "quiet message")


def test_logging_config_validates():
    with pytest.raises(ValueError):
        ray.LoggingConfig(encoding="XML")
    with pytest.raises(ValueError):
        ray.LoggingConfig(additional_log_standard_attrs=["no_such_attr"])
    config = ray.LoggingConfig()
    assert (config.encoding, config.log_level) == ("TEXT", "INFO")
