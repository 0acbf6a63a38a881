"""Workers that must go hand what others hold over to their node daemon: they end, their values stay."""

import asyncio
import contextlib
import os
import select
import signal
import tempfile

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


class Process:
    "A worker, whose end can be waited for."

    def __init__(self, pid):
        self.pid = pid
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.fd = None  # it has ended already

    def has_ended(self, timeout_s):
        if self.fd is None:
            return True
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def kill(self):
        if self.fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.fd, signal.SIGKILL)


def assert_ends(worker):
    if worker.has_ended(60):
        return
    logs = os.path.join(skate.init(ignore_reinit_error=True).address_info["session_dir"], "logs")
    said = {}
    for name in sorted(os.listdir(logs)):
        with open(os.path.join(logs, name), errors="replace") as file:
            said[name] = file.read()[-2000:]
    pytest.fail(f"worker {worker.pid} does not end; the logs: {said}")


@skate.remote(max_calls=1, num_cpus=0)
def leave(inner):
    "Its pid, and refs to small and large values, alone and inside each other."
    small, large = skate.put("small"), skate.put(np.full(LARGE, 7))
    return os.getpid(), {
        "small": small,
        "large": large,
        "small nest": skate.put(["nest", small, large, *inner]),
        "large nest": skate.put([np.zeros(LARGE), small, large, *inner]),
        "deep": skate.put([skate.put([skate.put("deep")])]),
        "error": failing.remote(),
    }


@skate.remote(num_cpus=0, max_retries=0)
def failing():
    raise ValueError("as it should")


def check(refs, inner):
    assert skate.get(refs["small"]) == "small"
    assert int(skate.get(refs["large"]).sum()) == 7 * LARGE
    for name in "small nest", "large nest":
        first, small, large, *others = skate.get(refs[name])
        assert first == "nest" if name == "small nest" else not first.any()
        assert skate.get(small) == "small" and int(skate.get(large).sum()) == 7 * LARGE
        assert skate.get(others) == inner
    assert skate.get(skate.get(skate.get(refs["deep"])[0])[0]) == "deep"
    with pytest.raises(ValueError, match="as it should"):
        skate.get(refs["error"])


def test_a_worker_goes_and_its_values_stay():
    pid, refs = skate.get(leave.remote([skate.put("mine"), skate.put("too")]))
    assert_ends(Process(pid))
    check(refs, ["mine", "too"])


@skate.remote(max_calls=1, num_cpus=0, num_returns=2)
def leave_with_two(refs):
    return [os.getpid(), *refs], refs


def test_a_result_that_nobody_wants_does_not_keep_its_worker():
    @skate.remote(num_cpus=0)
    class Third:
        def put(self):
            return [skate.put("of a third")]

    third = Third.remote()
    wanted, unwanted = leave_with_two.remote(skate.get(third.put.remote()))
    del unwanted
    pid, ref = skate.get(wanted)
    assert Process(pid).has_ended(60)
    assert skate.get(ref) == "of a third"
    skate.kill(third)


def test_what_it_left_travels_and_is_kept_by_others():
    @skate.remote(num_cpus=0)
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def check(self):
            check(self.refs, ["mine"])

        def give(self):
            return self.refs

    keeper = Keeper.remote()
    pid, refs = skate.get(leave.remote([skate.put("mine")]))
    skate.get(keeper.keep.remote(refs))
    del refs
    assert_ends(Process(pid))
    skate.get(keeper.check.remote())
    again = skate.get(keeper.give.remote())
    skate.kill(keeper)
    check(again, ["mine"])


def test_a_ref_that_nobody_read_keeps_what_it_leads_to():
    @skate.remote(max_calls=1, num_cpus=0)
    def outer(pids):
        pid, refs = skate.get(leave.remote([]))
        return [*pids, pid, os.getpid()], [skate.put([refs])]

    pids, (ref,) = skate.get(outer.remote([]))
    for pid in pids:
        assert_ends(Process(pid))
    check(skate.get(ref)[0], [])


