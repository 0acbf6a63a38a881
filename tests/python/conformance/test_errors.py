"""Errors: the user's type survives, the cause and the remote traceback come along."""

import pickle
import sys
import traceback
import types

import pytest
import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")


class MyError(Exception):
    pass


class Detailed(ValueError):
    def __init__(self, code, *, where="here"):
        super().__init__(f"{code} {where}")
        self.code, self.where = code, where

    def __reduce__(self):
        return _rebuild_detailed, (self.code, self.where)


def _rebuild_detailed(code, where):
    return Detailed(code, where=where)


def remote_helper_with_a_telling_name():
    raise MyError("from the depths")


@ray.remote
def fail_deep():
    remote_helper_with_a_telling_name()


@ray.remote
def fail_with(error):
    raise error


@ray.remote
def identity(x):
    return x


def test_except_the_users_own_type():
    try:
        ray.get(fail_deep.remote())
    except MyError as e:
        assert "from the depths" in str(e)
    else:
        pytest.fail("nothing was raised")


@pytest.mark.parametrize(
    "error", [ValueError("v"), KeyError("k"), ZeroDivisionError(), OSError(2, "gone"), MyError("m")]
)
def test_is_both_the_users_type_and_a_task_error(error):
    with pytest.raises(type(error)) as info:
        ray.get(fail_with.remote(error))
    assert isinstance(info.value, RayTaskError)
    assert isinstance(info.value, RayError)


def test_except_task_error():
    with pytest.raises(RayTaskError):
        ray.get(fail_deep.remote())


def test_cause_is_the_original():
    with pytest.raises(MyError) as info:
        ray.get(fail_deep.remote())
    assert type(info.value.cause) is MyError
    assert info.value.cause.args == ("from the depths",)


def test_remote_traceback_is_in_the_text():
    with pytest.raises(MyError) as info:
        ray.get(fail_deep.remote())
    text = str(info.value)
    assert "remote_helper_with_a_telling_name" in text
    assert "fail_deep" in text
    assert "from the depths" in text
    assert "test_errors.py" in text
    assert "remote_helper_with_a_telling_name" in "".join(
        traceback.format_exception(info.type, info.value, info.tb)
    )


def test_attributes_of_the_users_exception():
    with pytest.raises(Detailed) as info:
        ray.get(fail_with.remote(Detailed(7, where="there")))
    assert (info.value.code, info.value.where) == (7, "there")
    assert (info.value.cause.code, info.value.cause.where) == (7, "there")


def test_base_classes_match():
    with pytest.raises(ArithmeticError):
        ray.get(fail_with.remote(ZeroDivisionError()))
    with pytest.raises(LookupError):
        ray.get(fail_with.remote(KeyError(1)))


def test_an_error_in_an_argument_reaches_the_dependent():
    first = fail_deep.remote()
    second = identity.remote(first)
    third = identity.remote(second)
    with pytest.raises(MyError) as info:
        ray.get(third)
    assert "from the depths" in str(info.value)


def test_an_error_through_nested_gets():
    @ray.remote
    def outer():
        return ray.get(fail_deep.remote())

    with pytest.raises(MyError) as info:
        ray.get(outer.remote())
    assert "outer" in str(info.value) and "remote_helper_with_a_telling_name" in str(info.value)


def test_errors_can_be_caught_in_a_task():
    @ray.remote
    def catches():
        try:
            ray.get(fail_deep.remote())
        except MyError:
            return "caught"

    assert ray.get(catches.remote()) == "caught"


def test_explicit_cause_chain():
    @ray.remote
    def chained():
        try:
            raise KeyError("inner")
        except KeyError as e:
            raise MyError("outer") from e

    with pytest.raises(MyError) as info:
        ray.get(chained.remote())
    assert "inner" in str(info.value)


def test_get_again_raises_again():
    ref = fail_deep.remote()
    for _ in range(3):
        with pytest.raises(MyError):
            ray.get(ref)


def test_exceptions_as_values():
    error = ray.get(identity.remote(MyError("value")))
    assert type(error) is MyError and error.args == ("value",)


