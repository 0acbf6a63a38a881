"""The Python surface by itself, on the fake native module; in a process of its own."""

import asyncio
import io
import os
import pickle
import queue
import sys

import cloudpickle
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fake_skate

fake_skate.install()

import skate  # noqa: E402
from skate import exceptions as ex  # noqa: E402
from skate.actor import ActorClassInheritanceException, exit_actor  # noqa: E402


@pytest.fixture(autouse=True)
def connection():
    skate.init(namespace="tests", log_to_driver=False)
    yield
    skate.shutdown()


@skate.remote
def add(a, b=2, *, c=3):
    return a + b + c


@skate.remote
def fail(error):
    """Raises `error`, or what it returns."""
    raise error() if callable(error) else error


@skate.remote
class Counter:
    step = 1

    def __init__(self, start=0):
        if start is None:
            raise ValueError("no start")
        self.value = start

    def add(self, amount=1):
        self.value += amount
        return self.value

    @skate.method(num_returns=2)
    def two(self):
        return 1, 2

    def items(self, count):
        yield from range(count)

    def leave(self):
        exit_actor()

    def me(self):
        return skate.get_runtime_context().current_actor

    @staticmethod
    def plain(x):
        return x

    @classmethod
    def name_of(cls):
        return cls.__name__


# --- functions --------------------------------------------------------------------------------


def test_call_and_fast_path():
    assert skate.get(add.remote(1)) == 6
    assert skate.get(add.remote(1, c=0)) == 3
    assert "remote" in vars(add)  # the native submit
    skate.shutdown()
    assert "remote" not in vars(add)
    assert skate.get(add.remote(1, 1)) == 5  # connects by itself


def test_refs_as_arguments():
    assert skate.get(add.remote(skate.put(1), b=skate.put(1))) == 5


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"d": 1}, "unexpected keyword argument 'd'"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
    ],
)
def test_arguments_are_checked_at_submit(args, kwargs, text):
    with pytest.raises(TypeError, match=text) as info:
        add.remote(*args, **kwargs)
    assert "add(a, b=..., *, c=...)" in str(info.value)


def test_required_keyword():
    @skate.remote
    def keyword_only(*, key):
        return key

    with pytest.raises(TypeError, match="key"):
        keyword_only.remote()
    assert skate.get(keyword_only.remote(key=1)) == 1


def test_direct_call_says_what_to_do():
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        add(1)


def test_options():
    two = add.options(num_returns=1, name="sum", num_cpus=0.5)
    assert skate.get(two.remote(1)) == 6
    assert skate.get(two.remote(1)) == 6

    @skate.remote(num_returns=2)
    def pair():
        return 1, 2

    assert skate.get(pair.remote()) == [1, 2]
    assert pair.options(num_returns=0).remote() is None


def test_recursion_by_remote():
    @skate.remote
    def factorial(n):
        return 1 if n == 0 else n * skate.get(factorial.remote(n - 1))

    assert skate.get(factorial.remote(5)) == 120


def test_generators():
    @skate.remote
    def count(n):
        yield from range(n)

    generator = count.remote(3)
    assert [skate.get(ref) for ref in generator] == [0, 1, 2]
    assert generator.is_finished()
    with pytest.raises(StopIteration):
        next(generator)
    assert skate.get(count.remote(1).completed()) is None
    with pytest.raises(NotImplementedError):
        generator.send(1)
    with pytest.raises(TypeError):
        pickle.dumps(generator)

    async def collect():
        return [await ref async for ref in count.remote(3)]

    assert asyncio.run(collect()) == [0, 1, 2]
    ready, rest = skate.wait([count.remote(2)])
    assert len(ready) == 1
    assert not rest


def test_retry_exceptions():
    attempts = []

    @skate.remote(max_retries=2, retry_exceptions=[KeyError])
    def flaky(kind):
        import fake_skate

        tried = fake_skate._state["kv"].setdefault(kind, [])
        tried.append(1)
        raise kind("x")

    with pytest.raises(KeyError):
        skate.get(flaky.remote(KeyError))
    with pytest.raises(ValueError):
        skate.get(flaky.remote(ValueError))
    tried = fake_skate._state["kv"]
    assert (len(tried[KeyError]), len(tried[ValueError])) == (3, 1)
    assert not attempts


# --- options ----------------------------------------------------------------------------------


def plain():
    pass


