"""A worker that cannot set itself up is a failed start: after a few, those who wait are told why."""

import os

import pytest
import skate
from skate.exceptions import RuntimeEnvSetupError

CLUSTER = {"num_cpus": 2, "log_to_driver": False}
pytestmark = pytest.mark.usefixtures("cluster")


def broken():
    raise ValueError("this hook is broken")


def bare_task():
    return 1


STARTS_MAX = 3 + 1  # failures in a row, and one more that is starting by then
BROKEN = {"worker_process_setup_hook": broken}
ABSENT = {"worker_process_setup_hook": "no_such_module.hook"}


@pytest.mark.parametrize(
    "env, text", [(BROKEN, "this hook is broken"), (ABSENT, "no_such_module")], ids=["raises", "absent"]
)
def test_a_task_fails(env, text):
    with pytest.raises(RuntimeEnvSetupError) as error:
        skate.get(skate.remote(bare_task).options(runtime_env=env).remote(), timeout=50)
    assert text in str(error.value) and "Traceback" in str(error.value)


def test_an_actor_fails():
    class Actor:
        def call(self):
            return 1

    actor = skate.remote(Actor).options(runtime_env=BROKEN).remote()
    with pytest.raises(RuntimeEnvSetupError) as error:
        skate.get(actor.call.remote(), timeout=50)
    assert "this hook is broken" in str(error.value)


@pytest.mark.parametrize("give_up", [skate.cancel, lambda ref: None], ids=["cancel", "del"])
def test_a_task_that_nobody_wants_starts_no_workers_for_ever(cluster, give_up):
    logs = os.path.join(cluster.address_info["session_dir"], "logs")

    def workers_started():
        return len({name.rpartition(".")[0] for name in os.listdir(logs) if name.startswith("worker-")})

    env = {**BROKEN, "env_vars": {"GIVEN_UP": give_up.__name__}}
    broken_task = skate.remote(bare_task).options(runtime_env=env)
    before = workers_started()
    ref = broken_task.remote()
    give_up(ref)
    del ref
    # Its failures come in the same row as those of this task, which ends it.
    with pytest.raises(RuntimeEnvSetupError):
        skate.get(broken_task.remote(), timeout=50)
    with pytest.raises(RuntimeEnvSetupError):
        skate.get(broken_task.remote(), timeout=50)
    assert workers_started() - before <= 3 * STARTS_MAX


def hang():
    import threading

    print("HOOK BEGINS")
    threading.Event().wait()


@pytest.mark.parametrize("hook", [hang, "signal.pause"], ids=["callable", "named"])
def test_a_hook_that_hangs(hook):
    env = {"worker_process_setup_hook": hook, "config": {"setup_timeout_seconds": 1}}
    with pytest.raises(RuntimeEnvSetupError) as error:
        skate.get(skate.remote(bare_task).options(runtime_env=env).remote(), timeout=50)
    text = str(error.value)
    name = hook if isinstance(hook, str) else f"{__name__}.hang"
    assert f"'{name}' did not return within 1 s" in text and "setup_timeout_seconds" in text
    assert ("HOOK BEGINS" in text) == (hook is hang), "what it printed tells how far it came"


def test_an_actor_whose_hook_hangs():
    class Actor:
        def call(self):
            return 1

    env = {"worker_process_setup_hook": hang, "config": {"setup_timeout_seconds": 1}}
    actor = skate.remote(Actor).options(runtime_env=env).remote()
    with pytest.raises(RuntimeEnvSetupError, match="did not return within 1 s"):
        skate.get(actor.call.remote(), timeout=50)


def test_a_hook_without_limit_takes_its_time():
    def slow():
        import time

        time.sleep(1.5)

    env = {"worker_process_setup_hook": slow, "config": {"setup_timeout_seconds": -1}}
    assert skate.get(skate.remote(bare_task).options(runtime_env=env).remote(), timeout=50) == 1


@pytest.mark.parametrize("reason", ["No such file or directory", "Not a directory"])
def test_the_drivers_directory_cannot_be_entered(driver, tmp_path, reason):
    place = tmp_path / "place"
    place.mkdir()
    d = driver(
        "import os, skate\n"
        f"os.chdir({str(place)!r})\n"
        "skate.init(num_cpus=2, log_to_driver=False)\n"
        "print('BEFORE', skate.get(skate.remote(lambda: os.getcwd()).remote()))\n"
        "input()\n"
        "class Actor:\n    def call(self):\n        return 1\n"
        "for ref in (skate.remote(lambda: os.getcwd()).options(runtime_env={'env_vars': {'NEW': 'worker'}}).remote(),\n"
        "            skate.remote(Actor).options(runtime_env={'env_vars': {'NEW': 'actor'}}).remote().call.remote()):\n"
        "    try:\n        print('WRONG', skate.get(ref, timeout=40))\n"
        "    except skate.exceptions.RuntimeEnvSetupError as error:\n"
        "        print('FAILED', str(error).replace(chr(10), ' '))\n"
    )
    assert d.until("BEFORE") == str(place)
    place.rmdir()
    if reason == "Not a directory":
        place.write_text("")
    d.tell()
    rc, out = d.finish()
    failures = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert rc == 0 and len(failures) == 2, out
    for text in failures:
        assert str(place) in text and reason in text and "working_dir" in text, text


def test_other_environments_go_on():
    assert skate.get(skate.remote(bare_task).remote(), timeout=50) == 1


def test_a_hook_of_the_job(driver):
    d = driver(
        "import skate\n"
        "def broken():\n    raise ValueError('this hook is broken')\n"
        "skate.init(num_cpus=2, log_to_driver=False, runtime_env={'worker_process_setup_hook': broken})\n"
        "try:\n    skate.get(skate.remote(lambda: 1).remote(), timeout=50)\n"
        "except skate.exceptions.RuntimeEnvSetupError as error:\n    print('FAILED', error)\n"
    )
    code, out = d.finish()
    assert code == 0 and "FAILED" in out and "this hook is broken" in out, out
