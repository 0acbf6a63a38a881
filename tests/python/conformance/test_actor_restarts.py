"""max_restarts and max_task_retries."""

import os
import signal as signals

import pytest
import ray
from coordination import eventually
from ray.exceptions import ActorDiedError, RayActorError

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote(num_cpus=0)
class Fragile:
    def __init__(self, tally=None, token="t"):
        self.token = token
        self.calls = 0
        if tally is not None:
            ray.get(tally.add.remote("started"))

    def ping(self):
        self.calls += 1
        return os.getpid(), self.calls

    def read_token(self):
        return self.token

    def die(self):
        os._exit(1)

    def die_once(self, tally):
        if ray.get(tally.add.remote("attempt")) < 2:
            os._exit(1)
        return "survived"

    def raise_until(self, tally, n):
        if ray.get(tally.add.remote("attempt")) < n:
            raise KeyError("again")
        return "done"

    def restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


def ping_until_alive(actor):
    def attempt():
        try:
            return ray.get(actor.ping.remote(), timeout=30)
        except RayActorError:
            return None

    return eventually(attempt, timeout_s=45)


def test_restart_gives_a_fresh_state_in_a_new_process():
    a = Fragile.options(max_restarts=1).remote(token="kept")
    first_pid, calls = ray.get(a.ping.remote())
    assert calls == 1
    os.kill(first_pid, signals.SIGKILL)
    pid, calls = ping_until_alive(a)
    assert pid != first_pid and calls == 1
    assert ray.get(a.read_token.remote()) == "kept"
    ray.kill(a)


def test_restarts_run_out():
    a = Fragile.options(max_restarts=1).remote()
    for _ in range(2):
        pid, _ = ping_until_alive(a)
        with pytest.raises(RayActorError):
            ray.get(a.die.remote(), timeout=30)
    assert eventually(lambda: _raises_died(a))


def _raises_died(actor):
    try:
        ray.get(actor.ping.remote(), timeout=30)
    except ActorDiedError:
        return True
    except RayActorError:
        pass
    return False