class Plain:
    pass


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"foo": 1}),
        (TypeError, {"num_cpus": "a"}),
        (ValueError, {"num_cpus": -1}),
        (ValueError, {"num_gpus": 1.5}),
        (ValueError, {"resources": {"CPU": 1}}),
        (ValueError, {"resources": {"a": -1}}),
        (TypeError, {"resources": {"a": "1"}}),
        (ValueError, {"memory": -1}),
        (ValueError, {"memory": 10**15}),
        (ValueError, {"num_cpus": 1e-9}),
        (ValueError, {"resources": {"a": 1e15}}),
        (ValueError, {"num_returns": 2**32 + 1}),
        (ValueError, {"max_retries": 2**40}),
        (ValueError, {"placement_group_bundle_index": 5}),
        (TypeError, {"placement_group": "x"}),
        (ValueError, {"num_returns": -2}),
        (ValueError, {"num_returns": "foo"}),
        (ValueError, {"num_returns": "streaming"}),
        (ValueError, {"max_retries": -2}),
        (ValueError, {"max_calls": -1}),
        (ValueError, {"retry_exceptions": [1]}),
        (TypeError, {"name": 3}),
        (ValueError, {"scheduling_strategy": "X"}),
        (TypeError, {"scheduling_strategy": 3}),
        (TypeError, {"runtime_env": [1]}),
        (ValueError, {"object_store_memory": 5}),
        (TypeError, {"label_selector": 3}),
        (ValueError, {"label_selector": {"a": "in(b"}}),
        (ValueError, {"fallback_strategy": [{"x": {}}]}),
        (TypeError, {"enable_task_events": 3}),
        (ValueError, {"max_restarts": 1}),
    ],
)
def test_bad_task_options(error, options):
    with pytest.raises(error):
        skate.remote(**options)(plain)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"max_calls": 1}),
        (ValueError, {"num_returns": 1}),
        (ValueError, {"max_restarts": -2}),
        (ValueError, {"max_task_retries": -2}),
        (ValueError, {"lifetime": "x"}),
        (ValueError, {"get_if_exists": True}),
        (TypeError, {"concurrency_groups": {"a": "b"}}),
        (ValueError, {"concurrency_groups": {"a": 0}}),
        (TypeError, {"allow_out_of_order_execution": 3}),
    ],
)
def test_bad_actor_options(error, options):
    with pytest.raises(error):
        skate.remote(**options)(Plain)


def test_bad_uses_of_remote():
    for bad in (lambda: skate.remote(), lambda: skate.remote(3), lambda: skate.remote(plain, num_cpus=1)):
        with pytest.raises(TypeError):
            bad()
    with pytest.raises(ValueError):
        add.options(max_calls=1)
    with pytest.raises(ValueError):
        Counter.options(concurrency_groups={"a": 1})

    async def coroutine():
        pass

    with pytest.raises(ValueError, match=r"asyncio\.run"):
        skate.remote(coroutine)


def test_resources():
    from skate._options import actor_resources, resources

    assert resources({}, 1) == {"CPU": 1.0}
    assert resources({"num_cpus": 0, "num_gpus": 0.5, "memory": 10.5}, 1) == {"GPU": 0.5, "memory": 10.0}
    assert resources({"accelerator_type": "L4"}, 1) == {"CPU": 1.0, "accelerator_type:L4": 0.001}
    assert actor_resources({}) == ({}, {"CPU": 1.0})
    assert actor_resources({"num_gpus": 1})[0] == {"CPU": 1.0, "GPU": 1.0}
    assert actor_resources({"num_gpus": 0})[0] == {"CPU": 1.0}
    assert actor_resources({"num_cpus": 0}) == ({}, {})
    assert actor_resources({"resources": {"a": 2}})[0] == {"CPU": 1.0, "a": 2.0}


# --- errors -----------------------------------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b


class KeywordArgument(Exception):
    def __init__(self, *, x):
        self.x = x


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("v"),
        lambda: KeyError("k"),
        lambda: TwoArguments(1, 2),
        lambda: KeywordArgument(x=3),
        lambda: StopIteration(4),
    ],
)
def test_errors_keep_their_type(make):
    error = make()
    with pytest.raises(type(error)) as caught:
        skate.get(fail.remote(make))
    raised = caught.value
    assert isinstance(raised, ex.TaskError)
    assert type(raised.cause) is type(error)
    assert "skate::fail() (pid=" in str(raised)
    assert "in fail" in str(raised)
    assert "_worker.py" not in str(raised)
    copy = pickle.loads(pickle.dumps(raised))
    assert isinstance(copy, type(error))
    assert str(copy) == str(raised)
    assert copy.as_instanceof_cause() is copy


def test_errors_keep_attributes():
    with pytest.raises(TwoArguments) as caught:
        skate.get(fail.remote(lambda: TwoArguments(1, 2)))
    assert caught.value.b == 2
    with pytest.raises(FileNotFoundError) as caught:
        skate.get(fail.remote(FileNotFoundError(2, "no", "name")))
    assert (caught.value.errno, caught.value.filename) == (2, "name")
    with pytest.raises(UnicodeDecodeError) as caught:
        skate.get(fail.remote(UnicodeDecodeError("utf-8", b"x", 0, 1, "why")))
    assert caught.value.reason == "why"


