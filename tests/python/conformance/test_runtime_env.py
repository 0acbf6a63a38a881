"""Runtime environments: variables, working directories, modules."""

import os
import sys

import pytest
import ray
from coordination import run_driver

CLUSTER = {"num_cpus": 4, "runtime_env": {"env_vars": {"FROM_JOB": "job", "BOTH": "job"}}}
pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote(num_cpus=0)
def read(*names):
    return [os.environ.get(n) for n in names]


def test_job_level_variables():
    assert ray.get(read.remote("FROM_JOB", "ABSENT")) == ["job", None]


def test_task_level_variables_add_and_override():
    f = read.options(runtime_env={"env_vars": {"BOTH": "task", "FROM_TASK": "t"}})
    assert ray.get(f.remote("FROM_JOB", "BOTH", "FROM_TASK")) == ["job", "task", "t"]
    assert ray.get(read.remote("BOTH", "FROM_TASK")) == ["job", None]


def test_actor_level_variables():
    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"FROM_ACTOR": "a"}})
    class A:
        def read(self, n):
            return os.environ.get(n)

    a = A.remote()
    assert ray.get([a.read.remote("FROM_ACTOR"), a.read.remote("FROM_JOB")]) == ["a", "job"]
    ray.kill(a)


def test_children_inherit():
    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"PARENT": "p"}})
    def parent():
        return ray.get(read.remote("PARENT", "FROM_JOB"))

    assert ray.get(parent.remote()) == ["p", "job"]


def test_variables_expand():
    f = read.options(runtime_env={"env_vars": {"EXPANDED": "${HOME}/x"}})
    assert ray.get(f.remote("EXPANDED")) == [os.environ["HOME"] + "/x"]


def test_two_environments_are_two_processes():
    @ray.remote(num_cpus=0)
    def pid():
        return os.getpid()

    a = ray.get(pid.options(runtime_env={"env_vars": {"V": "1"}}).remote())
    b = ray.get(pid.options(runtime_env={"env_vars": {"V": "2"}}).remote())
    assert a != b


@pytest.mark.parametrize(
    "env",
    [
        {"env_vars": {"A": 1}},
        {"env_vars": ["A"]},
        {"env_vars": {1: "x"}},
        {"working_dir": 5},
        {"pip": ["x"], "conda": "y"},
    ],
    ids=str,
)
def test_bad_environments_are_refused(env):
    with pytest.raises((TypeError, ValueError)):
        ray.get(read.options(runtime_env=env).remote("A"), timeout=30)


def test_runtime_env_class():
    from ray.runtime_env import RuntimeEnv

    env = RuntimeEnv(env_vars={"OBJ": "yes"})
    assert env["env_vars"] == {"OBJ": "yes"}
    assert ray.get(read.options(runtime_env=env).remote("OBJ")) == ["yes"]


def test_working_dir_of_the_job(tmp_path):
    (tmp_path / "shipped_module.py").write_text("VALUE = 'shipped'\n")
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "skipped.log").write_text("no")
    code = f"""
import os, ray
ray.init(num_cpus=1, log_to_driver=False,
         runtime_env={{"working_dir": {str(tmp_path)!r}, "excludes": ["*.log"]}})

@ray.remote
def f():
    import shipped_module
    return shipped_module.VALUE, open("data.txt").read(), os.path.exists("skipped.log"), os.getcwd()

print("GOT", *ray.get(f.remote()))
"""
    rc, out = run_driver(code, cwd="/")
    assert rc == 0, out
    line = next(x for x in out.splitlines() if x.startswith("GOT"))
    assert line.split()[1:4] == ["shipped", "data", "False"]
    assert line.split()[4] != str(tmp_path)


def test_py_modules(tmp_path):
    package = tmp_path / "shipped_package"
    package.mkdir()
    (package / "__init__.py").write_text("VALUE = 'package'\n")

    # Folders are packed when a job starts, so a task cannot bring one.
    with pytest.raises(ValueError):
        ray.remote(runtime_env={"py_modules": [str(package)]})(lambda: 1).remote()
    code = f"""
import ray
ray.init(num_cpus=1, log_to_driver=False, runtime_env={{"py_modules": [{str(package)!r}]}})

@ray.remote
def f():
    import shipped_package
    return shipped_package.VALUE

print("GOT", ray.get(f.remote()))
"""
    rc, out = run_driver(code, cwd="/")
    assert rc == 0 and "GOT package" in out, out


def test_script_directory_is_importable(tmp_path):
    import subprocess

    (tmp_path / "beside.py").write_text("VALUE = 'beside'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import ray, beside\nray.init(num_cpus=1, log_to_driver=False)\n"
        "@ray.remote\ndef f():\n    import beside as b\n    return b.VALUE, beside.VALUE\n"
        "print('GOT', *ray.get(f.remote()))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout
    assert "GOT beside beside" in done.stdout


def test_setup_hook():
    code = """
import os, ray

def hook():
    os.environ["HOOKED"] = "yes"

ray.init(num_cpus=1, log_to_driver=False, runtime_env={"worker_process_setup_hook": hook})

@ray.remote
def f():
    return os.environ.get("HOOKED")

print("GOT", ray.get(f.remote()))
"""
    rc, out = run_driver(code)
    assert rc == 0 and "GOT yes" in out, out