def test_no_restart_by_default():
    a = Fragile.remote()
    with pytest.raises(RayActorError):
        ray.get(a.die.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        ray.get(a.ping.remote(), timeout=30)


def test_running_call_fails_without_task_retries(tally):
    a = Fragile.options(max_restarts=-1).remote()
    with pytest.raises(RayActorError):
        ray.get(a.die_once.remote(tally), timeout=30)
    assert ping_until_alive(a)
    assert ray.get(tally.all.remote()) == ["attempt"]
    ray.kill(a)


def test_running_call_is_retried(tally):
    a = Fragile.options(max_restarts=1, max_task_retries=1).remote()
    assert ray.get(a.die_once.remote(tally), timeout=50) == "survived"
    assert ray.get(tally.all.remote()) == ["attempt", "attempt"]
    ray.kill(a)


def test_unlimited_task_retries(tally):
    a = Fragile.options(max_restarts=-1, max_task_retries=-1).remote()
    assert ray.get(a.die_once.remote(tally), timeout=50) == "survived"
    ray.kill(a)


def test_method_level_retries(tally):
    @ray.remote(num_cpus=0, max_restarts=2)
    class A:
        @ray.method(max_task_retries=2)
        def die_once(self, t):
            if ray.get(t.add.remote()) < 2:
                os._exit(1)
            return "survived"

    a = A.remote()
    assert ray.get(a.die_once.remote(tally), timeout=50) == "survived"
    ray.kill(a)


def test_exceptions_are_not_retried_unless_asked(tally):
    a = Fragile.options(max_task_retries=3).remote()
    with pytest.raises(KeyError):
        ray.get(a.raise_until.remote(tally, 3))
    assert len(ray.get(tally.all.remote())) == 1
    ray.kill(a)


def test_retry_exceptions_of_methods(tally):
    @ray.remote(num_cpus=0)
    class A:
        @ray.method(max_task_retries=3, retry_exceptions=[KeyError])
        def f(self, t):
            if ray.get(t.add.remote()) < 3:
                raise KeyError("again")
            return "done"

        @ray.method(max_task_retries=1, retry_exceptions=True)
        def g(self, t):
            ray.get(t.add.remote())
            raise ValueError("always")

    a = A.remote()
    assert ray.get(a.f.remote(tally)) == "done"
    with pytest.raises(ValueError):
        ray.get(a.g.remote(tally))
    assert len(ray.get(tally.all.remote())) == 5
    ray.kill(a)


@pytest.mark.parametrize("kind", ["sync", "threaded", "asyncio"])
def test_retry_exceptions_of_one_call(tally, kind):
    class Again(Exception):
        pass

    class Body:
        @ray.method(retry_exceptions=[ValueError])
        def f(self, t, error, times):
            if ray.get(t.add.remote()) <= times:
                raise error("again")
            return "done"

    class Async(Body):
        async def other(self):
            pass

    cls = Async if kind == "asyncio" else Body
    a = ray.remote(num_cpus=0, max_concurrency=2 if kind == "threaded" else 1)(cls).remote()
    assert (
        ray.get(a.f.options(max_task_retries=3, retry_exceptions=[Again]).remote(tally, Again, 2)) == "done"
    )
    assert len(ray.get(tally.all.remote())) == 3
    with pytest.raises(ValueError):  # the call's classes stand instead of the method's
        ray.get(
            a.f.options(max_task_retries=3, retry_exceptions=(Again, KeyError)).remote(tally, ValueError, 9)
        )
    assert len(ray.get(tally.all.remote())) == 4
    assert (
        ray.get(a.f.options(max_task_retries=3, retry_exceptions=True).remote(tally, KeyError, 6)) == "done"
    )
    assert len(ray.get(tally.all.remote())) == 7
    with pytest.raises(KeyError):
        ray.get(a.f.options(max_task_retries=3).remote(tally, KeyError, 99))
    assert len(ray.get(tally.all.remote())) == 8
    ray.kill(a)


def test_kill_without_no_restart():
    a = Fragile.options(max_restarts=1).remote()
    first_pid, _ = ray.get(a.ping.remote())
    ray.kill(a, no_restart=False)
    pid, _ = ping_until_alive(a)
    assert pid != first_pid
    ray.kill(a)
    assert eventually(lambda: _raises_died(a))


def test_kill_ends_restartable_actors():
    a = Fragile.options(max_restarts=-1).remote()
    ray.get(a.ping.remote())
    ray.kill(a)
    assert eventually(lambda: _raises_died(a))


def test_exit_actor_is_not_restarted(tally):
    @ray.remote(num_cpus=0, max_restarts=5)
    class A:
        def __init__(self, t):
            ray.get(t.add.remote())

        def leave(self):
            ray.actor.exit_actor()

    a = A.remote(tally)
    with pytest.raises(RayActorError):
        ray.get(a.leave.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        ray.get(a.leave.remote(), timeout=30)
    assert len(ray.get(tally.all.remote())) == 1


def test_was_reconstructed():
    a = Fragile.options(max_restarts=1, max_task_retries=-1).remote()
    assert ray.get(a.restarted.remote()) is False
    pid, _ = ray.get(a.ping.remote())
    os.kill(pid, signals.SIGKILL)
    assert eventually(lambda: ray.get(a.restarted.remote(), timeout=40))
    ray.kill(a)


def test_calls_made_around_a_death_all_run_once_per_life():
    @ray.remote(num_cpus=0, max_restarts=1, max_task_retries=-1)
    class Log:
        def __init__(self):
            self.seen = []

        def pid(self):
            return os.getpid()

        def add(self, i):
            self.seen.append(i)
            return i

        def all(self):
            return self.seen

    log = Log.remote()
    pid = ray.get(log.pid.remote())
    os.kill(pid, signals.SIGKILL)
    refs = [log.add.remote(i) for i in range(50)]
    assert ray.get(refs, timeout=50) == list(range(50))
    seen = ray.get(log.all.remote())
    assert len(seen) == len(set(seen)) and set(seen) <= set(range(50))
    assert ray.get(log.pid.remote()) != pid
    ray.kill(log)


def test_handles_elsewhere_follow_the_restart():
    @ray.remote
    def use(a):
        return ray.get(a.ping.remote(), timeout=40)

    a = Fragile.options(max_restarts=1, max_task_retries=-1).remote()
    pid, _ = ray.get(use.remote(a))
    os.kill(pid, signals.SIGKILL)
    assert ping_until_alive(a)[0] != pid
    assert ray.get(use.remote(a))[0] != pid
    ray.kill(a)
