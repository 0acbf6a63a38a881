"""From the runtime's error records to exceptions. The only place that words system errors.

A message says the cause first, then what to do.
"""

from __future__ import annotations

import pickle
from typing import Any

from skate import exceptions as ex
from skate._ids import TaskID

# A task error travels as a pickled tuple:
#   (function name, traceback text, proctitle, pid, ip, actor repr, actor id,
#    pickled cause or None, cause's class name, cause's text, reason for None)
# The cause is pickled apart, so that a class that is missing here costs the cause only.


def load_error(payload: bytes) -> BaseException:
    """The exception that `get` raises for this task error."""
    return load_task_error(payload).as_instanceof_cause()


def load_task_error(payload: bytes) -> ex.TaskError:
    fields = pickle.loads(payload)
    function_name, traceback_str, proctitle, pid, ip, actor_repr, actor_id = fields[:7]
    pickled_cause, class_name, text, reason = fields[7:]
    cause: BaseException | None = None
    if pickled_cause is not None:
        try:
            cause = pickle.loads(pickled_cause)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a user's class does when it is loaded, up to sys.exit()
            reason = f"{type(error).__name__}: {error}"
    if not isinstance(cause, BaseException):
        cause = ex.UnserializableError(class_name, text, reason)
    return ex.TaskError(function_name, traceback_str, cause, proctitle, pid, ip, actor_repr, actor_id)


def make_system_error(kind: str, fields: dict[str, Any]) -> BaseException:
    """The exception for an error of the runtime's own. Field values are texts or, for ids, bytes.

    Of a death: `message` in words, `cause` (exited, signalled, intended...), pid, exit_code, signal,
    log_tail; `creation_error` is the task error of an actor's constructor.
    """
    maker = _MAKERS.get(kind)
    if maker is None:
        return ex.SkateSystemError(_with_details(str(fields.get("message", kind)), fields))
    error: BaseException = maker(fields)
    return error


_SHOWN = (
    ("class_name", "class"),
    ("name", "name"),
    ("actor_id", "actor"),
    ("task_id", "task"),
    ("object_id", "object"),
    ("function_name", "function"),
    ("task_name", "task name"),
    ("node_id", "node"),
    ("pid", "pid"),
    ("ip", "ip"),
    ("exit_code", "exit code"),
    ("signal", "signal"),
    ("owner", "owner"),
    ("resources", "resources"),
    ("sizes", "sizes"),
    ("table", "use"),
)


def _with_details(text: str, fields: dict[str, Any]) -> str:
    lines = [text]
    for key, label in _SHOWN:
        value = fields.get(key)
        if value not in (None, "", b""):
            lines.append(f"  {label}: {value.hex() if isinstance(value, bytes) else value}")
    tail = fields.get("log_tail")
    if tail:
        if isinstance(tail, bytes):
            tail = tail.decode("utf-8", "replace")
        lines.append("  last lines of its log:")
        lines.extend(f"    {line}" for line in tail.rstrip().splitlines())
    return "\n".join(lines)


_SIGNAL_HINTS = {
    9: "somebody or the kernel's out-of-memory killer ended it",
    11: "a native library has a fault; faulthandler shows where",
    6: "a native library gave up",
    7: "a native library touched memory that is gone",
}


def _death_cause(fields: dict[str, Any]) -> str:
    message = str(fields.get("message") or "").rstrip(".")
    if fields.get("kind") == "killed" and fields.get("cause"):
        return str(fields["cause"]).rstrip(".")  # Skate sent the signal, and knows why
    number = int(fields.get("signal") or 0)
    if number:
        import signal

        known = number in {item.value for item in signal.Signals}
        name = signal.Signals(number).name if known else f"signal {number}"
        hint = f" ({_SIGNAL_HINTS[number]})" if number in _SIGNAL_HINTS else ""
        return f"{message or 'it was ended by a signal'}: {name}{hint}"
    if message:
        return message
    cause = str(fields.get("cause") or "").rstrip(".")
    if cause and cause != fields.get("kind"):
        return cause  # in words
    code = fields.get("exit_code")
    if code is not None:
        return f"it exited with code {code}"
    return cause or "the cause is not known"


def _hex(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value or "")


def _task_id(fields: dict[str, Any]) -> TaskID | None:
    value = fields.get("task_id")
    if not value:
        return None
    return TaskID(value if isinstance(value, bytes) else bytes.fromhex(value))


#: Of what somebody asked for: no setting prevents it.
_WANTED_DEATHS = ("intended", "killed", "owner_died")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _worker_died(fields: dict[str, Any]) -> BaseException:
    text = f"the worker died while it ran this task: {_death_cause(fields)}."
    if retries := int(fields.get("retries") or 0):
        text += f" It was retried {_times(retries)}, to no avail."
    elif fields.get("kind") not in _WANTED_DEATHS:
        text += " Set max_retries to have such tasks run again."
    return ex.WorkerCrashedError(_with_details(text, fields))


def _actor_died(fields: dict[str, Any]) -> BaseException:
    actor_id = _hex(fields.get("actor_id")) or None
    creation_error = fields.get("creation_error")
    if creation_error:
        cause = load_task_error(creation_error)
        if cause._actor_id is None:
            cause._actor_id = actor_id
        return ex.ActorDiedError(cause)
    text = f"the actor died: {_death_cause(fields)}."
    if fields.get("kind") in (*_WANTED_DEATHS, "start_failed"):
        pass  # no restart was wanted, or would have changed anything
    elif restarts := int(fields.get("restarts") or 0):
        text += f" It was restarted {_times(restarts)} before."
    else:
        text += " Set max_restarts to have it restarted, max_task_retries to have its calls retried."
    return ex.ActorDiedError(
        actor_id=actor_id,
        error_msg=_with_details(text, fields),
    )