def test_unpicklable_error():
    import threading

    @skate.remote
    def raises():
        class Held(Exception):
            def __init__(self):
                super().__init__("held")
                self.lock = threading.Lock()

        raise Held()

    with pytest.raises(ex.TaskError, match="held") as caught:
        skate.get(raises.remote())
    assert isinstance(caught.value.cause, ex.UnserializableError)
    assert "Held" in caught.value.cause.class_name


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_exception_group():
    @skate.remote
    def group():
        raise ExceptionGroup("several", [ValueError(1), KeyError(2)])  # noqa: F821

    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
        skate.get(group.remote())
    assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]
    assert caught.value.message == "several"


def test_error_of_an_argument_and_nested():
    @skate.remote
    def outer():
        return skate.get(fail.remote(KeyError("deep")))

    with pytest.raises(KeyError) as caught:
        skate.get(outer.remote())
    assert str(caught.value).count("skate::") == 2
    assert caught.value.cause.args == ("deep",)


def test_chained_cause_is_in_the_text():
    @skate.remote
    def chained():
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            raise ValueError("v") from error

    with pytest.raises(ValueError, match="division by zero"):
        skate.get(chained.remote())


def test_interrupt_is_a_cancel():
    with pytest.raises(ex.TaskCancelledError):
        skate.get(fail.remote(KeyboardInterrupt()))


@pytest.mark.parametrize("kind", sorted(__import__("skate._errors", fromlist=["x"])._MAKERS))
def test_system_errors_pickle(kind):
    from skate._errors import make_system_error

    fields = {
        "object_id": b"\x01" * 28,
        "task_id": b"\x02" * 24,
        "pid": 7,
        "signal": 9,
        "log_tail": "last words",
        "call_site": "here",
    }
    error = make_system_error(kind, fields)
    assert isinstance(error, ex.SkateError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert str(error)
    assert pickle.loads(cloudpickle.dumps(error)).args == error.args


def test_death_messages():
    from skate._errors import make_system_error

    text = str(make_system_error("worker_died", {"pid": 7, "signal": 9, "log_tail": b"a\nb"}))
    assert "SIGKILL" in text
    assert "max_retries" in text
    assert "    b" in text
    error = make_system_error("actor_died", {"actor_id": b"\x01" * 16, "exit_code": 3, "class_name": "A"})
    assert error.actor_id == "01" * 16
    assert "exited with code 3" in str(error)
    assert isinstance(error, ex.ActorDiedError)


@pytest.mark.parametrize(
    ("kind", "fields", "helps"),
    [
        ("worker_died", {"kind": "exited"}, True),
        ("worker_died", {"kind": "exited", "retries": "3"}, False),
        ("worker_died", {"kind": "killed", "cause": "its placement group was removed"}, False),
        ("actor_died", {"kind": "exited"}, True),
        ("actor_died", {"kind": "exited", "restarts": "2"}, False),
        ("actor_died", {"kind": "intended"}, False),
        ("actor_died", {"kind": "killed"}, False),
    ],
)
def test_advice_comes_only_where_it_helps(kind, fields, helps):
    from skate._errors import make_system_error

    text = str(make_system_error(kind, fields))
    assert ("Set max_re" in text) is helps
    again = fields.get("retries") or fields.get("restarts")
    assert again is None or f"{again} times" in text


def test_unhappy_refs():
    with pytest.raises(ex.GetTimeoutError):
        skate.get(skate.ObjectRef.from_random(), timeout=0)
    for bad in (1, (skate.put(1),), {1}):
        with pytest.raises(ValueError):
            skate.get(bad)
    with pytest.raises(TypeError):
        skate.get([1])
    with pytest.raises(TypeError):
        skate.put(skate.put(1))
    assert skate.get([]) == []


def test_wait_arguments():
    ref = skate.put(1)
    assert skate.wait([]) == ([], [])
    assert skate.wait([ref]) == ([ref], [])
    for error, arguments in (
        (TypeError, (ref, {})),
        (TypeError, ((ref,), {})),
        (ValueError, ([ref], {"num_returns": 0})),
        (ValueError, ([ref], {"num_returns": 2})),
        (ValueError, ([ref], {"timeout": -1})),
    ):
        with pytest.raises(error):
            skate.wait(arguments[0], **arguments[1])


def test_kill_and_cancel_arguments():
    with pytest.raises(ValueError):
        skate.kill(1)
    with pytest.raises(TypeError):
        skate.cancel(1)


# --- actors -----------------------------------------------------------------------------------


def test_actor_calls():
    counter = Counter.remote(10)
    assert skate.get(counter.add.remote()) == 11
    assert skate.get([counter.add.remote(amount=2), counter.add.remote(1)]) == [13, 14]
    assert skate.get(counter.two.remote()) == [1, 2]
    assert skate.get(counter.two.options(num_returns=1).remote()) == (1, 2)
    assert [skate.get(r) for r in counter.items.remote(2)] == [0, 1]
    assert skate.get(counter.plain.remote(3)) == 3
    assert skate.get(counter.name_of.remote()) == "Counter"
    assert "remote" in vars(counter.add)
    assert {"add", "two", "items"} <= set(dir(counter))
    assert repr(counter).startswith("Actor(Counter, ")


def test_actor_errors():
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"too many.*Counter\.add\(.*\)"):
        counter.add.remote(1, 2)
    with pytest.raises(TypeError, match=r"too many.*Counter\(.*\)"):
        Counter.remote(1, 2)
    with pytest.raises(AttributeError, match="nope"):
        counter.nope  # noqa: B018
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        counter.add()
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    with pytest.raises(ValueError):
        counter.add.options(foo=1)
    with pytest.raises(ex.ActorDiedError, match="no start") as caught:
        skate.get(Counter.remote(None).add.remote())
    assert caught.value.actor_init_failed
    assert pickle.loads(pickle.dumps(caught.value)).actor_init_failed


