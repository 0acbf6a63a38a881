"""What Skate raises. Every class here derives from SkateError and pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skate._ids import TaskID


_BYTES_MAGIC = b"skate-error 1\n"


class SkateError(Exception):
    """Root of all errors that the runtime raises."""

    def to_bytes(self) -> bytes:
        """This error, with its text and traceback for those who cannot load it."""
        import traceback

        import cloudpickle

        pickled: bytes = cloudpickle.dumps(self)
        text = "".join(traceback.format_exception(type(self), self, self.__traceback__)).encode()
        return _BYTES_MAGIC + len(pickled).to_bytes(8, "little") + pickled + text

    @staticmethod
    def from_bytes(b: bytes) -> Any:
        """What `to_bytes` made, which has to come from somebody that you trust: it is a pickle. An
        UnserializableException where it does not load here."""
        head = len(_BYTES_MAGIC) + 8
        size = int.from_bytes(b[head - 8 : head], "little")
        if not b.startswith(_BYTES_MAGIC) or len(b) < head + size:
            raise ValueError("these bytes hold no error: pass what SkateError.to_bytes returned, all of it")
        return loaded_error(b[head : head + size], b[head + size :].decode("utf-8", "replace"))


def loaded_error(pickled: bytes, text: str) -> Any:
    """The pickled error, or `text` as an error where it does not load."""
    import pickle

    try:
        return pickle.loads(pickled)
    except Exception:  # whatever the class of the error does, or its module that is not here
        return UnserializableException(text)


class TaskError(SkateError):
    """A function or method raised. `cause` is the exception, if it could be brought here.

    `get` raises `as_instanceof_cause()`, which is an instance of the cause's class too.
    """

    function_name: str
    traceback_str: str
    cause: BaseException

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        super().__init__(function_name, traceback_str, cause, proctitle, pid, ip, actor_repr, actor_id)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle = proctitle or f"skate::{function_name}"
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self._actor_id = actor_id

    def __str__(self) -> str:
        place = [f"pid={self.pid}", f"ip={self.ip}"]
        if self._actor_id:
            place.append(f"actor_id={self._actor_id}")
        if self.actor_repr:
            place.append(f"repr={self.actor_repr}")
        return f"{self.proctitle}() ({', '.join(place)})\n{self.traceback_str.rstrip()}"

    def __reduce__(self) -> Any:
        fields = list(self.args)
        fields[2] = portable(self.cause)
        return TaskError, tuple(fields)

    def as_instanceof_cause(self) -> TaskError:
        """This error as an instance of its cause's class, or itself where that cannot be."""
        cause = self.cause
        if isinstance(cause, TaskError):
            return cause if _is_dual(cause) else cause.as_instanceof_cause()
        if _is_dual(self) or issubclass(TaskError, type(cause)):
            return self
        try:
            return _make_dual(self)
        except Exception as error:  # whatever the cause's class does when it is derived from
            _warn_of_plain_error(cause, error)
            return self

    def make_dual_exception_instance(self) -> TaskError:
        return _make_dual(self)


def _warn_of_plain_error(cause: BaseException, error: Exception) -> None:
    import logging

    cls = type(cause)
    logging.getLogger("skate").warning(
        f"a task raised {cls.__module__}.{cls.__qualname__}, which cannot be derived from "
        f"({type(error).__name__}: {error}): it is raised here as a plain TaskError, which `except "
        f"{cls.__name__}` does not catch. Catch TaskError and look at its `cause`, or let the class be derived "
        "from."
    )


def portable(exc: BaseException) -> Any:
    """Something that pickles as `exc`, even if its constructor does not take what its args are."""
    return _Portable(exc) if type(exc).__reduce__ is BaseException.__reduce__ else exc