def _actor_unavailable(fields: dict[str, Any]) -> BaseException:
    actor_id = fields.get("actor_id") or b""
    if isinstance(actor_id, str):
        actor_id = bytes.fromhex(actor_id)
    rest = {key: value for key, value in fields.items() if key != "actor_id"}
    return ex.ActorUnavailableError(_with_details(_death_cause(fields), rest), actor_id)


def _object_error(cls: type[ex.ObjectLostError], advice: str) -> Any:
    def make(fields: dict[str, Any]) -> BaseException:
        error = cls(_hex(fields.get("object_id")), None, str(fields.get("call_site") or ""))
        cause = fields.get("message") or fields.get("cause")
        text = cls._text.format(error.object_ref_hex)
        if cause:
            text += f": {cause}"
        rest = {key: value for key, value in fields.items() if key != "object_id"}
        error.message = _with_details(text + advice, rest)
        return error

    return make


def _reconstruction_failed(fields: dict[str, Any]) -> BaseException:
    cause = fields.get("message") or fields.get("cause")
    return ex.ObjectReconstructionFailedError(
        _hex(fields.get("object_id")), None, cause, None, str(fields.get("call_site") or "")
    )


def _cancelled(fields: dict[str, Any]) -> BaseException:
    return ex.TaskCancelledError(_task_id(fields), fields.get("message") or None)


def _unschedulable(fields: dict[str, Any]) -> BaseException:
    cause = (
        fields.get("message")
        or fields.get("cause")
        or "no node of the cluster can ever satisfy what it asks for"
    )
    text = _with_details(f"{cause}. Ask for less, or add a node that has it.", fields)
    if fields.get("actor_id"):
        return ex.ActorUnschedulableError(text)
    return ex.TaskUnschedulableError(text)


def _placement_group_removed(fields: dict[str, Any]) -> BaseException:
    text = str(fields.get("message") or fields.get("cause") or "")
    if fields.get("actor_id"):
        return ex.ActorPlacementGroupRemoved(*([text] if text else []))
    return ex.TaskPlacementGroupRemoved(*([text] if text else []))


def _plain(cls: type[ex.SkateError], default: str, advice: str = "") -> Any:
    def make(fields: dict[str, Any]) -> BaseException:
        text = str(fields.get("message") or fields.get("cause") or default)
        if advice:
            text = f"{text.rstrip('.')}. {advice}"
        return cls(_with_details(text, fields))

    return make


_MAKERS: dict[str, Any] = {
    "worker_died": _worker_died,
    "start_failed": lambda fields: ex.WorkerCrashedError(
        _with_details(f"this task did not run: {_death_cause(fields)}.", fields)
    ),
    "actor_died": _actor_died,
    "actor_unavailable": _actor_unavailable,
    "owner_died": _object_error(
        ex.OwnerDiedError, ". Keep the process that made the ref alive while others use it."
    ),
    "object_lost": _object_error(
        ex.ObjectLostError, ". Set max_retries on the task that makes it, or put it again."
    ),
    "freed": _object_error(ex.ObjectFreedError, ""),
    "fetch_timed_out": _object_error(ex.ObjectFetchTimedOutError, ""),
    "reconstruction_failed": _reconstruction_failed,
    "object_store_full": _plain(
        ex.ObjectStoreFullError,
        "the object store is full",
        "Drop refs and arrays that are no longer needed, or pass a larger object_store_memory to init.",
    ),
    "object_too_large": _plain(
        ex.ObjectStoreFullError,
        "the value is larger than the whole object store",
        "Pass a larger object_store_memory to init, or store it in several parts; parts are spilled to disk "
        "when they do not fit together.",
    ),
    "out_of_disk": _plain(
        ex.OutOfDiskError,
        "the disk that takes spilled objects is full",
        "Free space there, or pass object_spilling_directory to init.",
    ),
    "out_of_memory": _plain(
        ex.OutOfMemoryError,
        "the worker was ended because the node ran out of memory",
    ),
    "task_cancelled": _cancelled,
    "get_timeout": _plain(ex.GetTimeoutError, "the value was not there within the time given"),
    "shut_down": _plain(
        ex.NotConnectedError,
        "the connection to the cluster was shut down, by skate.shutdown() in another thread, while this call "
        "waited",
        "Let such calls end before the shutdown, or catch this error in their threads.",
    ),
    "node_died": _plain(ex.NodeDiedError, "the node died"),
    "runtime_env": lambda fields: ex.RuntimeEnvSetupError(
        _with_details(str(fields.get("message") or fields.get("cause") or ""), fields)
    ),
    "unschedulable": _unschedulable,
    "pending_calls_exceeded": _plain(
        ex.PendingCallsLimitExceeded,
        "more calls wait for the actor than its max_pending_calls allows",
        "Wait for some of the refs before the next call.",
    ),
    "placement_group_removed": _placement_group_removed,
    "actor_exists": _plain(
        ex.ActorAlreadyExistsError,
        "an actor of this name exists",
        "Take another name, or look it up with get_actor or get_if_exists=True.",
    ),
    "system": lambda fields: ex.SkateSystemError(
        _with_details(str(fields.get("message") or fields.get("cause") or "internal error"), fields)
    ),
}
