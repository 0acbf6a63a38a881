"""What each line of the benchmark measures.

A rate line's `setup(api)` returns a Step: `run()` is one call, worth `ops` operations. `api` is the
module under test. Functions that travel are local to their set-up, so that they go by value.
`verify()` raises unless the work was done in another process; it runs once per window, outside the
clock. One-shot lines live in oneshot.py.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass
class Step:
    run: Callable[[], Any]
    ops: float = 1
    verify: Callable[[], None] = lambda: None
    warm: Callable[[], Any] | None = None
    keep: list = field(default_factory=list)  # actors, ended after the line


@dataclass(frozen=True)
class RateLine:
    name: str
    title: str
    unit: str
    group: str
    setup: Callable[[Any], Step]
    init: dict = field(default_factory=dict)


RATE_LINES: dict[str, RateLine] = {}
ACTORS = max(1, (os.cpu_count() or 1) // 2)  # the "n" of 1:n and n:n
CLIENTS = 4


def rate_line(title, unit, group, init=None):
    def register(setup):
        name = setup.__name__
        RATE_LINES[name] = RateLine(name, title, unit, group, setup, init or {})
        return setup

    return register


def need(condition, what):
    if not condition:
        raise RuntimeError(f"wrong answer: {what}")


def elsewhere(pids, callers=()):
    """Fails if a reply was made by the process that asked, or by the driver."""
    own = {os.getpid(), *callers}
    need(pids, "no reply")
    need(not own & set(pids), f"a call ran in its caller: {own & set(pids)}")


def programs(api):
    """The remote functions and classes that the lines share."""

    @api.remote
    def small_value(want_pid=False):
        return os.getpid() if want_pid else b"ok"

    @api.remote(num_cpus=0)
    class Server:
        def small_value(self, want_pid=False):
            return os.getpid() if want_pid else b"ok"

        def small_value_arg(self, x, want_pid=False):
            return os.getpid() if want_pid else b"ok"

    @api.remote
    class AsyncServer:
        async def small_value(self, want_pid=False):
            return os.getpid() if want_pid else b"ok"

        async def small_value_arg(self, x, want_pid=False):
            return os.getpid() if want_pid else b"ok"

    @api.remote(num_cpus=0)
    class TaskClient:
        def run(self, n):
            replies = api.get([small_value.remote() for _ in range(n)])
            return replies[-1]

        def pids(self):
            return os.getpid(), api.get([small_value.remote(True) for _ in range(4)])

    @api.remote(num_cpus=0)
    class Client:
        def __init__(self, servers):
            self.servers = servers

        def run(self, n):
            replies = api.get([s.small_value.remote() for s in self.servers for _ in range(n)])
            return replies[-1]

        def run_arg(self, n):
            x = api.put(0)
            replies = api.get([s.small_value_arg.remote(x) for s in self.servers for _ in range(n)])
            return replies[-1]

        def pids(self):
            return os.getpid(), api.get([s.small_value.remote(True) for s in self.servers])

    @api.remote
    def drive(servers, n):
        count = len(servers)
        replies = api.get([servers[i % count].small_value.remote() for i in range(n)])
        return replies[-1]

    @api.remote
    def drive_pids(servers):
        return os.getpid(), api.get([s.small_value.remote(True) for s in servers])

    return SimpleNamespace(**{k: v for k, v in locals().items() if k != "api"})


def check_clients(api, refs):
    for caller, pids in api.get(refs):
        elsewhere(pids, [caller])


# Objects


@rate_line("1-client get calls", "1/s", "objects")
def get_small(api):
    ref = api.put(0)
    return Step(lambda: api.get(ref), verify=lambda: need(api.get(ref) == 0, "get of put(0)"))


@rate_line("1-client put calls", "1/s", "objects")
def put_small(api):
    return Step(lambda: api.put(0), verify=lambda: need(api.get(api.put(0)) == 0, "put(0)"))


@rate_line("multi-client put calls", "1/s", "objects")
def multi_put_small(api):
    @api.remote
    def put_many(want_pid=False):
        for _ in range(100):
            api.put(0)
        return os.getpid() if want_pid else 0

    def verify():
        elsewhere(api.get([put_many.remote(True) for _ in range(10)]))

    return Step(lambda: api.get([put_many.remote() for _ in range(10)]), 1000, verify)


@rate_line("1-client put GB/s", "GB/s", "objects")
def put_gb(api):
    array = np.zeros(100 * 1024 * 1024, dtype=np.int64)

    def verify():
        # Shares no memory with the source: put is a snapshot.
        got = api.get(api.put(array))
        need(got.shape == array.shape and not np.shares_memory(got, array), "put of the array")

    return Step(lambda: api.put(array), 0.8, verify)


@rate_line("multi-client put GB/s", "GB/s", "objects")
def multi_put_gb(api):
    @api.remote
    def put_many(want_pid=False):
        for _ in range(10):
            api.put(np.zeros(10 * 1024 * 1024, dtype=np.int64))
        return os.getpid() if want_pid else 0

    def verify():
        elsewhere(api.get([put_many.remote(True)]))

    return Step(lambda: api.get([put_many.remote() for _ in range(10)]), 8, verify)


@rate_line("get of an object holding 10k refs", "1/s", "objects")
def get_10k_refs(api):
    @api.remote
    def make():
        return [api.put(1) for _ in range(10_000)]

    ref = make.remote()

    def verify():
        refs = api.get(ref)
        need(len(refs) == 10_000 and api.get(refs[9_999]) == 1, "object with refs")

    return Step(lambda: api.get(ref), verify=verify)


# Tasks


def task_verifier(api, small_value):
    return lambda: elsewhere(api.get([small_value.remote(True) for _ in range(4)]))


@rate_line("tasks sync", "1/s", "tasks")
def tasks_sync(api):
    f = programs(api).small_value
    return Step(lambda: api.get(f.remote()), verify=task_verifier(api, f))


@rate_line("tasks async", "1/s", "tasks")
def tasks_async(api):
    f = programs(api).small_value

    def run():
        replies = api.get([f.remote() for _ in range(1000)])
        need(replies[-1] == b"ok", "reply")

    return Step(run, 1000, task_verifier(api, f))


@rate_line("tasks and get batch (x1000)", "1/s", "tasks")
def tasks_batch(api):
    f = programs(api).small_value

    def run():
        submitted = [f.remote() for _ in range(1000)]
        api.get(submitted)

    return Step(run, 1, task_verifier(api, f))


def drain(api, pending, count):
    fetch_local = True  # asked for once: later waits need not repeat it
    for _ in range(count):
        _ready, pending = api.wait(pending, fetch_local=fetch_local)
        fetch_local = False
    need(not pending, "every ref became ready")


@rate_line("submit 1k tasks, wait on each", "1/s", "tasks")
def wait_1k(api):
    f = programs(api).small_value
    return Step(
        lambda: drain(api, [f.remote() for _ in range(1000)], 1000),
        verify=task_verifier(api, f),
    )


@rate_line("1k waits on finished refs", "1/s", "tasks")
def wait_finished_1k(api):
    f = programs(api).small_value
    refs = [f.remote() for _ in range(1000)]
    need(api.get(refs)[-1] == b"ok", "reply")
    return Step(lambda: drain(api, list(refs), 1000), verify=task_verifier(api, f))


@rate_line("multi-client tasks async", "1/s", "tasks")
def multi_tasks(api):
    n = 10_000
    clients = [programs(api).TaskClient.remote() for _ in range(CLIENTS)]

    def run(count=n):
        need(set(api.get([c.run.remote(count) for c in clients])) == {b"ok"}, "reply")

    return Step(
        run,
        n * CLIENTS,
        lambda: check_clients(api, [c.pids.remote() for c in clients]),
        warm=lambda: run(500),
        keep=clients,
    )


# Actors


def one_actor(api, cls, calls, argument=False, **options):
    actor = cls.options(**options).remote()

    def verify():
        method = actor.small_value_arg if argument else actor.small_value
        args = (1,) if argument else ()
        elsewhere(api.get([method.remote(*args, want_pid=True)]))

    def one():
        api.get(actor.small_value.remote())

    def many():
        need(api.get([actor.small_value.remote() for _ in range(calls)])[-1] == b"ok", "reply")

    def many_with_argument():
        replies = api.get([actor.small_value_arg.remote(i) for i in range(calls)])
        need(replies[-1] == b"ok", "reply")

    run = one if calls == 1 else many_with_argument if argument else many
    return Step(run, calls, verify, keep=[actor])


@rate_line("1:1 actor calls sync", "1/s", "actors")
def actor_sync(api):
    return one_actor(api, programs(api).Server, 1)


@rate_line("1:1 actor calls async", "1/s", "actors")
def actor_async(api):
    return one_actor(api, programs(api).Server, 1000)


@rate_line("1:1 actor calls concurrent", "1/s", "actors")
def actor_concurrent(api):
    return one_actor(api, programs(api).Server, 1000, max_concurrency=16)


def one_to_many(api, cls, method, n, paired=False):
    servers = [cls.remote() for _ in range(ACTORS)]
    p = programs(api)
    groups = [[s] for s in servers] if paired else [servers]
    clients = [p.Client.remote(group) for group in groups]

    def run(count=n):
        refs = [getattr(c, method).remote(count) for c in clients]
        need(set(api.get(refs)) == {b"ok"}, "reply")

    return Step(
        run,
        n * len(servers),
        lambda: check_clients(api, [c.pids.remote() for c in clients]),
        warm=lambda: run(n // 10),
        keep=[*servers, *clients],
    )


def many_to_many(api, cls):
    n = 5000
    servers = [cls.remote() for _ in range(ACTORS)]
    p = programs(api)

    def run(count=n):
        refs = [p.drive.remote(servers, count) for _ in range(CLIENTS)]
        need(set(api.get(refs)) == {b"ok"}, "reply")

    return Step(
        run,
        n * CLIENTS,
        lambda: check_clients(api, [p.drive_pids.remote(servers)]),
        warm=lambda: run(n // 10),
        keep=servers,
    )


@rate_line("1:n actor calls async", "1/s", "actors")
def actor_1n(api):
    return one_to_many(api, programs(api).Server, "run", 5000)


@rate_line("n:n actor calls async", "1/s", "actors")
def actor_nn(api):
    return many_to_many(api, programs(api).Server)


@rate_line("n:n actor calls with a ref argument", "1/s", "actors")
def actor_nn_arg(api):
    return one_to_many(api, programs(api).Server, "run_arg", 1000, paired=True)


# Asyncio actors


@rate_line("1:1 async-actor calls sync", "1/s", "async_actors")
def async_actor_sync(api):
    return one_actor(api, programs(api).AsyncServer, 1)


@rate_line("1:1 async-actor calls async", "1/s", "async_actors")
def async_actor_async(api):
    return one_actor(api, programs(api).AsyncServer, 1000)


@rate_line("1:1 async-actor calls with an int argument", "1/s", "async_actors")
def async_actor_arg(api):
    return one_actor(api, programs(api).AsyncServer, 1000, argument=True)


@rate_line("1:n async-actor calls async", "1/s", "async_actors")
def async_actor_1n(api):
    return one_to_many(api, programs(api).AsyncServer, "run", 5000)


@rate_line("n:n async-actor calls async", "1/s", "async_actors")
def async_actor_nn(api):
    return many_to_many(api, programs(api).AsyncServer)


@rate_line("placement group create and remove", "1/s", "placement", init={"resources": {"custom": 100}})
def placement_groups(api):
    from importlib import import_module

    util = import_module(api.__name__ + ".util")

    def run():
        groups = [util.placement_group([{"custom": 0.001}]) for _ in range(100)]
        need(all(g.wait(timeout_seconds=30) for g in groups), "groups are placed")
        for g in groups:
            util.remove_placement_group(g)

    return Step(run, 100)
