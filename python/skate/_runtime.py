"""This process's connection: init, shutdown, and the calls on refs.

One connection per process. `bound` holds the functions that call the native module directly; shutdown
sends them back to their slow path.
"""

from __future__ import annotations

import _thread
import functools
import json
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from skate import _config, _skate
from skate._context import Context
from skate._skate import ObjectRef
from skate._streaming import ObjectRefGenerator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from skate.actor import ActorHandle
    from skate.job_config import JobConfig
    from skate.logging_config import LoggingConfig

_F = TypeVar("_F", bound="Callable[..., Any]")

#: Objects with an `unbind()`, called when the connection ends.
bound: weakref.WeakSet[Any] = weakref.WeakSet()

_MIN_STORE_BYTES = 75 * 1024 * 1024
_LAST_LINES_S = 1.0  # that the workers' last lines may keep the end waiting
_context: Context | None = None
_printer: Any = None
_exit_hook_set = False
_connection_lock = _thread.RLock()  # of the thread that connects or disconnects
_bound_lock = _thread.RLock()
_pid = 0  # of the process that connected

#: Set by the worker while an asyncio actor runs; a blocking call in its loop is then warned of once.
async_actor = False


def _fresh_locks() -> None:
    """In the child of a fork: the thread that held them may not be here."""
    global _connection_lock, _bound_lock
    _connection_lock = _thread.RLock()
    _bound_lock = _thread.RLock()


os.register_at_fork(after_in_child=_fresh_locks)