def test_an_exception_that_cannot_be_pickled():
    @ray.remote(max_retries=0)
    def f():
        class Holds(Exception):
            def __init__(self):
                super().__init__("holds a lock")
                import threading

                self.lock = threading.Lock()

        raise Holds()

    with pytest.raises(RayTaskError) as info:
        ray.get(f.remote())
    assert "Holds" in str(info.value)
    assert ray.get(identity.remote(1)) == 1


def test_an_exception_that_cannot_be_unpickled():
    @ray.remote(max_retries=0)
    def f():
        class Picky(Exception):
            def __init__(self, a, b):
                super().__init__("one")

        raise Picky(1, 2)

    with pytest.raises(RayError) as info:
        ray.get(f.remote())
    assert "Picky" in str(info.value)
    assert ray.get(identity.remote(1)) == 1


def test_unpicklable_argument():
    import threading

    with pytest.raises(TypeError) as info:
        identity.remote(threading.Lock())
    assert "lock" in str(info.value)


def test_unpicklable_value_of_put():
    import threading

    with pytest.raises(TypeError):
        ray.put(threading.Lock())
    assert ray.get(ray.put(1)) == 1


def test_unpicklable_result():
    import threading

    @ray.remote(max_retries=0)
    def f():
        return threading.Lock()

    with pytest.raises(TypeError) as info:
        ray.get(f.remote())
    assert isinstance(info.value, RayTaskError)


def test_unpicklable_closure():
    import threading

    lock = threading.Lock()

    @ray.remote
    def f():
        return lock

    with pytest.raises(TypeError):
        f.remote()


def test_result_whose_unpickling_fails():
    class Bomb:
        def __reduce__(self):
            return _explode, ()

    @ray.remote
    def f():
        return Bomb()

    with pytest.raises(Exception) as info:
        ray.get(f.remote())
    assert "exploded" in str(info.value)
    assert ray.get(identity.remote(1)) == 1


def _explode():
    raise RuntimeError("exploded")


def test_system_exit_in_a_task():
    @ray.remote(max_retries=0)
    def leave():
        raise SystemExit(3)

    with pytest.raises(RayError):
        ray.get(leave.remote())
    assert ray.get(identity.remote(1)) == 1


@pytest.mark.parametrize("code", [0, 5, -1, "a message", None])
def test_sys_exit(code):
    @ray.remote(max_retries=0)
    def leave():
        sys.exit(code)

    @ray.remote(num_cpus=0)
    class A:
        def leave(self):
            sys.exit(code)

    with pytest.raises(WorkerCrashedError):
        ray.get(leave.remote(), timeout=50)
    a = A.remote()
    for _ in range(2):
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(a.leave.remote(), timeout=50)
    assert ray.get(identity.remote(1)) == 1


def test_keyboard_interrupt_raised_by_user_code():
    @ray.remote(max_retries=0)
    def f():
        raise KeyboardInterrupt

    with pytest.raises(RayError):
        ray.get(f.remote())
    assert ray.get(identity.remote(1)) == 1


if sys.version_info >= (3, 11):

    def test_exception_groups():
        @ray.remote
        def f():
            raise ExceptionGroup("both", [ValueError("a"), KeyError("b")])  # noqa: F821

        with pytest.raises(ExceptionGroup) as info:  # noqa: F821
            ray.get(f.remote())
        assert [type(e) for e in info.value.exceptions] == [ValueError, KeyError]
        with pytest.raises(RayTaskError):
            ray.get(f.remote())


def test_actor_method_errors():
    @ray.remote(num_cpus=0)
    class A:
        def fail(self):
            raise MyError("method")

        def ok(self):
            return 1

    a = A.remote()
    with pytest.raises(MyError) as info:
        ray.get(a.fail.remote())
    assert isinstance(info.value, RayTaskError) and "fail" in str(info.value)
    assert ray.get(a.ok.remote()) == 1
    ray.kill(a)


