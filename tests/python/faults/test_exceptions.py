"""What users raise arrives as what it was: of its own type, with the refs that it holds, whatever its class does."""

import asyncio
import builtins
import gc
import logging
import os
import threading

import numpy as np
import pytest
import skate
from os_facts import eventually, is_running
from skate.exceptions import ActorDiedError, TaskError, UnserializableError

CLUSTER = {"num_cpus": 4, "log_to_driver": False}
pytestmark = pytest.mark.usefixtures("cluster")

LARGE = 300_000  # int64: 2.4 MB, in the store

BUILTIN = sorted(
    (cls for cls in vars(builtins).values() if isinstance(cls, type) and issubclass(cls, Exception)),
    key=lambda cls: cls.__name__,
)
ARGUMENTS = {
    "UnicodeDecodeError": ("utf-8", b"x", 0, 1, "why"),
    "UnicodeEncodeError": ("utf-8", "x", 0, 1, "why"),
    "UnicodeTranslateError": ("x", 0, 1, "why"),
    "ExceptionGroup": ("several", [ValueError(1), MemoryError(2)]),
}


@skate.remote(max_retries=0)
def raises(box):
    raise box[0]


def error_of(ref):
    with pytest.raises(TaskError) as info:
        skate.get(ref, timeout=50)
    return info.value


# --- types ------------------------------------------------------------------------------------


def test_every_builtin_exception_arrives_as_itself():
    assert MemoryError in BUILTIN and OSError in BUILTIN and len(BUILTIN) > 50
    made = [cls(*ARGUMENTS.get(cls.__name__, ("x",))) for cls in dict.fromkeys(BUILTIN)]
    refs = [raises.remote([error]) for error in made]
    for error, ref in zip(made, refs, strict=True):
        raised = error_of(ref)
        assert isinstance(raised, type(error)), type(error)
        assert type(raised.cause) is type(error)
        assert [str(arg) for arg in raised.cause.args] == [str(arg) for arg in error.args]


def test_running_out_of_memory_is_caught_as_that():
    with pytest.raises(MemoryError) as info:
        skate.get(skate.remote(max_retries=0)(lambda: bytearray(10**15)).remote())
    assert isinstance(info.value, TaskError)


class Final(Exception):
    def __init_subclass__(cls, **kwargs):
        raise RuntimeError("no children")


def test_a_class_that_cannot_be_derived_from_is_warned_of():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("skate")
    logger.addHandler(handler)
    try:
        raised = error_of(raises.remote([Final("f")]))
    finally:
        logger.removeHandler(handler)
    assert type(raised) is TaskError and type(raised.cause) is Final and raised.cause.args == ("f",)
    assert len(said) == 1
    for word in ("Final", "no children", "TaskError", "cause"):
        assert word in said[0], said


class FixedArgs(Exception):
    @property
    def args(self):
        return ("fixed",)


def test_a_class_with_args_of_its_own():
    raised = error_of(raises.remote([FixedArgs()]))
    assert isinstance(raised, FixedArgs) and raised.args == ("fixed",)


# --- classes that do not travel ---------------------------------------------------------------


def leave():
    raise SystemExit(3)


class LeavesWhenLoaded(Exception):
    def __reduce__(self):
        return leave, ()


class LeavesWhenPickled(Exception):
    def __reduce__(self):
        raise SystemExit(4)


class LeavesWhenShown(Exception):
    def __str__(self):
        raise SystemExit(5)


@skate.remote(num_cpus=0)
class Thrower:
    def pid(self):
        return os.getpid()

    def throw(self, cls):
        raise cls("words")


@pytest.mark.parametrize(
    "cls, code", [(LeavesWhenLoaded, "3"), (LeavesWhenPickled, "4")], ids=["loaded", "pickled"]
)
def test_an_exception_that_calls_exit_costs_no_worker(cls, code):
    thrower = Thrower.remote()
    pid = skate.get(thrower.pid.remote())
    raised = error_of(thrower.throw.remote(cls))
    assert isinstance(raised.cause, UnserializableError)
    assert cls.__name__ in raised.cause.class_name and raised.cause.text == "words"
    assert f"SystemExit: {code}" in str(raised.cause)
    assert skate.get(thrower.pid.remote()) == pid


def test_an_exception_whose_text_calls_exit_costs_no_worker():
    thrower = Thrower.remote()
    pid = skate.get(thrower.pid.remote())
    assert isinstance(error_of(thrower.throw.remote(LeavesWhenShown)), LeavesWhenShown)
    assert skate.get(thrower.pid.remote()) == pid


# --- refs -------------------------------------------------------------------------------------


class Holding(Exception):
    pass


class Strict(Exception):
    def __init__(self, ref):
        if not isinstance(ref, skate.ObjectRef):
            raise TypeError(f"a Strict needs a ref, not {ref!r}")
        super().__init__(ref)


@skate.remote(max_retries=0)
def raises_refs(cls, *values):
    refs = [skate.put(value) for value in values]
    raise cls(*refs)