def test_actor_exit():
    counter = Counter.remote()
    with pytest.raises(ex.ActorDiedError):
        skate.get(counter.leave.remote())
    with pytest.raises(ex.ActorDiedError):
        skate.get(counter.add.remote())
    with pytest.raises(ex.ActorDiedError):
        skate.get(Counter.remote().__ray_terminate__.remote())
    with pytest.raises(TypeError):
        exit_actor()


def test_builtin_methods():
    counter = Counter.remote(4)
    assert skate.get(counter.__ray_ready__.remote()) is True
    assert skate.get(counter.__ray_call__.remote(lambda self, x: self.value + x, 3)) == 7


def test_handles_travel():
    counter = Counter.remote()

    @skate.remote
    def use(handles):
        return skate.get(handles[0].add.remote(5)), handles[0]

    value, handle = skate.get(use.remote([counter]))
    assert value == 5
    assert handle == counter
    assert hash(handle) == hash(counter)
    assert skate.get(counter.me.remote()) == counter


def test_named_actors():
    named = Counter.options(name="counter").remote()
    assert skate.get_actor("counter") == named
    assert Counter.options(name="counter", get_if_exists=True).remote() == named
    with pytest.raises(ValueError):
        Counter.options(name="counter").remote()
    with pytest.raises(ValueError):
        skate.get_actor("counter", namespace="other")
    with pytest.raises(ValueError):
        skate.get_actor("")
    for bad in ({"name": ""}, {"name": "x", "namespace": ""}):
        with pytest.raises(ValueError):
            Counter.options(**bad).remote()
    assert skate.util.list_named_actors() == ["counter"]


def test_inheritance():
    with pytest.raises(ActorClassInheritanceException):

        class Derived(Counter):
            pass

    class Base:
        def a(self):
            return "a"

        def hidden(self):
            return 1

    class Child(Base):
        hidden = None

        def b(self):
            return super().a() + "b"

    child = skate.remote(Child).remote()
    assert skate.get([child.a.remote(), child.b.remote()]) == ["a", "ab"]
    assert not hasattr(child, "hidden")


def test_asyncio_actor():
    @skate.remote
    class Async:
        def __init__(self):
            self.event = asyncio.Event()
            asyncio.get_running_loop()

        async def wait(self):
            await self.event.wait()
            return "waited"

        async def open(self):
            self.event.set()

        def sync(self):
            return asyncio.get_running_loop() is not None

        async def items(self, n):
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        def plain_items(self, n):
            yield from range(n)

        async def fail(self):
            raise KeyError("x")

        async def leave(self):
            exit_actor()

        def task(self):
            return skate.get_runtime_context().get_actor_id()

    actor = Async.remote()
    waits = [actor.wait.remote() for _ in range(3)]
    assert skate.get(actor.sync.remote()) is True
    assert skate.wait(waits, timeout=0)[0] == []
    skate.get(actor.open.remote())
    assert skate.get(waits, timeout=10) == ["waited"] * 3
    assert [skate.get(r) for r in actor.items.remote(3)] == [0, 1, 2]
    assert [skate.get(r) for r in actor.plain_items.remote(2)] == [0, 1]
    with pytest.raises(KeyError):
        skate.get(actor.fail.remote(), timeout=10)
    with pytest.raises(ex.ActorDiedError):
        skate.get(actor.leave.remote(), timeout=10)


def test_asyncio_limits_and_cancel():
    @skate.remote(concurrency_groups={"io": 1})
    class Async:
        def __init__(self):
            self.running = 0
            self.most = 0
            self.event = asyncio.Event()

        @skate.method(concurrency_group="io")
        async def limited(self):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1

        async def most_at_once(self):
            return self.most

        async def hang(self):
            await self.event.wait()

    actor = Async.remote()
    skate.get([actor.limited.remote() for _ in range(5)], timeout=10)
    assert skate.get(actor.most_at_once.remote()) == 1
    with pytest.raises(ValueError, match="no concurrency group 'zz'"):
        skate.get(actor.hang.options(concurrency_group="zz").remote(), timeout=10)
    hanging = actor.hang.remote()
    skate.get(actor.most_at_once.remote())
    skate.cancel(hanging)
    with pytest.raises(ex.TaskCancelledError):
        skate.get(hanging, timeout=10)