def test_task_errors_can_be_pickled():
    with pytest.raises(MyError) as info:
        ray.get(fail_deep.remote())
    back = ray.cloudpickle.loads(ray.cloudpickle.dumps(info.value))
    assert isinstance(back, MyError)


def test_exception_names():
    import ray.exceptions as e

    assert issubclass(e.GetTimeoutError, (RayError, TimeoutError))
    assert issubclass(e.GetTimeoutError, TimeoutError)
    for name in [
        "RayTaskError",
        "RayActorError",
        "ActorDiedError",
        "ActorUnavailableError",
        "ActorUnschedulableError",
        "AsyncioActorExit",
        "GetTimeoutError",
        "LocalRayletDiedError",
        "NodeDiedError",
        "ObjectFetchTimedOutError",
        "ObjectFreedError",
        "ObjectLostError",
        "ObjectReconstructionFailedError",
        "ObjectStoreFullError",
        "OutOfDiskError",
        "OutOfMemoryError",
        "OwnerDiedError",
        "PendingCallsLimitExceeded",
        "PlasmaObjectNotAvailable",
        "RayCgraphCapacityExceeded",
        "RayChannelError",
        "RayDirectTransportError",
        "RaySystemError",
        "RuntimeEnvSetupError",
        "TaskCancelledError",
        "TaskPlacementGroupRemoved",
        "TaskUnschedulableError",
        "UserCodeException",
        "WorkerCrashedError",
    ]:
        assert issubclass(getattr(e, name), Exception), name
    assert issubclass(e.ActorDiedError, e.RayActorError)
    assert issubclass(e.ActorUnavailableError, e.RayActorError)
    assert issubclass(e.OwnerDiedError, e.ObjectLostError)
    assert issubclass(e.RayActorError, RayError)
    assert issubclass(e.RayChannelTimeoutError, (e.RayChannelError, TimeoutError))
    assert issubclass(e.RayChannelError, e.RaySystemError)
    assert {e.PlasmaObjectNotAvailable, e.RayChannelError, RayError} <= set(e.RAY_EXCEPTION_TYPES)


def test_system_errors_pickle():
    error = ray.exceptions.GetTimeoutError("late")
    assert type(pickle.loads(pickle.dumps(error))) is ray.exceptions.GetTimeoutError


def test_an_error_goes_to_bytes_and_back():
    @ray.remote
    def fail():
        raise MyError("on purpose")

    with pytest.raises(RayTaskError) as caught:
        ray.get(fail.remote())
    back = RayError.from_bytes(RayTaskError.to_bytes(caught.value))
    assert isinstance(back, RayTaskError)
    assert isinstance(back, MyError)
    assert back.cause.args == ("on purpose",)
    late = RayError.from_bytes(ray.exceptions.GetTimeoutError("late").to_bytes())
    assert type(late) is ray.exceptions.GetTimeoutError
    assert late.args == ("late",)


def _refuse(*args):
    raise LookupError("not here")


class Homesick(RayError):
    def __reduce__(self):
        return _refuse, self.args


def test_an_error_that_does_not_load_keeps_its_text():
    back = RayError.from_bytes(Homesick("far away").to_bytes())
    assert type(back) is ray.exceptions.UnserializableException
    assert "far away" in str(back)


def test_bytes_that_hold_no_error_are_refused():
    whole = RayError("text").to_bytes()
    for wrong in (b"\xff" * 40, whole[:40]):
        with pytest.raises(Exception) as caught:
            RayError.from_bytes(wrong)
        assert not isinstance(caught.value, RayError)


def test_an_error_in_a_message():
    pickled = ray.cloudpickle.dumps(RayError("text"))
    message = types.SimpleNamespace(language=0, serialized_exception=pickled, formatted_exception_string="")
    assert RayError.from_ray_exception(message).args == ("text",)
    message.serialized_exception, message.formatted_exception_string = b"nonsense", "what it said"
    broken = RayError.from_ray_exception(message)
    assert type(broken) is ray.exceptions.UnserializableException
    assert "what it said" in str(broken)