@pytest.mark.parametrize("cls", [Holding, Strict])
def test_a_ref_in_an_exception_can_be_read(cls):
    raised = error_of(raises_refs.remote(cls, np.arange(LARGE)))
    assert isinstance(raised, cls) and type(raised.cause) is cls
    (ref,) = raised.cause.args
    assert np.array_equal(skate.get(ref, timeout=30), np.arange(LARGE))


def test_several_refs_in_an_exception_keep_their_places():
    raised = error_of(raises_refs.remote(Holding, "a", 2, [3]))
    assert skate.get(list(raised.cause.args), timeout=30) == ["a", 2, [3]]


def test_the_callers_own_ref_in_an_exception():
    mine = skate.put("mine")
    raised = error_of(raises.remote([Holding(mine, mine)]))
    assert raised.cause.args == (mine, mine) and skate.get(raised.cause.args[1]) == "mine"


def test_each_of_several_results_holds_the_refs():
    first, second = raises_refs.options(num_returns=2).remote(Holding, np.arange(LARGE))
    skate.wait([first, second], num_returns=2, timeout=50)
    del first
    for _ in range(3):  # what the first one held has been given back by then, to the worker that owns it
        error_of(raises.remote([ValueError()]))
    assert skate.get(error_of(second).cause.args[0], timeout=30)[-1] == LARGE - 1


def test_a_ref_in_an_exception_of_a_generator():
    @skate.remote
    def items():
        yield 1
        raise Holding(skate.put(np.arange(LARGE)))

    stream = items.options(num_returns="streaming").remote()
    assert skate.get(next(stream)) == 1
    failed = next(stream)
    del stream
    gc.collect()
    assert skate.get(error_of(failed).cause.args[0], timeout=30)[-1] == LARGE - 1


def test_a_ref_in_an_exception_through_a_second_task():
    @skate.remote(max_retries=0)
    def outer():
        skate.get(raises_refs.remote(Holding, np.arange(LARGE)))

    raised = error_of(outer.remote())
    assert isinstance(raised, Holding)
    assert skate.get(raised.cause.args[0], timeout=30)[-1] == LARGE - 1


def test_a_ref_in_an_exception_as_an_argument_that_failed():
    @skate.remote
    def takes(value):
        return value

    raised = error_of(takes.remote(raises_refs.remote(Holding, np.arange(LARGE))))
    assert skate.get(raised.cause.args[0], timeout=30)[-1] == LARGE - 1


def test_a_ref_in_an_exception_of_an_asyncio_actor():
    @skate.remote(num_cpus=0)
    class Async:
        async def throw(self):
            raise Holding(skate.put("small"))

    actor = Async.remote()

    async def look():
        try:
            await actor.throw.remote()
        except Holding as error:
            return await error.cause.args[0]

    assert asyncio.run(look()) == "small"


@skate.remote(num_cpus=0)
class Child:
    def pid(self):
        return os.getpid()


@skate.remote(num_cpus=0)
class Parent:
    "Raises handles of actors of its own, which end with the last handle."

    def __init__(self):
        self.pids = []

    def throw(self, times=1 << 30):
        if len(self.pids) == times:
            return self.pids
        child = Child.remote()
        self.pids.append(skate.get(child.pid.remote()))
        raise Holding(child)

    def latest(self):
        return self.pids[-1]


def test_a_handle_in_an_exception_is_held_as_long_as_that():
    parent = Parent.remote()
    ref = parent.throw.remote()
    raised = error_of(ref)
    pid = skate.get(parent.latest.remote())
    assert skate.get(raised.cause.args[0].pid.remote(), timeout=30) == pid
    del raised
    assert skate.get(error_of(ref).cause.args[0].pid.remote(), timeout=30) == pid
    del ref
    gc.collect()  # an exception and the frames of its traceback hold each other
    assert eventually(lambda: not is_running(pid))
    assert skate.get(parent.latest.remote()) == pid


def test_what_a_retried_exception_held_is_given_back():
    parent = Parent.remote()
    pids = skate.get(
        parent.throw.options(max_task_retries=2, retry_exceptions=True).remote(times=2), timeout=50
    )
    assert len(pids) == 2
    assert eventually(lambda: not any(is_running(pid) for pid in pids))
    assert skate.get(parent.latest.remote()) == pids[-1]


# --- the loop of an asyncio actor -------------------------------------------------------------


def test_a_method_that_stops_the_event_loop_is_named_as_the_cause():
    @skate.remote(num_cpus=0)
    class Stops:
        async def ready(self):
            return threading.get_ident()

        async def stop(self):
            asyncio.get_running_loop().stop()
            await asyncio.Event().wait()

    actor = Stops.remote()
    skate.get(actor.ready.remote())
    with pytest.raises(ActorDiedError) as info:
        skate.get(actor.stop.remote(), timeout=50)
    assert "stopped the event loop" in str(info.value) and "loop.stop()" in str(info.value)