def test_awaiting_refs():
    async def main():
        values = await asyncio.gather(add.remote(1), add.remote(2).as_future())
        with pytest.raises(KeyError):
            await fail.remote(KeyError("x"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(skate.ObjectRef.from_random(), 0.01)
        return values

    assert asyncio.run(main()) == [6, 7]
    assert add.remote(3).future().result(timeout=10) == 8
    with pytest.raises(KeyError):
        fail.remote(KeyError("x")).future().result(timeout=10)


# --- init and context -------------------------------------------------------------------------


def test_init_arguments():
    with pytest.raises(RuntimeError, match="shutdown"):
        skate.init()
    assert skate.init(ignore_reinit_error=True)["gcs_address"] == "fake"
    skate.shutdown()
    skate.shutdown()
    for error, arguments in (
        (RuntimeError, {"foo": 1}),
        (RuntimeError, {"local_mode": True}),
        (RuntimeError, {"include_dashboard": True}),
        (RuntimeError, {"enable_resource_isolation": True}),
        (ValueError, {"num_cpus": -1}),
        (ValueError, {"num_cpus": 1.5}),
        (ValueError, {"resources": {"CPU": 1}}),
        (ValueError, {"num_cpus": 10**16}),
        (ValueError, {"_memory": -5}),
        (ValueError, {"_system_config": {"max_direct_call_object_size": -1}}),
        (ValueError, {"_system_config": {"rpc_send_twice": "yes"}}),
        (TypeError, {"log_to_driver": "x"}),
        (TypeError, {"labels": [1]}),
        (ValueError, {"object_store_memory": 10}),
        (TypeError, {"namespace": 3}),
        (ValueError, {"namespace": ""}),
        (ValueError, {"address": "ray://x"}),
        (ValueError, {"address": "auto", "num_cpus": 1}),
        (ValueError, {"address": "auto", "_node_name": "n"}),
        (ValueError, {"address": "auto", "object_spilling_directory": "/tmp"}),
        (ValueError, {"address": "auto", "_system_config": {"max_direct_call_object_size": 0}}),
        (TypeError, {"runtime_env": 3}),
        (TypeError, {"job_config": 3}),
        (ValueError, {"labels": {"a": 1}}),
        (ValueError, {"_system_config": {"x": 1}}),
    ):
        with pytest.raises(error):
            skate.init(**arguments)
    assert not skate.is_initialized()
    with pytest.raises(ex.SkateSystemError):
        skate.nodes()
    system = {"max_direct_call_object_size": 1000}
    with skate.init(log_to_driver=False, _system_config=system) as context:
        assert system == {"max_direct_call_object_size": 1000}, "what the caller passed is his"
        assert skate.is_initialized()
        assert context.address_info["node_id"] == "03" * 28
    assert not skate.is_initialized()


def test_address_from_the_environment(monkeypatch):
    skate.shutdown()
    monkeypatch.setenv("SKATE_ADDRESS", "127.0.0.1:1")
    skate.init(log_to_driver=False)
    assert fake_skate._state["config"]["address"] == "127.0.0.1:1"


def test_runtime_context():
    context = skate.get_runtime_context()
    assert context.get_job_id() == "01000000"
    assert context.namespace == "tests"
    assert context.get_task_id() is None
    assert context.get_actor_id() is None
    with pytest.raises(RuntimeError):
        context.current_actor  # noqa: B018
    with pytest.raises(RuntimeError):
        context.get_assigned_resources()

    @skate.remote
    def name():
        return skate.get_runtime_context().get_task_name()

    assert skate.get(name.options(name="named").remote()) == "named"


def test_ids():
    job = skate.JobID.from_int(5)
    assert (job.int(), job.hex(), job.size()) == (5, "05000000", 4)
    actor = skate.ActorID.of(job, skate.TaskID.nil(), 3)
    assert actor.job_id == job
    assert skate.TaskID.for_actor_creation_task(actor).actor_id() == actor
    assert skate.TaskID.for_normal_task(job, skate.TaskID.nil(), 1).actor_id().hex() == "ff" * 12 + "05000000"
    assert skate.NodeID.nil().is_nil()
    for cls in (skate.NodeID, skate.JobID, skate.PlacementGroupID):
        assert pickle.loads(pickle.dumps(cls.nil())) == cls.nil()
        with pytest.raises(ValueError):
            cls(b"1")
        with pytest.raises(TypeError):
            cls("1")
    assert skate.NodeID.nil() != skate.WorkerID.nil()


# --- runtime environments ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "env"),
    [
        (ValueError, {"foo": 1}),
        (TypeError, {"env_vars": {"a": 1}}),
        (TypeError, {"env_vars": ["a"]}),
        (TypeError, {"working_dir": 3}),
        (ValueError, {"working_dir": "/dev/null/gone"}),
        (ValueError, {"working_dir": "s3://x"}),
        (ValueError, {"pip": ["x"]}),
        (ValueError, {"conda": "x"}),
        (TypeError, {"py_modules": "x"}),
        (ValueError, {"config": {"setup_timeout_seconds": 0}}),
        (TypeError, {"config": 3}),
        (TypeError, {"worker_process_setup_hook": 3}),
        (TypeError, {"excludes": "a"}),
    ],
)
def test_bad_runtime_env(error, env):
    from skate.runtime_env import RuntimeEnv, validate

    with pytest.raises(error):
        validate(env)
    with pytest.raises(error):
        RuntimeEnv(**env)
    with pytest.raises(error):
        add.options(runtime_env=env)


def test_runtime_env_directories(tmp_path, monkeypatch):
    from skate import _worker, runtime_env

    source = tmp_path / "project"
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "main_module_x.py").write_text("VALUE = 1")
    (source / "big.bin").write_text("big")
    (source / "sub" / "a.log").write_text("log")
    (source / "sub" / "keep.log").write_text("log")
    (source / "sub" / "deep" / "b.txt").write_text("b")
    (source / ".gitignore").write_text("*.log\n!keep.log\n# comment\n\n")
    package = runtime_env.Package(
        runtime_env.validate(
            {"working_dir": str(source), "excludes": ["/big.bin", "deep/"], "env_vars": {"X_Y": "1"}}
        )
    )
    session = tmp_path / "session"
    package.copy_into(str(session))
    package.copy_into(str(session))
    place = runtime_env.resolve(package.env["working_dir"], str(session))
    found = sorted(os.path.relpath(os.path.join(d, f), place) for d, _, fs in os.walk(place) for f in fs)
    assert found == [".gitignore", "main_module_x.py", "sub/keep.log"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    import json

    _worker.setup_process(json.dumps(package.env), str(session))
    assert os.getcwd() == place
    assert sys.path[0] == place


def test_runtime_env_of_init_and_task(tmp_path):
    skate.shutdown()
    (tmp_path / "x.py").write_text("")
    skate.init(log_to_driver=False, runtime_env={"working_dir": str(tmp_path), "env_vars": {"A": "1"}})
    import json

    from skate import _runtime

    job = json.loads(fake_skate._state["config"]["runtime_env"])
    assert os.path.isdir(
        os.path.join(fake_skate._state["session_dir"], job["working_dir"][len("session:") :])
    )
    merged = json.loads(_runtime.runtime_env_json({"env_vars": {"B": "2"}}))
    assert merged == {**job, "env_vars": {"A": "1", "B": "2"}}
    assert _runtime.runtime_env_json(None) == ""


def test_setup_hook(tmp_path):
    from skate import _worker, runtime_env

    marks = tmp_path / "mark"

    def hook():
        marks.write_text("run")

    import json

    package = runtime_env.Package(runtime_env.validate({"worker_process_setup_hook": hook}))
    _worker.setup_process(json.dumps(package.env))
    assert marks.read_text() == "run"


# --- logs -------------------------------------------------------------------------------------


def test_deduplication():
    from skate._logs import Deduplicator

    dedup = Deduplicator(window_s=5)
    line = (1, "f", False, "loss 0.5 at step")
    other = (2, "f", False, "loss 0.7 at step")
    assert dedup.add(line, 0) == [line]
    assert dedup.add(line, 1) == [line]  # the only one who says so
    assert dedup.add(other, 2) == []
    assert dedup.add(line, 3) == []
    assert dedup.due(4) == []
    assert dedup.due(6) == [(1, "f", False, "loss 0.5 at step", "[repeated 2x across cluster]")]
    assert dedup.add(other, 7) == [other]
    assert dedup.add(line, 8) == []
    assert dedup.flush() == [line]
    skipping = Deduplicator(5, allow="always", skip="never")
    assert skipping.add((1, "f", False, "never this"), 0) == []
    for pid in (1, 2):
        always = (pid, "f", False, "always this")
        assert skipping.add(always, 0) == [always]


def test_printer(monkeypatch):
    from skate._logs import Printer

    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    batches = iter([[(7, "f", False, b"hello", 0), (7, "f", True, b"oh\xff", 0)], [], None])
    printer = Printer(lambda timeout: next(batches))
    printer.start()
    printer.end(float("inf"), lambda: True)
    assert out.getvalue() == "(f pid=7) hello\n"
    assert err.getvalue() == "(f pid=7) oh\ufffd\n"
    flood = [(7, "f", False, b"x" * 3, 0)] * 10_500
    now = 0.0
    printer = Printer(lambda timeout: None, now=lambda: now)
    printer.take(flood)
    assert "not shown" not in err.getvalue()
    assert printer._wait_s() == 1.0
    now = 1.0
    printer.take([])
    assert "500 lines of worker output were not shown" in err.getvalue()


@pytest.mark.parametrize("ends", [True, False])
def test_printer_counts_what_comes_too_late(monkeypatch, ends):
    from skate._logs import Printer

    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    batches = queue.SimpleQueue()
    printer = Printer(lambda timeout: batches.get(), lambda: 2.0, "/there/logs", ends)
    printer.start()

    def flush():
        batches.put([(7, "f", False, b"late", 2)] * 3)
        batches.put(None)
        return False

    printer.end(1.0, flush)
    assert out.getvalue() == ""
    said, may_be_missing = err.getvalue().splitlines()
    assert said.startswith("(skate) 9 lines of worker output were not shown")
    assert ("/there/logs" in said) == (not ends)
    assert "may be missing" in may_be_missing


# --- placement groups and strategies ----------------------------------------------------------


def test_placement_group():
    import json

    from skate.util.placement_group import PlacementGroup
    from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    fake_skate._state["control"] = {
        "pg_create": json.dumps({"id": "05" * 18}),
        "pg_wait": json.dumps({"state": "CREATED"}),
        "pg_get": json.dumps({"id": "05" * 18}),
        "pg_remove": "{}",
        "placement_groups": json.dumps(
            [
                {
                    "placement_group_id": "05" * 18,
                    "name": "n",
                    "bundles": {"0": {"CPU": 1.0}},
                    "state": "CREATED",
                }
            ]
        ),
    }
    group = skate.util.placement_group([{"CPU": 1, "GPU": 0}], name="n")
    assert group.bundle_specs == [{"CPU": 1.0}]
    assert group.wait(1)
    assert skate.get(group.ready()) == group
    assert skate.util.get_placement_group("n") == group
    assert skate.util.placement_group_table(group)["bundles"] == {0: {"CPU": 1.0}}
    strategy = PlacementGroupSchedulingStrategy(group, 0)
    assert skate.get(add.options(scheduling_strategy=strategy).remote(1)) == 6
    with pytest.raises(ValueError):
        add.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 3))
    assert pickle.loads(pickle.dumps(group)) == group
    assert PlacementGroup.empty().is_empty
    for bad in ([], [{}], {"CPU": 1}, [{"CPU": 0}], [{"CPU": -1}]):
        with pytest.raises(ValueError):
            skate.util.placement_group(bad)
    with pytest.raises(ValueError):
        skate.util.placement_group([{"CPU": 1}], strategy="X")