class _Portable:
    """Pickles as class, args and attributes."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> Any:
        return _rebuild_exception, (type(self._exc), self._exc.args, self._exc.__dict__)


def _rebuild_exception(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    exc: BaseException = cls.__new__(cls, *args)
    exc.args = args
    exc.__dict__.update(state)
    return exc


_dual_types: dict[type, type[TaskError]] = {}


def _is_dual(error: TaskError) -> bool:
    return "_task_error" in error.__dict__


def _make_dual(error: TaskError) -> TaskError:
    dual_type = _dual_type(type(error.cause))
    dual: TaskError = _new_exception(dual_type, error.cause)
    dual.cause = error.cause
    dual.__dict__["_task_error"] = error
    _set_args(dual, (error.cause,))  # also where the cause's class has made `args` something of its own
    _copy_native_fields(error.cause, dual)
    return dual


def _dual_type(cause_type: type[BaseException]) -> type[TaskError]:
    known = _dual_types.get(cause_type)
    if known is not None:
        return known

    class Dual(TaskError, cause_type):  # type: ignore[valid-type,misc]
        def __init__(self, *args: Any) -> None:
            self.args = args  # the cause's own constructor has run already, on the cause

        def __getattr__(self, name: str) -> Any:
            fields = self.__dict__
            if name in _TASK_ERROR_FIELDS and "_task_error" in fields:
                return getattr(fields["_task_error"], name)
            if name.startswith("__") or "cause" not in fields:
                raise AttributeError(name)
            return getattr(fields["cause"], name)

        def __str__(self) -> str:
            return str(self._task_error)

        def __repr__(self) -> str:
            return f"{type(self).__name__}({self.cause!r})"

        def __reduce__(self) -> Any:
            return _make_dual, (self._task_error,)

    name = f"TaskError({cause_type.__name__})"
    Dual.__name__ = Dual.__qualname__ = name
    Dual.__module__ = __name__
    # One per class that was raised; user classes raised by value make it grow, so it is bounded.
    if len(_dual_types) >= 1024:
        _dual_types.clear()
    _dual_types[cause_type] = Dual
    return Dual


_TASK_ERROR_FIELDS = frozenset(
    ("function_name", "traceback_str", "proctitle", "pid", "ip", "actor_repr", "_actor_id")
)
_set_args: Any = BaseException.args.__set__  # type: ignore[attr-defined]
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code


def _new_exception(cls: type[Any], like: BaseException) -> Any:
    """An instance of `cls` without its __init__; exception groups are made with the parts of `like`."""
    # The native class whose memory layout `cls` has; the __new__ of another one, such as MemoryError's, which has
    # a layout like Exception's and memory of its own, refuses.
    base: Any = cls
    while base.__flags__ & _HEAP_TYPE:
        base = base.__base__
    members = getattr(like, "exceptions", None)
    if base.__name__.endswith("ExceptionGroup") and members is not None:
        return base.__new__(cls, like.args[0], list(members))
    return base.__new__(cls)


def _copy_native_fields(source: BaseException, target: BaseException) -> None:
    """errno, filename, code and the like, which live outside of __dict__."""
    for cls in type(source).__mro__:
        if cls is BaseException:
            break
        for name, field in vars(cls).items():
            if type(field).__name__ not in ("member_descriptor", "getset_descriptor"):
                continue
            if name.startswith("__"):
                continue
            try:
                setattr(target, name, getattr(source, name))
            except (AttributeError, TypeError):
                continue  # read-only


class UnserializableError(SkateError):
    """Stands for an exception that cannot be brought here: it keeps class name, text and traceback."""

    def __init__(self, class_name: str, text: str, reason: str = "") -> None:
        super().__init__(class_name, text, reason)
        self.class_name = class_name
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        reason = f" (it could not be brought here: {self.reason})" if self.reason else ""
        return f"{self.class_name}: {self.text}{reason}"


class UnserializableException(SkateError):
    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(original_stack_trace)
        self.original_stack_trace = original_stack_trace


class UserCodeException(SkateError):
    """Raised by library code that runs a user's function on the user's behalf."""


class CrossLanguageError(SkateError):
    """An error that came from another language."""


class TaskCancelledError(SkateError):
    """The task, or one that it depends on, was cancelled."""

    def __init__(self, task_id: TaskID | None = None, error_message: str | None = None) -> None:
        super().__init__(task_id, error_message)
        self.task_id = task_id
        self.error_message = error_message

    def __str__(self) -> str:
        if self.error_message:
            return self.error_message
        if self.task_id is None:
            return "the task was cancelled"
        return f"the task {self.task_id} was cancelled"


class GetTimeoutError(SkateError, TimeoutError):
    """The time given to `get` has passed before the value was there."""


class WorkerCrashedError(SkateError):
    """The worker process died while it ran the task."""

    def __str__(self) -> str:
        return super().__str__() or "the worker died while it ran this task"


class ActorError(SkateError):
    """A call could not be made or finished because of the actor's state."""

    BASE_ERROR_MSG = "the actor failed before it finished this call"

    def __init__(
        self,
        actor_id: str | None = None,
        error_msg: str = BASE_ERROR_MSG,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(actor_id, error_msg, actor_init_failed, preempted)
        self.actor_id = actor_id
        self.error_msg = error_msg
        self._actor_init_failed = actor_init_failed
        self._preempted = preempted

    def __str__(self) -> str:
        return self.error_msg

    @property
    def actor_init_failed(self) -> bool:
        return self._actor_init_failed

    @property
    def preempted(self) -> bool:
        return self._preempted


class ActorDiedError(ActorError):
    """The actor is dead for good; later calls fail as well."""

    BASE_ERROR_MSG = "the actor died before it finished this call"

    def __init__(self, cause: Any = None, **fields: Any) -> None:
        """`cause` is the TaskError of the constructor, a message, or None."""
        if isinstance(cause, TaskError):
            fields.setdefault("actor_id", cause._actor_id)
            fields.setdefault("error_msg", f"the actor died because its constructor raised: {cause}")
            fields["actor_init_failed"] = True
        elif isinstance(cause, str):
            fields["error_msg"] = cause
        fields.setdefault("error_msg", self.BASE_ERROR_MSG)
        super().__init__(**fields)

    @staticmethod
    def from_task_error(task_error: TaskError) -> ActorDiedError:
        return ActorDiedError(task_error)

    def __reduce__(self) -> Any:
        return _make_actor_died, (self.args, self.__dict__)


def _make_actor_died(args: tuple[Any, ...], state: dict[str, Any]) -> ActorDiedError:
    error = ActorDiedError()
    error.args = args
    error.__dict__.update(state)
    return error


class ActorUnavailableError(ActorError):
    """The actor cannot be reached now; it may be restarting. A later call may succeed."""

    def __init__(self, error_message: str, actor_id: bytes | None = None) -> None:
        hex_id = actor_id.hex() if actor_id else None
        super().__init__(
            hex_id,
            f"the actor {hex_id} is unavailable: {error_message}. The call may or may not have run; "
            "call again later, or set max_task_retries",
        )
        self.args = (error_message, actor_id)


class ActorAlreadyExistsError(ValueError, SkateError):
    """The name is taken."""


class ActorHandleNotFoundError(ValueError, SkateError):
    """No actor for this handle in this cluster; it may come from another one."""


class ActorUnschedulableError(SkateError):
    """No node can ever hold the actor."""


class TaskUnschedulableError(SkateError):
    """No node can ever run the task."""


class ActorPlacementGroupRemoved(SkateError):
    """The placement group that held the actor was removed."""

    def __str__(self) -> str:
        return super().__str__() or "the placement group of this actor was removed"


class TaskPlacementGroupRemoved(SkateError):
    """The placement group that held the task was removed."""

    def __str__(self) -> str:
        return super().__str__() or "the placement group of this task was removed"


class PendingCallsLimitExceeded(SkateError):
    """More calls wait for the actor than its max_pending_calls allows."""


class AsyncioActorExit(SkateError):
    """Raised inside an asyncio actor to end it."""


class ObjectLostError(SkateError):
    """No copy of the value is left."""

    def __init__(self, object_ref_hex: str, owner_address: bytes | None = None, call_site: str = "") -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.message: str | None = None

    _text = "the object {} is lost: no copy of it is left and it cannot be made again"

    def __str__(self) -> str:
        text = self.message or self._text.format(self.object_ref_hex)
        return f"{text} (the ref was created at {self.call_site})" if self.call_site else text


class ObjectFetchTimedOutError(ObjectLostError):
    """A copy is known, but its node did not send it in time."""

    _text = "the object {} could not be fetched in time from the node that holds it"


class OwnerDiedError(ObjectLostError):
    """The process that owned the value died, and the value with it."""

    _text = "the object {} is lost: the process that owned it has died"


class ObjectFreedError(ObjectLostError):
    """The value was freed by hand."""

    _text = "the object {} was freed by hand. Keep it until the last get"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The value was deleted while a ref to it was still alive."""

    _text = "the object {} was deleted while a ref to it was alive"


class ObjectReconstructionFailedError(ObjectLostError):
    """The value is lost and its task could not be run again."""

    def __init__(
        self,
        object_ref_hex: str,
        reason: Any = None,
        reason_message: str | None = None,
        owner_address: bytes | None = None,
        call_site: str = "",
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.args = (object_ref_hex, reason, reason_message, owner_address, call_site)
        self.reason = reason
        self.message = (
            f"the object {object_ref_hex} is lost and cannot be made again: "
            f"{reason_message or reason or 'its task is no longer known'}"
        )


class ObjectRefStreamEndOfStreamError(SkateError):
    """A stream has no more items."""


class ObjectStoreFullError(SkateError):
    """The object store has no room, and spilling could not make any."""


class OutOfDiskError(SkateError):
    """The disk that takes spilled objects is full."""


class OutOfMemoryError(SkateError):
    """The task's worker was ended because the node ran out of memory."""


class NodeDiedError(SkateError):
    """The node died or is unreachable."""


class LocalNodeDiedError(SkateError):
    """The node daemon of this machine died."""

    def __str__(self) -> str:
        return super().__str__() or "the node daemon of this machine has died"


class RuntimeEnvSetupError(SkateError):
    """The runtime environment could not be set up."""

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        if not self.error_message:
            return "the runtime environment could not be set up"
        return f"the runtime environment could not be set up: {self.error_message}"


class SkateSystemError(SkateError):
    """The runtime itself failed, or is not in a state for this call."""

    def __init__(self, client_exc: Any, traceback_str: str | None = None) -> None:
        super().__init__(client_exc, traceback_str)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        if self.traceback_str:
            return f"{self.client_exc}\n{self.traceback_str}"
        return str(self.client_exc)


class NotConnectedError(SkateSystemError, RuntimeError):
    """The call needs a connection: `init` has not been called, or `shutdown` was while the call waited."""


class StreamingGeneratorReplayInconsistentError(SkateSystemError):
    """A generator that was run again did not produce the same number of items."""


class OutOfBandObjectRefSerializationException(SkateError):
    """A ref was pickled outside of a Skate value, which nothing would count."""


class RpcError(SkateError):
    """A call between the cluster's processes failed."""

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        super().__init__(message, rpc_code)
        self.message = message
        self.rpc_code = rpc_code

    def __str__(self) -> str:
        return self.message


class AuthenticationError(SkateError):
    """The cluster did not accept this process's key."""