def _one_at_a_time(function: _F) -> _F:
    """While one thread connects or disconnects, others that want to wait."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _connection_lock:
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def is_initialized() -> bool:
    """Whether this process is connected to a cluster."""
    return _skate.is_connected() and not _skate.in_forked_child()


def ensure_connected() -> None:
    """For the beginning of a call only: one that was cut short by a shutdown must not connect again."""
    if not _skate.is_connected():
        with _connection_lock:
            if not _skate.is_connected():
                init()


def bind(item: Any, submit: Any) -> None:
    """The calls of `item` go straight to the native `submit` until the connection ends."""
    with _bound_lock:
        if _skate.is_connected():
            item.remote = submit
            bound.add(item)


# --- init -------------------------------------------------------------------------------------


@_one_at_a_time
def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: JobConfig | None = None,
    configure_logging: bool = True,
    logging_level: int | str = "info",
    logging_format: str | None = None,
    logging_config: LoggingConfig | None = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    enable_resource_isolation: bool = False,
    cgroup_path: str | None = None,
    system_reserved_cpu: float | None = None,
    system_reserved_memory: int | None = None,
    proxy_server_url: str | None = None,
    **kwargs: Any,
) -> Context:
    """Connects this process to a cluster, by default to a new one of its own on this machine.

    The new cluster ends with this process. `address` is the `gcs_address` of a cluster of this machine,
    to join that one; "local" always starts a new one; without it SKATE_ADDRESS decides. "auto" looks for
    a cluster that outlives its programs, and finds none yet. The sizes are found out where they are not
    given.
    """
    global _context
    if _skate.in_forked_child():
        raise RuntimeError(_skate.FORKED_TEXT)
    if _skate.is_connected():
        if ignore_reinit_error and _context is not None:
            return _context
        raise RuntimeError(
            "this process is connected already: call skate.shutdown() first, or pass "
            "ignore_reinit_error=True to keep the connection"
        )
    refuse = [
        ("local_mode", local_mode, "use a debugger that attaches to the worker"),
        ("include_dashboard", include_dashboard, "there is no dashboard yet: leave it out or pass False"),
        ("dashboard_port", dashboard_port is not None, "there is no dashboard yet: leave it out"),
        ("dashboard_host", dashboard_host != "127.0.0.1", "there is no dashboard yet: leave it out"),
        ("enable_resource_isolation", enable_resource_isolation, "leave it out"),
        ("cgroup_path", cgroup_path is not None, "leave it out"),
        ("system_reserved_cpu", system_reserved_cpu is not None, "lower num_cpus instead"),
        ("system_reserved_memory", system_reserved_memory is not None, "pass _memory instead"),
        ("proxy_server_url", proxy_server_url is not None, "leave it out"),
    ]
    for name, is_set, advice in refuse:
        if is_set:
            raise RuntimeError(f"init does not support {name}: {advice}")
    _check_working_directory()
    system_config = kwargs.get("_system_config") or None
    private = _private_options(kwargs)
    if address is None:
        address = _config.env("ADDRESS") or None
    _check_address(address)
    if address not in (None, "local"):
        settings = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "_memory": private["memory"],
            "_node_name": private["node_name"],
            "object_spilling_directory": private["spill_dir"],
            "_system_config": system_config,
        }
        given = [name for name, value in settings.items() if value is not None]
        if given:
            raise ValueError(
                f"the cluster at {address!r} has its settings already: leave out {', '.join(given)}, or pass "
                "address='local' to start a new one"
            )
    _check_sizes(num_cpus, num_gpus, resources, labels, object_store_memory, private["memory"])
    if log_to_driver is not None and not isinstance(log_to_driver, (bool, int)):
        raise TypeError(f"log_to_driver takes True or False, not {log_to_driver!r}")

    from skate import runtime_env as env_module
    from skate.job_config import JobConfig

    job = job_config if job_config is not None else JobConfig()
    if not isinstance(job, JobConfig):
        raise TypeError(f"job_config takes a skate.job_config.JobConfig, not {type(job).__name__}")
    namespace = _check_namespace(namespace if namespace is not None else job.namespace)
    if runtime_env is not None and not isinstance(runtime_env, dict):
        raise TypeError(f"runtime_env takes a dict or a RuntimeEnv, not {type(runtime_env).__name__}")
    if runtime_env and job.runtime_env:
        conflict = set(runtime_env) & set(job.runtime_env)
        if conflict:
            raise ValueError(
                f"runtime_env and job_config.runtime_env both set {', '.join(sorted(conflict))}: keep one"
            )
    package = env_module.Package(env_module.validate({**job.runtime_env, **(runtime_env or {})}))
    logging_config = logging_config if logging_config is not None else job.logging_config
    if configure_logging:
        _set_up_logging(logging_level, logging_format, logging_config)
    if log_to_driver is None:
        log_to_driver = _config.env_flag("LOG_TO_DRIVER", True)

    result = _skate.connect(
        {
            "address": address,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": {name: float(value) for name, value in (resources or {}).items()},
            "labels": dict(labels or {}),
            "object_store_memory": object_store_memory,
            "namespace": namespace,
            "python_executable": sys.executable,
            "script_dir": _script_dir(),
            "cwd": os.getcwd(),
            "sys_path": [path for path in sys.path if isinstance(path, str)],
            "log_to_driver": log_to_driver,
            "runtime_env": json.dumps(package.env, sort_keys=True) if package.env else "",
            "prepare": package.copy_into if package.sources else None,
            "job_metadata": dict(job.metadata),
            "preload_modules": [],
            "logging_config": json.dumps(logging_config.to_dict()) if logging_config else "",
            **private,
        }
    )
    try:
        _after_connect(log_to_driver, result["session_dir"], is_ours=address in (None, "local"))
        _context = Context(result)
    except BaseException:
        shutdown()
        raise
    return _context


def _after_connect(log_to_driver: bool, session_dir: str, is_ours: bool) -> None:
    global _printer, _exit_hook_set, _pid
    _pid = os.getpid()
    if log_to_driver:
        from skate import _logs

        _printer = _logs.start_printer(f"{session_dir}/logs", files_end_with_us=is_ours)
    if not _exit_hook_set:
        import atexit

        atexit.register(shutdown)
        _exit_hook_set = True


def runtime_env_json(env: dict[str, Any] | None) -> str:
    """What a task's own runtime environment comes to, merged into the one that surrounds it."""
    if not env:
        return ""
    from skate import runtime_env as env_module

    around = json.loads(_skate.context()["runtime_env"] or "{}")
    package = env_module.Package(env_module.validate(env))
    if package.sources:
        raise ValueError(
            "working_dir and py_modules are copied when the job starts: pass them to init(runtime_env=...), "
            "not to a task or an actor"
        )
    return json.dumps(env_module.merge(around, package.env), sort_keys=True)