def test_strategies():
    from skate._options import scheduling_json
    from skate.util.scheduling_strategies import (
        Exists,
        In,
        NodeAffinitySchedulingStrategy,
        NodeLabelSchedulingStrategy,
    )

    assert scheduling_json({}) == ""
    assert '"default"' in scheduling_json({"scheduling_strategy": "DEFAULT"})  # not the group of its parent
    assert '"spread"' in scheduling_json({"scheduling_strategy": "SPREAD"})
    assert "ab" * 28 in scheduling_json(
        {"scheduling_strategy": NodeAffinitySchedulingStrategy("ab" * 28, soft=True)}
    )
    assert '"in"' in scheduling_json(
        {"scheduling_strategy": NodeLabelSchedulingStrategy({"a": In("b")}, soft={"c": Exists()})}
    )
    with pytest.raises(ValueError):
        NodeAffinitySchedulingStrategy("x", soft=True)
    with pytest.raises(ValueError):
        NodeLabelSchedulingStrategy({})


# --- import -----------------------------------------------------------------------------------


def test_import_is_light():
    import subprocess

    code = (
        "import sys; before = set(sys.modules); import fake_skate_stub; import skate; "
        "print(*sorted(set(sys.modules) - before))"
    )
    stub = (
        "import sys, types; m = types.ModuleType('skate._skate'); m.ObjectRef = object; "
        "sys.modules['skate._skate'] = m"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "fake_skate_stub.py"), "w") as file:
            file.write(stub)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
        result = subprocess.run(
            [sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=True
        )
    loaded = set(result.stdout.split())
    heavy = {
        "asyncio",
        "logging",
        "inspect",
        "numpy",
        "cloudpickle",
        "threading",
        "hashlib",
        "concurrent.futures",
    }
    assert not loaded & heavy


def test_retry_exceptions_of_methods():
    from skate import _worker

    class Flaky:
        @skate.method(retry_exceptions=[KeyError], max_task_retries=2)
        async def call(self):
            pass

        @skate.method(retry_exceptions=True)
        def any(self):
            pass

    flaky = Flaky()
    assert _worker.should_retry(KeyError(), flaky.call, b"")
    assert not _worker.should_retry(ValueError(), flaky.call, b"")
    assert _worker.should_retry(ValueError(), flaky.any, b"")
    assert not _worker.should_retry(KeyboardInterrupt(), flaky.any, b"")
    brought = pickle.dumps((KeyError,))
    assert _worker.should_retry(KeyError(), flaky.any, brought)
    assert not _worker.should_retry(ValueError(), flaky.any, brought)
    task = _worker.RetryingFunction(print, (KeyError,))
    assert _worker.should_retry(KeyError(), task, b"")
    assert not _worker.should_retry(ValueError(), task, b"")


def test_exception_classes_that_a_call_brings_are_bounded():
    class Plain:
        def call(self):
            pass

    huge = type("Huge", (Exception,), {"text": "x" * 70_000})
    with pytest.raises(ValueError, match=r"retry_exceptions of Plain\.call take \d+ bytes"):
        skate.remote(Plain).remote().call.options(retry_exceptions=[huge]).remote()


def test_asyncio_generators_are_closed():
    @skate.remote
    class Async:
        def __init__(self):
            self.closed = []

        async def items(self):
            try:
                yield 1
                raise KeyError("x")
            finally:
                self.closed.append("async")

        def plain(self):
            try:
                yield 1
            finally:
                self.closed.append("plain")

        def wrapped(self):
            return self.coroutine()

        async def coroutine(self):
            return "value"

        async def ref(self):
            return [skate.put(5)][0]

        async def what(self):
            return self.closed

    actor = Async.remote()
    generator = actor.items.remote()
    assert skate.get(next(generator)) == 1
    with pytest.raises(KeyError):
        skate.get(next(generator))
    with pytest.raises(StopIteration):
        next(generator)
    assert [skate.get(r) for r in actor.plain.remote()] == [1]
    assert skate.get(actor.what.remote()) == ["async", "plain"]
    assert skate.get(actor.wrapped.remote(), timeout=10) == "value"
    assert skate.get(skate.get(actor.ref.remote())) == 5


def test_a_dropped_handle_is_gone_at_once():
    import gc
    import weakref

    counter = Counter.remote()
    skate.get([counter.add.remote(), counter.add.options(name="x").remote()])
    core = weakref.ref(counter._skate_core)
    gc.disable()
    try:
        del counter
        assert core() is None
    finally:
        gc.enable()


def test_options_are_checked_once():
    assert add.options(num_cpus=2) is add.options(num_cpus=2)
    assert add.options(num_cpus=2) is not add.options(num_cpus=2.0)
    assert add.options(resources={"a": 1}) is not add.options(resources={"a": 1})
    counter = Counter.remote()
    assert counter.two.options(num_returns=1) is counter.two.options(num_returns=1)


def test_a_forked_child_leaves_the_connection_alone():
    child = os.fork()
    if child == 0:
        try:
            skate.shutdown()
            if skate.is_initialized():
                os._exit(1)
            try:
                skate.init()
            except RuntimeError as error:
                os._exit(0 if "spawn" in str(error) and "shutdown" not in str(error) else 3)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert skate.get(add.remote(1)) == 6


def test_threads_connect_once():
    import threading

    skate.shutdown()
    results = []
    threads = [threading.Thread(target=lambda: results.append(skate.get(add.remote(1)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [6] * 8


def test_logging_config():
    import json
    import logging

    from skate.logging_config import LoggingConfig, _Formatter

    for bad in (
        {"encoding": "X"},
        {"additional_log_standard_attrs": ["zz"]},
        {"log_level": "NONSENSE"},
        {"log_level": "info"},
        {"log_level": 20},
        {"log_level": None},
    ):
        with pytest.raises(ValueError):
            skate.LoggingConfig(**bad)
    with pytest.raises(ValueError, match="CRITICAL, ERROR, WARNING, INFO, DEBUG, NOTSET, not 'NONSENSE'"):
        skate.LoggingConfig(log_level="NONSENSE")
    logging.addLevelName(15, "CHATTY")
    assert skate.LoggingConfig(log_level="CHATTY").log_level == "CHATTY"
    config = LoggingConfig(encoding="JSON", additional_log_standard_attrs=["name"])
    assert LoggingConfig.from_dict(config.to_dict()) == config
    record = logging.makeLogRecord({"name": "n", "msg": "hello %s", "args": ("you",), "k": 5})
    fields = json.loads(_Formatter("JSON", ["name"]).format(record))
    assert (fields["message"], fields["k"], fields["name"], fields["job_id"]) == (
        "hello you",
        5,
        "n",
        "01000000",
    )
    text = _Formatter("TEXT", []).format(record)
    assert "hello you" in text
    assert "k=5" in text


def test_directories_belong_to_the_job(tmp_path):
    for env in ({"working_dir": str(tmp_path)}, {"py_modules": [str(tmp_path)]}):
        with pytest.raises(ValueError, match="init"):
            add.options(runtime_env=env).remote(1)


def test_methods_travel():
    counter = Counter.remote()

    @skate.remote
    def call(bound):
        return skate.get(bound.remote(4))

    assert skate.get(call.remote(counter.add)) == 4


def test_unknown_concurrency_group():
    with pytest.raises(ValueError, match="no concurrency group 'zz'"):
        Counter.remote().add.options(concurrency_group="zz").remote()
