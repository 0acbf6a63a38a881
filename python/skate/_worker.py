"""What the native worker asks of Python: loading code, running actors, describing errors."""

from __future__ import annotations

import collections
import contextvars
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from skate import _skate

#: The call whose coroutine runs; read by the native context() and submits in an asyncio actor.
current_call: contextvars.ContextVar[Any] = contextvars.ContextVar("skate_current_call", default=None)

_METHODS_MAX = 4096  # remembered: a class may answer to any name
_PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__)) + os.sep
_node_ip = "127.0.0.1"
_actor: Any = None
_actor_class: type | None = None
_actor_loop: asyncio.AbstractEventLoop | None = None
_failing_method: Any = None  # while an asyncio actor reports the error of a call: its method


class ActorExitRequest(SystemExit):
    """Raised by exit_actor. The native worker ends the actor as intended, with code 0."""


def setup_process(
    runtime_env: str = "",
    session_dir: str = "",
    node_ip_address: str = "127.0.0.1",
    logging_config: str = "",
) -> None:
    """Called once before the first task. What it raises means that the environment failed."""
    global _node_ip
    from skate import _worker_main

    _node_ip = node_ip_address
    if _worker_main.failure is not None:
        raise _worker_main.failure
    if runtime_env:
        _apply_runtime_env(runtime_env, session_dir)
    if logging_config:
        import json

        from skate.logging_config import LoggingConfig

        LoggingConfig.from_dict(json.loads(logging_config)).apply()


def setup_failure(exc: BaseException) -> str:
    """What those read whose tasks wait for a worker with this environment."""
    from skate._worker_main import WorkingDirectoryError

    if isinstance(exc, WorkingDirectoryError):
        return str(exc)
    return f"the set-up of its environment raised:\n{_traceback_text(exc).rstrip()}{_descriptors_hint(exc)}"


def _descriptors_hint(exc: BaseException) -> str:
    """The cause below what an import or a library makes of it, if that is the limit of open files."""
    import errno
    import resource

    seen: BaseException | None = exc
    for _ in range(32):
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return (
                f"\nThe worker ran out of file descriptors, of which it may have {limit}: raise the limit "
                "(ulimit -n) where the driver starts."
            )
        seen = seen.__cause__ or seen.__context__ if seen is not None else None
    return ""


def _apply_runtime_env(runtime_env: str, session_dir: str) -> None:
    import json

    from skate import runtime_env as env_module

    env = json.loads(runtime_env)  # whose env_vars were set before the process began
    paths = []
    if "working_dir" in env:
        directory = env_module.resolve(env["working_dir"], session_dir)
        os.chdir(directory)
        paths.append(directory)
    for module in env.get("py_modules", []):
        paths.append(env_module.resolve(module, session_dir))
    sys.path[:0] = [path for path in paths if path not in sys.path]
    hook = env.get("worker_process_setup_hook")
    if hook is not None:
        _load_hook(hook)()


def _load_hook(hook: Any) -> Callable[[], object]:
    if isinstance(hook, str):
        import importlib

        module, _, name = hook.rpartition(".")
        found: Callable[[], object] = getattr(importlib.import_module(module), name)
        return found
    import base64

    loaded: Callable[[], object] = pickle.loads(base64.b64decode(hook["pickle"]))
    return loaded


# --- code -------------------------------------------------------------------------------------


class RetryingFunction:
    """A function whose task names the exceptions to retry on."""

    def __init__(self, function: Callable[..., Any], types: tuple[type[BaseException], ...]) -> None:
        self.function = function
        self.retry_exceptions = types

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def load_function(blob: bytes) -> Callable[..., Any]:
    function, types = pickle.loads(blob)
    loaded: Callable[..., Any] = function if types is None else RetryingFunction(function, types)
    return loaded


def function_name(function: Callable[..., Any] | None, method: str) -> str:
    """Of what runs: a task's `function`, or that method of this process's actor."""
    if function is None:
        cls = _actor_class
        return f"{cls.__module__}.{cls.__name__}.{method}" if cls is not None else method
    if isinstance(function, RetryingFunction):
        function = function.function
    return f"{function.__module__}.{function.__qualname__}"