_PRIVATE_REFUSED = {
    "_plasma_directory": "the store lives in anonymous memory and needs no directory",
    "_redis_username": "leave it out",
    "_redis_password": "leave it out",
    "_metrics_export_port": "there is no metrics endpoint yet",
    "_driver_object_store_memory": "pass object_store_memory",
    "_tracing_startup_hook": "tracing is not supported yet",
}


def _private_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    system = dict(kwargs.pop("_system_config", None) or {})
    spill_dir = kwargs.pop("object_spilling_directory", None)
    inline_limit = system.pop("max_direct_call_object_size", None)
    # For tests: what may be repeated between the daemons is sent twice, as after a loss.
    send_twice = system.pop("rpc_send_twice", False)
    if not isinstance(send_twice, bool):
        raise ValueError(f"rpc_send_twice is True or False, not {send_twice!r}")
    if "object_spilling_config" in system:
        spill_dir = _spill_dir(system.pop("object_spilling_config"), spill_dir)
    if inline_limit is not None and (not isinstance(inline_limit, int) or inline_limit < 0):
        raise ValueError(f"max_direct_call_object_size takes a number of bytes, not {inline_limit!r}")
    if system:
        raise ValueError(f"_system_config has settings that Skate does not know: {', '.join(sorted(system))}")
    options = {
        "session_dir_base": kwargs.pop("_temp_dir", None) or _config.env("TMPDIR"),
        "memory": kwargs.pop("_memory", None),
        "node_name": kwargs.pop("_node_name", None),
        "inline_limit_bytes": inline_limit,
        "send_twice": send_twice,
        "spill_dir": spill_dir,
    }
    node_ip = kwargs.pop("_node_ip_address", None)
    if node_ip not in (None, "127.0.0.1", "localhost"):
        raise RuntimeError(f"init binds to loopback only, not to {node_ip!r}: leave _node_ip_address out")
    if kwargs.pop("_enable_object_reconstruction", None) is False:
        raise RuntimeError(
            "lost objects are always rebuilt: set max_retries=0 on tasks that must not run twice"
        )
    kwargs.pop("_skip_env_hook", None)  # there is no hook to skip
    for name, advice in _PRIVATE_REFUSED.items():
        if kwargs.pop(name, None) is not None:
            raise RuntimeError(f"init does not support {name}: {advice}")
    if kwargs:
        raise RuntimeError(f"init has no arguments named {', '.join(sorted(kwargs))}")
    return options


def _spill_dir(config: Any, given: str | None) -> str | None:
    if isinstance(config, str):
        config = json.loads(config)
    if config.get("type") != "filesystem":
        raise ValueError(f"objects spill to a directory of this machine only, not to {config.get('type')!r}")
    path = config.get("params", {}).get("directory_path")
    if isinstance(path, list):
        path = path[0] if path else None
    return path or given


def _check_working_directory() -> None:
    """The workers start in it, and what init itself does would fail with less to say."""
    try:
        os.getcwd()
    except OSError as error:
        try:
            place = os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
        except OSError:
            place = os.environ.get("PWD", "?")
        raise type(error)(
            error.errno,
            f"init cannot tell the working directory of this process, in which its workers would start "
            f"({error.strerror}; it may have been deleted): call os.chdir() with a directory that exists before "
            "init",
            place,
        ) from None


