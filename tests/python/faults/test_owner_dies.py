"""Owners that die while others hold their objects: what is stored lives on, what was small is lost with a cause."""

import os
import signal
import tempfile
import threading

import numpy as np
import pytest
import skate
from os_facts import bytes_on_disk, descendants
from skate.exceptions import OwnerDiedError

SPILLED = tempfile.mkdtemp(prefix="spilled-")
CLUSTER = {
    "num_cpus": 4,
    "object_store_memory": 100 << 20,
    "log_to_driver": False,
    "object_spilling_directory": SPILLED,
}
pytestmark = pytest.mark.usefixtures("cluster")

LARGE = 1_000_000  # int64: 8 MB


@skate.remote(num_cpus=0)
class Owner:
    def pid(self):
        return os.getpid()

    def large(self, n=LARGE):
        return [skate.put(np.full(n, 7))]

    def small(self):
        return [skate.put("small")]

    def nested(self, inner):
        "A stored object with two refs inside: one of its own, one of somebody else's."
        own = skate.put(np.full(LARGE, 8))
        return [skate.put([np.zeros(LARGE), own, *inner])]

    def circle(self, keeper):
        "A stored object that contains a ref to itself."
        result = keeper.give_later.remote()
        skate.get(keeper.keep.remote([result]))
        skate.wait([result], timeout=20)
        skate.get(keeper.drop.remote())
        return [result]

    def result(self, other):
        return [other.large.remote()]

    def pending(self, other):
        return [other.never.remote()]

    def never(self):
        signal.pause()

    def make(self, inner):
        return [skate.put([np.zeros(LARGE), inner])]


@skate.remote(num_cpus=0, max_concurrency=2)
class Keeper:
    def __init__(self):
        self.kept = threading.Event()

    def keep(self, refs):
        self.refs = refs
        self.kept.set()

    def give_later(self):
        self.kept.wait()
        return [np.zeros(LARGE), self.refs]

    def read(self):
        return [int(np.sum(v)) if isinstance(v, np.ndarray) else v for v in skate.get(self.refs)]

    def give(self):
        return self.refs

    def drop(self):
        self.refs = None


def kill(owner):
    "By a signal from outside: nothing of it is warned."
    pid = skate.get(owner.pid.remote())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(skate.exceptions.ActorDiedError):
        skate.get(owner.pid.remote())
    return pid


def test_a_stored_object_outlives_its_owner():
    owner = Owner.remote()
    (ref,) = skate.get(owner.large.remote())
    kill(owner)
    assert int(skate.get(ref).sum()) == 7 * LARGE
    assert skate.wait([ref], timeout=10)[0] == [ref]


def test_a_small_value_is_lost_with_a_cause_that_names_its_owner():
    owner = Owner.remote()
    (ref,) = skate.get(owner.small.remote())
    pid = kill(owner)
    with pytest.raises(OwnerDiedError) as raised:
        skate.get(ref)
    assert str(pid) in str(raised.value) and "signal 9" in str(raised.value)


def test_a_value_that_was_read_needs_no_owner():
    owner = Owner.remote()
    (ref,) = skate.get(owner.small.remote())
    assert skate.get(ref) == "small"
    kill(owner)
    assert skate.get(ref) == "small"


def test_an_adopted_ref_travels():
    owner, keeper = Owner.remote(), Keeper.remote()
    refs = skate.get(owner.large.remote())
    kill(owner)

    @skate.remote(num_cpus=0)
    def total(value, refs):
        return int(value.sum()) + int(skate.get(refs[0]).sum())

    assert skate.get(total.remote(refs[0], refs)) == 14 * LARGE
    skate.get(keeper.keep.remote(refs))
    del refs
    assert skate.get(keeper.read.remote()) == [7 * LARGE]
    (again,) = skate.get(keeper.give.remote())
    skate.get(keeper.drop.remote())
    assert int(skate.get(again).sum()) == 7 * LARGE


def test_actor_state_keeps_what_its_owner_left():
    owner, keeper = Owner.remote(), Keeper.remote()
    skate.get(keeper.keep.remote(skate.get(owner.large.remote())))
    kill(owner)
    assert skate.get(keeper.read.remote()) == [7 * LARGE]


def test_refs_inside_an_adopted_object_resolve():
    owner = Owner.remote()
    mine = skate.put(np.full(LARGE, 9))
    (outer,) = skate.get(owner.nested.remote([mine]))
    del mine
    kill(owner)
    zeros, own, other = skate.get(outer)
    assert not zeros.any()
    assert int(skate.get(own).sum()) == 8 * LARGE and int(skate.get(other).sum()) == 9 * LARGE
    del outer
    assert int(skate.get(other).sum()) == 9 * LARGE


def test_a_stored_result_of_a_dead_callers_task_resolves():
    caller, other = Owner.remote(), Owner.remote()
    (result,) = skate.get(caller.result.remote(other))
    skate.wait([result], timeout=20)
    kill(caller)
    (ref,) = skate.get(result)
    assert int(skate.get(ref).sum()) == 7 * LARGE


def test_a_pending_result_of_a_dead_caller_is_lost():
    caller, other = Owner.remote(), Owner.remote()
    (result,) = skate.get(caller.pending.remote(other))
    pid = kill(caller)
    with pytest.raises(OwnerDiedError, match=str(pid)):
        skate.get(result)


def test_two_owners_die_one_after_the_other():
    first, second = Owner.remote(), Owner.remote()
    (inner,) = skate.get(first.large.remote())
    (outer,) = skate.get(second.make.remote([inner]))
    del inner
    kill(first)
    kill(second)
    _, (again,) = skate.get(outer)
    assert int(skate.get(again).sum()) == 7 * LARGE


def test_a_get_that_waits_when_the_owner_dies_ends():
    caller, other = Owner.remote(), Owner.remote()
    (result,) = skate.get(caller.pending.remote(other))
    pid = skate.get(caller.pid.remote())

    @skate.remote(num_cpus=0)
    def read(refs):
        with pytest.raises(OwnerDiedError):
            skate.get(refs)
        return True

    waiting = read.remote([result])
    skate.wait([waiting], timeout=0.5)
    os.kill(pid, signal.SIGKILL)
    assert skate.get(waiting, timeout=30)


@pytest.mark.parametrize("how", ["dropped", "holder-dies", "never-held", "in-a-circle"])
def test_what_a_dead_owner_left_is_freed(how):
    "More than the store holds goes through it: nothing is spilled only if what went before is freed."
    for _ in range(16):
        owner = Owner.remote()
        circle = how == "in-a-circle"
        refs = skate.get(owner.circle.remote(Keeper.remote()) if circle else owner.large.remote())
        if how == "holder-dies":
            keeper = Keeper.remote()
            skate.get(keeper.keep.remote(refs))
            refs = None
            kill(owner)
            assert skate.get(keeper.read.remote()) == [7 * LARGE]
            skate.kill(keeper)
            with pytest.raises(skate.exceptions.ActorDiedError):
                skate.get(keeper.give.remote())
        else:
            if how != "dropped":
                refs = None
            kill(owner)
        refs = None
    assert bytes_on_disk(descendants(os.getpid()), SPILLED) == 0