def load_class(blob: bytes) -> type:
    cls: type = pickle.loads(blob)
    return cls


def should_retry(exc: BaseException, function: Any, classes: bytes) -> bool:
    """Whether an exception of a task with retry_exceptions is one to retry on. `function` is None for a
    call of an asyncio actor; `classes`, pickled unless empty, are those that the call itself names."""
    if not isinstance(exc, Exception):
        return False
    if function is None:
        function = _failing_method
    if classes:
        types = pickle.loads(classes)
    elif isinstance(function, RetryingFunction):
        types = function.retry_exceptions
    else:
        types = getattr(function, "__skate_method_options__", {}).get("retry_exceptions")
    if isinstance(types, (list, tuple)):
        return isinstance(exc, tuple(types))
    return True


# --- actors -----------------------------------------------------------------------------------


def _new_loop() -> asyncio.AbstractEventLoop:
    """Of asyncio's own kind: one that looks for calls a little before it sleeps, as a sync actor does. A loop of
    another policy is woken through its file descriptor."""
    import asyncio
    import selectors

    from skate import _skate

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is None or timeout > 0:
                _skate.look(timeout)
            return super().select(timeout)

    loop = asyncio.new_event_loop()
    if type(loop) is not asyncio.SelectorEventLoop:
        return loop
    loop.close()
    return asyncio.SelectorEventLoop(Selector())