def _check_address(address: Any) -> None:
    if address is None:
        return
    if not isinstance(address, str):
        raise TypeError(f"address takes a string, not {type(address).__name__}")
    if "://" in address:
        raise ValueError(
            f"{address!r} asks for a client connection, which is not supported: run this program on a "
            "machine of the cluster and pass address='auto'"
        )


def _check_namespace(namespace: Any) -> str:
    if namespace is None:
        text = os.urandom(16).hex()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    if not isinstance(namespace, str):
        raise TypeError(f"namespace takes a string or None, not {type(namespace).__name__}")
    if not namespace:
        raise ValueError("a namespace cannot be empty: pass None for one of this job's own")
    from skate._options import check_text

    check_text("the namespace", namespace)
    return namespace


def _check_sizes(
    num_cpus: Any, num_gpus: Any, resources: Any, labels: Any, store_bytes: Any, memory_bytes: Any
) -> None:
    from skate._options import check_quantity

    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if value is None:
            continue
        if not isinstance(value, (int, float)) or value != int(value):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        if value < 0:
            raise ValueError(f"{name} cannot be negative, but is {value}")
        check_quantity(name, value)
    for name, value in (("_memory", memory_bytes), ("object_store_memory", store_bytes)):
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name} takes a number of bytes, not {value!r}")
        check_quantity(name, value)
    if resources is not None and not isinstance(resources, dict):
        raise TypeError(f"resources takes a dict, not {type(resources).__name__}")
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "_memory"}
    own["object_store_memory"] = "object_store_memory"
    for name, value in (resources or {}).items():
        if name in own:
            raise ValueError(f"{name} is no custom resource: pass {own[name]}")
        if not isinstance(value, (int, float)) or value < 0 or value != int(value):
            raise ValueError(f"the quantity of {name!r} must be a whole number from 0 on, not {value!r}")
        check_quantity(repr(name), value)
    if labels is not None and not isinstance(labels, dict):
        raise TypeError(f"labels takes a dict of strings, not {type(labels).__name__}")
    for key, value in (labels or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"labels map strings to strings, not {key!r} to {value!r}")
        if key.startswith("ray.io/"):
            raise ValueError(
                f"{key!r} cannot be a label of yours: the prefix ray.io/ is kept for the system's own"
            )
    if store_bytes is not None and store_bytes < _MIN_STORE_BYTES:
        raise ValueError(f"object_store_memory must be at least {_MIN_STORE_BYTES} bytes, not {store_bytes}")


def _script_dir() -> str:
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return os.path.dirname(os.path.abspath(path)) if path else os.getcwd()


def _set_up_logging(level: int | str, fmt: str | None, config: LoggingConfig | None) -> None:
    import logging

    logger = logging.getLogger("skate")
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter(fmt or "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s")
        )
        logger.addHandler(handler)
        logger.propagate = False
    if config is not None:
        config.apply()


@_one_at_a_time
def shutdown(*, wait_for_processes: bool = False) -> None:
    """Ends the connection, and with it the cluster if `init` started one. Refs become unusable.

    Calls of other threads that still wait for something raise NotConnectedError.
    It returns when the cluster's processes are gone, so `wait_for_processes` changes nothing.
    """
    global _context, _printer
    if _pid and _pid != os.getpid():
        return  # a forked child: the connection is its parent's
    printer, _printer = _printer, None
    if _skate.is_connected() and not _skate.context()["is_worker"]:
        try:
            if printer is not None:
                until = time.monotonic() + _LAST_LINES_S
                printer.end(until, lambda: _skate.flush_logs(_LAST_LINES_S))
        finally:
            _skate.disconnect()
    with _bound_lock:
        for item in list(bound):
            item.unbind()
        bound.clear()
    _context = None


# --- refs -------------------------------------------------------------------------------------