def test_it_stays_for_a_task_of_its_own():
    @skate.remote(num_cpus=0)
    class Gate:
        def __init__(self):
            self.open = False

        def push(self):
            self.open = True

        def is_open(self):
            return self.open

    @skate.remote(num_cpus=0)
    def slow(gate):
        while not skate.get(gate.is_open.remote()):
            pass
        return "done"

    @skate.remote(max_calls=1, num_cpus=0)
    def submit(gate):
        return os.getpid(), [slow.remote(gate), skate.put("small")]

    @skate.remote(num_cpus=0)
    def read(refs):
        return skate.get(refs)

    gate = Gate.remote()
    pid, (result, small) = skate.get(submit.remote(gate))
    worker = Process(pid)
    assert worker.fd is not None and not worker.has_ended(0)
    assert skate.get(small) == "small"
    skate.get(gate.push.remote())
    assert_ends(worker)
    assert skate.get(result) == "done"
    assert skate.get(read.remote([small])) == ["small"], (
        "what was read before its owner's end can be passed on"
    )


def test_many_small_values_are_handed_over_in_parts():
    count, size = 200, 60_000

    @skate.remote(max_calls=1, num_cpus=0)
    def many():
        return os.getpid(), [skate.put(bytes([i]) * size) for i in range(count)]

    pid, refs = skate.get(many.remote())
    assert_ends(Process(pid))
    assert [value[:1] for value in skate.get(refs)] == [bytes([i]) for i in range(count)]


@pytest.mark.parametrize("reads", [False, True])
def test_what_it_left_is_freed(reads):
    "More than the store holds goes through it: nothing is spilled only if what went before is freed."
    for _ in range(12):
        pid, refs = skate.get(leave.remote([]))
        assert_ends(Process(pid))
        if reads:
            check(refs, [])
        del refs
    assert bytes_on_disk(descendants(os.getpid()), SPILLED) == 0


def test_killed_in_the_midst_it_costs_no_more_than_small_values():
    @skate.remote(max_calls=1, num_cpus=0)
    def several():
        small = [skate.put(bytes([i]) * 50_000) for i in range(100)]
        large = skate.put(np.full(LARGE, 7))
        return os.getpid(), small, [large, skate.put([np.zeros(LARGE), large])]

    for round in range(12):
        pid, small, (large, nest) = skate.get(several.remote())
        worker = Process(pid)
        worker.has_ended(round / 1000)
        worker.kill()
        for i, ref in enumerate(small):
            with contextlib.suppress(OwnerDiedError):
                assert skate.get(ref, timeout=60) == bytes([i]) * 50_000
        assert int(skate.get(large, timeout=60).sum()) == 7 * LARGE
        zeros, inner = skate.get(nest, timeout=60)
        assert not zeros.any() and int(skate.get(inner).sum()) == 7 * LARGE
        assert_ends(worker)
        del small, large, nest, ref, zeros, inner
    assert bytes_on_disk(descendants(os.getpid()), SPILLED) == 0


def test_idle_workers_go_though_others_hold_what_they_own():
    "As many as there are CPUs are kept. The others end, and nothing of theirs is lost."

    @skate.remote(num_cpus=0)
    class Meeting:
        def __init__(self, size):
            self.size, self.all_are_here = size, asyncio.Event()

        async def join(self):
            self.size -= 1
            if self.size == 0:
                self.all_are_here.set()
            await self.all_are_here.wait()

    @skate.remote(num_cpus=0)
    def own(meeting):
        skate.get(meeting.join.remote())
        return os.getpid(), [skate.put("small"), skate.put(np.full(LARGE // 10, 7))]

    count = 8
    meeting = Meeting.remote(count)
    results = skate.get([own.remote(meeting) for _ in range(count)])
    poller, ended = select.poll(), 0
    for pid, _ in results:
        worker = Process(pid)
        if worker.fd is None:
            ended += 1
        else:
            poller.register(worker.fd, select.POLLIN)
    while ended < count - CLUSTER["num_cpus"]:
        news = poller.poll(60_000)
        assert news, f"{ended} of {count} idle workers have ended"
        for fd, _ in news:
            poller.unregister(fd)
            ended += 1
    for _, (small, large) in results:
        assert skate.get(small) == "small" and int(skate.get(large).sum()) == 7 * (LARGE // 10)