def create_actor_instance(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The constructor of an asyncio actor runs inside of its loop."""
    global _actor, _actor_class, _actor_loop
    from skate import _signature
    from skate.actor import class_methods

    _actor_class = cls
    if any(_signature.is_async(method) for method in class_methods(cls).values()):
        import asyncio

        _actor_loop = _new_loop()
        asyncio.set_event_loop(_actor_loop)

        async def construct() -> Any:
            constructor: Any = cls.__init__  # type: ignore[misc]
            if not _signature.is_async(constructor):
                return cls(*args, **kwargs)
            instance = cls.__new__(cls, *args, **kwargs)
            await constructor(instance, *args, **kwargs)
            return instance

        _actor = _actor_loop.run_until_complete(construct())
    else:
        _actor = cls(*args, **kwargs)
    return _actor


def _ready() -> bool:
    return True


def _terminate() -> NoReturn:
    raise ActorExitRequest(0)


def bind_method(instance: Any, name: str) -> Callable[..., Any]:
    """What a call of `name` runs. AttributeError if the class has no such method."""
    if name in ("__skate_call__", "__ray_call__"):

        def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return function(instance, *args, **kwargs)

        return call
    if name in ("__skate_ready__", "__ray_ready__"):
        return _ready
    if name in ("__skate_terminate__", "__ray_terminate__"):
        return _terminate
    found: Callable[..., Any] = getattr(instance, name)
    return found


def run_asyncio_actor(core: _skate.AsyncActorCore) -> None:
    """Serves an asyncio actor on this thread until it is told to stop."""
    import asyncio

    from skate import _runtime

    loop = _actor_loop
    if loop is None:
        # No async method, yet told to run as one: an empty loop serves it as well.
        loop = _new_loop()
        asyncio.set_event_loop(loop)
    _runtime.async_actor = True
    server = _AsyncServer(core, loop, _actor)
    loop.add_reader(core.fd(), server.on_readable)
    loop.call_soon(server.on_readable)
    try:
        loop.run_forever()
    finally:
        loop.remove_reader(core.fd())
        _runtime.async_actor = False


def _is_awaitable(value: Any) -> bool:
    """A ref can be awaited too, but as a result it is a value."""
    return hasattr(value, "__await__") and type(value).__name__ != "ObjectRef"


class _AsyncServer:
    """Starts calls in the order in which they come, within the limits of their groups. Lives on the loop."""

    def __init__(self, core: _skate.AsyncActorCore, loop: asyncio.AbstractEventLoop, actor: Any) -> None:
        self._core = core
        self._loop = loop
        self._actor = actor
        self._free = dict(core.concurrency_groups())
        self._waiting: dict[str, collections.deque[Any]] = {
            group: collections.deque() for group in self._free
        }
        self._methods: dict[str, tuple[Any, bool]] = {}
        self._tasks: dict[_skate.AsyncCall, asyncio.Task[None]] = {}
        self._cancelled: set[_skate.AsyncCall] = set()

    def on_readable(self) -> None:
        core = self._core
        for item in core.next_batch():
            group = item[0].concurrency_group
            if group not in self._free:
                core.reply_error(item[0], ValueError(self._no_group(group)))
            elif self._free[group] > 0 and not core.leaving():
                self._free[group] -= 1
                self._start(item)
            else:
                self._waiting[group].append(item)
        for call in core.cancelled_batch():
            self._cancel(call)
        if core.should_stop():
            self._loop.stop()

    def _no_group(self, group: str) -> str:
        names = ", ".join(repr(name) for name in self._free if name) or "none"
        return f"the actor has no concurrency group {group!r}; it has {names}"

    def _start(self, item: Any) -> None:
        call, name, args, kwargs = item
        if self._core.leaving():
            self._waiting[call.concurrency_group].append(item)
            return self._release(call.concurrency_group)
        try:
            method, is_plain = self._method(name)
        except AttributeError as error:
            self._core.reply_error(call, error)
            self._release(call.concurrency_group)
            return
        if is_plain:
            self._run_plain(call, method, args, kwargs)
            return
        task = self._loop.create_task(self._run(call, method, args, kwargs))
        self._tasks[call] = task

    def _method(self, name: str) -> tuple[Any, bool]:
        found = self._methods.get(name)
        if found is None:
            from skate import _signature

            if len(self._methods) >= _METHODS_MAX:
                self._methods.clear()
            method = bind_method(self._actor, name)
            is_plain = type(method).__name__ == "method" and not (
                _signature.is_async(method) or _signature.is_generator(method)
            )
            found = self._methods[name] = (method, is_plain)
        return found

    def _run_plain(self, call: Any, method: Any, args: Any, kwargs: Any) -> None:
        """A sync method blocks the loop, so it needs no task of its own."""
        token = current_call.set(call)
        try:
            value = method(*args, **kwargs)
            if _is_awaitable(value):
                # It returned a coroutine, as a wrapper around an async method does.
                self._tasks[call] = self._loop.create_task(self._run(call, method, args, kwargs, value))
                return
            self._core.reply(call, value)
        except BaseException as error:
            self._fail(call, method, error)
        finally:
            current_call.reset(token)
        self._release(call.concurrency_group)

    async def _run(self, call: Any, method: Any, args: Any, kwargs: Any, begun: Any = None) -> None:
        import asyncio

        current_call.set(call)
        try:
            value = method(*args, **kwargs) if begun is None else begun
            if hasattr(value, "__anext__"):
                await self._drain_async(call, value)
            elif hasattr(value, "send") and hasattr(value, "__next__") and not hasattr(value, "__await__"):
                await self._drain(call, value)
            else:
                if _is_awaitable(value):
                    value = await value
                self._core.reply(call, value)
        except asyncio.CancelledError as error:
            self._fail(call, method, self._cancelled_error() if call in self._cancelled else error)
        except BaseException as error:
            self._fail(call, method, error)
        finally:
            self._tasks.pop(call, None)
            self._cancelled.discard(call)
            self._release(call.concurrency_group)

    def _fail(self, call: Any, method: Any, error: BaseException) -> None:
        global _failing_method
        _failing_method = method
        try:
            self._core.reply_error(call, error)
        finally:
            _failing_method = None

    async def _drain_async(self, call: Any, items: Any) -> None:
        if not call.is_streaming:
            self._core.reply(call, [item async for item in items])
            return
        try:
            async for item in items:
                await self._yield(call, item)
        finally:
            # Also when the consumer has gone: what the generator holds is given back now.
            if hasattr(items, "aclose"):
                await items.aclose()
        self._core.reply(call, None)

    async def _drain(self, call: Any, items: Any) -> None:
        if not call.is_streaming:
            self._core.reply(call, list(items))
            return
        try:
            for item in items:
                await self._yield(call, item)
        finally:
            items.close()
        self._core.reply(call, None)

    async def _yield(self, call: Any, item: Any) -> None:
        room = self._core.can_yield(call)
        if room is not None:
            await room
        self._core.yield_value(call, item)

    def _release(self, group: str) -> None:
        waiting = self._waiting[group]
        if self._core.leaving():
            # Calls that run come to their end, no other begins.
            if not self._tasks:
                self._loop.stop()
        elif waiting:
            self._loop.call_soon(self._start, waiting.popleft())
        else:
            self._free[group] += 1

    def _cancel(self, call: Any) -> None:
        task = self._tasks.get(call)
        if task is not None:
            self._cancelled.add(call)
            task.cancel()
            return
        waiting = self._waiting.get(call.concurrency_group, ())
        for item in waiting:
            if item[0] is call:
                waiting.remove(item)  # type: ignore[union-attr]
                self._core.reply_error(call, self._cancelled_error())
                return

    @staticmethod
    def _cancelled_error() -> BaseException:
        from skate.exceptions import TaskCancelledError

        return TaskCancelledError(None, "the call was cancelled")


# --- errors -----------------------------------------------------------------------------------


def make_task_error(exc: BaseException, function_name: str, actor_id: str = "") -> bytes:
    """The record of what a task raised; see skate._errors for its form. Never raises."""
    from skate import _skate
    from skate.exceptions import TaskCancelledError, TaskError

    text = _traceback_text(exc)
    cause: BaseException = exc
    if isinstance(exc, KeyboardInterrupt):
        from skate._ids import TaskID

        task_id = _skate.context()["task_id"]
        cause = TaskCancelledError(TaskID(task_id) if task_id else None)
        text = f"{text}{_qualified_name(cause)}: {cause}\n"
    elif isinstance(exc, TaskError):
        cause = exc.cause
    pickled, reason = _pickle_exception(cause)
    actor_repr = ""
    if actor_id and _actor is not None:
        try:
            actor_repr = repr(_actor)
        except BaseException as error:  # a user's __repr__
            actor_repr = f"<its repr raised {type(error).__name__}>"
    proctitle = "skate::" + (
        ".".join(function_name.split(".")[-2:]) if actor_id else function_name.rsplit(".", 1)[-1]
    )
    return pickle.dumps(
        (
            function_name,
            text,
            proctitle,
            os.getpid(),
            _node_ip,
            actor_repr,
            actor_id or None,
            pickled,
            _qualified_name(cause),
            _text_of(cause),
            reason,
        )
    )


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as error:  # a user's __str__
        return f"<its text raised {type(error).__name__}>"


def _qualified_name(exc: BaseException) -> str:
    cls = type(exc)
    if cls.__module__ in ("builtins", "__main__"):
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def _traceback_text(exc: BaseException) -> str:
    import traceback

    try:
        summary = traceback.TracebackException.from_exception(exc)
        seen = set()
        stack: list[Any] = [summary]
        while stack:
            part = stack.pop()
            if part is None or id(part) in seen:
                continue
            seen.add(id(part))
            own = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE_DIR)]
            part.stack = traceback.StackSummary.from_list(own)
            stack += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
        return "".join(summary.format())
    except BaseException as error:  # a user's __str__ or __repr__
        return f"{type(exc).__name__}: <its traceback raised {type(error).__name__}>\n"


def _pickle_exception(exc: BaseException) -> tuple[bytes | None, str]:
    """Pickled so that it loads again, tried here, where the error can still be described."""
    import io

    from skate._pickle import RefPickler, RefUnpickler
    from skate.exceptions import portable

    reason = ""
    for candidate in (exc, portable(exc)):
        try:
            out = io.BytesIO()
            pickler = RefPickler(out)
            pickler.dump(candidate)
            data = out.getvalue()
            if isinstance(RefUnpickler(io.BytesIO(data), pickler.refs).load(), BaseException):
                return data, ""
            reason = reason or "it does not pickle as an exception"
        except BaseException as error:  # whatever a user's class does, up to sys.exit()
            reason = reason or f"{type(error).__name__}: {_text_of(error)}"
    return None, reason