def put(value: Any, *, _owner: ActorHandle[Any] | None = None, _tensor_transport: str | None = None) -> Any:
    """Stores a snapshot of `value` and returns a ref to it."""
    if not _skate.is_connected():
        ensure_connected()
    kind = type(value)
    if kind is ObjectRef or kind is ObjectRefGenerator:
        raise TypeError("put takes a value, and this is a ref already: pass the ref on, or put [ref]")
    if _tensor_transport not in (None, "object_store", "OBJECT_STORE"):
        raise ValueError("_tensor_transport is not supported: values travel through the object store")
    if _owner is not None:
        raise NotImplementedError(
            "_owner is not supported yet: have the actor put the value, and return [ref]"
        )
    return _skate.put(value)


def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a ref, or those of a list of refs, when they are there. Raises their errors.

    After `timeout` seconds raises GetTimeoutError; 0 looks without waiting.
    """
    if async_actor:
        _warn_of_blocking()
    if timeout is not None and _is_negative(timeout):
        timeout = None
    kind = type(object_refs)
    if kind is ObjectRef or kind is list:
        if not _skate.is_connected():
            ensure_connected()
        return _skate.get(object_refs, timeout)
    if kind is ObjectRefGenerator:
        return object_refs
    if isinstance(object_refs, list):
        return _skate.get(list(object_refs), timeout)
    raise ValueError(f"get takes an ObjectRef or a list of them, not {kind.__name__}: {object_refs!r}")


def _is_negative(timeout: Any) -> bool:
    try:
        return bool(timeout < 0)
    except TypeError:
        raise TypeError(
            f"timeout takes a number of seconds, or None to wait for as long as it takes, not {timeout!r}"
        ) from None


def wait(
    waitables: Sequence[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Splits refs into those that are ready, at most `num_returns`, and the others.

    Returns once `num_returns` are ready or `timeout` seconds have passed. A generator is ready when its
    next item is.
    """
    if async_actor:
        _warn_of_blocking()
    if timeout is not None and _is_negative(timeout):
        raise ValueError(f"timeout cannot be negative, but is {timeout}")
    try:
        while (result := _skate.wait(waitables, num_returns, timeout, fetch_local)) is None:
            ensure_connected()  # there was no connection when it began
    except TypeError:
        # The native wait looks at all types before it waits, and knows lists of refs and plain ints only.
        if not isinstance(num_returns, int):
            num_returns = _index("num_returns", num_returns)
            return wait(waitables, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local)
        if isinstance(waitables, list):
            if any(type(item) is ObjectRefGenerator for item in waitables):
                return _wait_mixed(waitables, num_returns, timeout, fetch_local)
            raise
        single = isinstance(waitables, (ObjectRef, ObjectRefGenerator))
        raise TypeError(
            f"wait takes a list of refs, not {'one alone' if single else type(waitables).__name__}: "
            f"pass {'[ref]' if single else 'a list'}"
        ) from None
    return result


def _index(name: str, value: Any) -> int:
    """What counts as a whole number, such as numpy's."""
    import operator

    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} takes a whole number, not {value!r}: pass an int") from None


def _wait_mixed(
    waitables: list[Any], num_returns: int, timeout: float | None, fetch_local: bool
) -> tuple[list[Any], list[Any]]:
    """As wait, for lists that hold generators; wakes by callback."""
    import threading

    if len({id(item) if type(item) is ObjectRefGenerator else item for item in waitables}) < len(waitables):
        raise ValueError("wait takes each ref once only")
    if not 0 < num_returns <= len(waitables):
        raise ValueError(
            f"num_returns must be from 1 to the number of refs ({len(waitables)}), not {num_returns}"
        )
    lock = threading.Lock()
    enough = threading.Event()
    ready: set[int] = set()
    failure: BaseException | None = None

    def notify(index: int) -> Any:
        def callback(error: BaseException | None = None) -> None:
            nonlocal failure
            with lock:
                if error is None:
                    ready.add(index)
                else:
                    failure = error
                if failure is not None or len(ready) >= num_returns:
                    enough.set()

        return callback

    for index, item in enumerate(waitables):
        if type(item) is ObjectRefGenerator:
            if item.next_ready() or item.is_finished():
                notify(index)()
            else:
                item._core.on_next_ready(notify(index))
        elif type(item) is ObjectRef:
            _skate.on_ready(item, notify(index))
        else:
            raise TypeError(f"wait takes refs and generators, not {type(item).__name__}: {item!r}")
    enough.wait(timeout)
    with lock:
        if failure is not None:
            raise failure
        chosen = sorted(ready)[:num_returns]
    if fetch_local:
        refs = [waitables[i] for i in chosen if type(waitables[i]) is ObjectRef]
        if refs:
            _skate.wait(refs, len(refs), timeout, True)
    taken = set(chosen)
    return [waitables[i] for i in chosen], [w for i, w in enumerate(waitables) if i not in taken]


_blocking_warned = False


def _warn_of_blocking() -> None:
    global _blocking_warned
    if _blocking_warned:
        return
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return  # a thread of the actor's own may block
    _blocking_warned = True
    import logging

    logging.getLogger("skate").warning(
        "a blocking get or wait holds up the event loop of this actor: await the ref instead, or use "
        "asyncio.wait"
    )


def cancel(waitable: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Asks a task to stop: what has not begun does not, what runs gets KeyboardInterrupt (an asyncio
    method CancelledError), with `force` its worker is ended. A finished task is left alone."""
    if type(waitable) is ObjectRefGenerator:
        waitable = waitable.completed()
    if type(waitable) is not ObjectRef:
        raise TypeError(
            f"cancel takes the ref of a task, not {type(waitable).__name__}; actors end by skate.kill"
        )
    if force and waitable.task_id().binary()[8] != 0xFF:
        raise ValueError("force=True would end the whole actor: use skate.kill for that, or force=False")
    _skate.cancel(waitable, force, recursive)


def kill(actor: Any, *, no_restart: bool = True) -> None:
    """Ends an actor at once; the calls it has not finished fail."""
    from skate.actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill takes an actor handle, not {type(actor).__name__}; tasks end by skate.cancel")
    _skate.kill_actor(actor._skate_core, no_restart)


def get_actor(name: str, namespace: str | None = None) -> Any:
    """The handle of a named actor; ValueError when there is none of that name."""
    from skate.actor import ActorHandle

    if not isinstance(name, str):
        raise TypeError(f"the name of an actor is a string, not {type(name).__name__}")
    if not name:
        raise ValueError("the name of an actor cannot be empty")
    from skate._options import check_text

    check_text("the name of an actor", name)
    if namespace is not None:
        namespace = _check_namespace(namespace)
    ensure_connected()
    return ActorHandle(_skate.get_named_actor(name, namespace or _skate.context()["namespace"]))


# --- cluster ----------------------------------------------------------------------------------


def _require_connection() -> None:
    if not _skate.is_connected():
        from skate.exceptions import NotConnectedError

        raise NotConnectedError("this process is not connected to a cluster: call skate.init() first")


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, dead ones included."""
    _require_connection()
    result: list[dict[str, Any]] = json.loads(_skate.control_call("nodes", "{}"))
    return result


def cluster_resources() -> dict[str, float]:
    """The sum of what the live nodes have."""
    _require_connection()
    result: dict[str, float] = json.loads(_skate.control_call("cluster_resources", "{}"))
    return result


def available_resources() -> dict[str, float]:
    """The sum of what is free now; what is used up is left out."""
    _require_connection()
    result: dict[str, float] = json.loads(_skate.control_call("available_resources", "{}"))
    return result


def get_gpu_ids() -> list[int] | list[str]:
    """The GPUs of the current task or actor, as CUDA_VISIBLE_DEVICES names them."""
    ensure_connected()
    ids = _skate.context()["accelerator_ids"].get("GPU", [])
    if all(item.isdigit() for item in ids):
        return [int(item) for item in ids]
    return list(ids)
