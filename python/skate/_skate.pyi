"""The native module. This stub is its contract; python/bindings follows it.

Times are seconds as float, `None` for no limit. Every blocking call releases the GIL and returns for
signals. A call without a connection raises RuntimeError, unless its comment says otherwise.

The native side calls these Python hooks (see their docstrings for the exact contract):
  skate._async: ref_await, ref_future, ref_as_future
  skate._streaming: ObjectRefGenerator(core), DynamicObjectRefGenerator(refs)
  skate._errors: load_error, make_system_error
  skate._worker: load_function, load_class, create_actor_instance, bind_method, make_task_error,
    should_retry, run_asyncio_actor, setup_process, ActorExitRequest
"""

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Generic, TypedDict, TypeVar

from skate._ids import JobID, TaskID

T = TypeVar("T")

class ObjectRef(Generic[T], Awaitable[T]):
    """Counted reference to a value; final, weakly referenceable, hashed and compared by its id."""

    def __init__(self, id: bytes) -> None: ...  # 28 bytes; ValueError otherwise
    def __await__(self) -> Generator[Any, None, T]: ...  # skate._async.ref_await(self)
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __repr__(self) -> str: ...  # "ObjectRef(<hex>)"
    def hex(self) -> str: ...
    def binary(self) -> bytes: ...
    def is_nil(self) -> bool: ...
    def task_id(self) -> TaskID: ...
    def job_id(self) -> JobID: ...
    def call_site(self) -> str: ...
    def owner_address(self) -> bytes: ...
    def future(self) -> concurrent.futures.Future[T]: ...  # skate._async.ref_future(self)
    def as_future(self) -> asyncio.Future[T]: ...  # skate._async.ref_as_future(self)
    @classmethod
    def size(cls) -> int: ...  # 28
    @classmethod
    def nil(cls) -> ObjectRef[Any]: ...
    @classmethod
    def from_binary(cls, id: bytes) -> ObjectRef[Any]: ...
    @classmethod
    def from_hex(cls, hex: str) -> ObjectRef[Any]: ...
    @classmethod
    def from_random(cls) -> ObjectRef[Any]: ...

def on_ready(ref: ObjectRef[Any], callback: Callable[..., object]) -> None:
    """Calls `callback` once on the dispatcher thread: without arguments when a get of `ref` would not wait,
    or with an exception when the connection has ended before."""

# --- connection -------------------------------------------------------------------------------

class ConnectResult(TypedDict):
    node_id: str
    session_dir: str
    session_name: str
    job_id: bytes
    worker_id: bytes
    node_ip_address: str
    gcs_address: str
    object_store_bytes: int
    version: str

def connect(config: dict[str, Any]) -> ConnectResult:
    """Starts or joins a cluster.

    Keys, all present: address (None, "local", "auto", a path or host:port), num_cpus, num_gpus (int or
    None), resources (dict[str, float]), labels (dict[str, str]), object_store_memory, memory (bytes or
    None), namespace (str), session_dir_base (str or None), python_executable, script_dir, cwd (str),
    sys_path (list[str]), log_to_driver (bool), runtime_env (JSON, "" for none), job_metadata
    (dict[str, str]), node_name (str or None), inline_limit_bytes (int or None), send_twice (bool),
    spill_dir (str or None), preload_modules (list[str]), logging_config (JSON, "" for none), prepare
    (None, or called with the session directory after it exists and before the job is made known: it
    copies what runtime_env names there).
    Raises ConnectionError when no cluster answers at the address.
    """

def run_worker(socket_path: str, start_token: int, /) -> int:
    """The main loop of a worker; returns its exit code. Used by skate._worker_main."""

def disconnect() -> None: ...  # without a connection: does nothing
def is_connected() -> bool: ...  # works without a connection; True in every worker

FORKED_TEXT: str  # what a call in a forked child raises

def in_forked_child() -> bool: ...  # the connection is the parent's, and cannot be used

# --- tasks ------------------------------------------------------------------------------------

class TaskTemplate:
    """A function with its options, exported once; immutable.

    Options, all present: num_returns (int), mode ("static", "dynamic" or "streaming"), resources
    (dict[str, float], complete, without zeros), max_retries (int, -1 for ever), retry_exceptions
    (bool: the worker asks skate._worker.should_retry), max_calls (int, 0 for ever), backpressure (int,
    -1 none), runtime_env (JSON; "" for that of the submitting task or job), scheduling (JSON; "" for
    the default, under which a placement group that captures child tasks is inherited), name (str),
    enable_task_events (bool), arity_min and arity_max (int, arity_max -1 for no limit) and check
    (callable or None): a submit with keyword arguments, or whose positional ones are not within the
    arity, first calls check(args, kwargs), which raises TypeError if the function cannot take them.
    """

    def __init__(self, blob: bytes, name: str, options: dict[str, Any]) -> None: ...
    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """ObjectRef; list of them for num_returns > 1; None for 0; ObjectRefGenerator for streaming."""

# --- actors -----------------------------------------------------------------------------------

class ActorCore:
    """What a handle owns: it holds one reference to the actor.

    Pickles inside of a value with a counted reference, and elsewhere without one: a function captures
    handles (and ObjectRefs, with the owner's address), and its code is pickled by itself.
    """

    def actor_id(self) -> bytes: ...
    def meta(self) -> bytes: ...
    def method(self, name: str, options: dict[str, Any]) -> ActorMethodCore:
        """Options, all present: num_returns, mode, concurrency_group ("" default), max_task_retries
        (int, or None for the actor's), retry_exceptions (bool), retry_classes (pickled: the only ones of
        this call to be retried on; b"": as the method says), backpressure, name, enable_task_events, arity_min, arity_max, check (as TaskTemplate's)."""
    def is_owned(self) -> bool: ...
    def kill(self, no_restart: bool) -> None: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

class ActorMethodCore:
    def submit(self, *args: Any, **kwargs: Any) -> Any: ...  # returns as TaskTemplate.submit

def create_actor(
    blob: bytes,
    class_name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
) -> ActorCore:
    """Options, all present: resources (held while alive), placement_resources (needed to be placed),
    max_restarts, max_task_retries (-1 for ever), name ("" none), namespace ("" the job's), detached,
    get_if_exists, max_concurrency, concurrency_groups (dict[str, int]), is_asyncio, max_pending_calls
    (-1 none), runtime_env, scheduling, allow_out_of_order, meta (bytes, travels with the handle),
    enable_task_events. Raises make_system_error("actor_exists", ...) when the name is taken."""

def get_named_actor(name: str, namespace: str) -> ActorCore: ...  # ValueError when there is none
def list_named_actors(all_namespaces: bool) -> list[tuple[str, str]]: ...  # (namespace, name)
def kill_actor(core: ActorCore, no_restart: bool) -> None: ...
def cancel(ref: ObjectRef[Any], force: bool, recursive: bool) -> None: ...

# --- objects ----------------------------------------------------------------------------------

def register_serializer(
    cls: type, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any], /
) -> None: ...
def deregister_serializer(cls: type, /) -> None: ...
def _restore_ref(index: int, /) -> ObjectRef[Any]:
    """What a ref in a pickle comes to: one of the refs of the value that is being read."""

def put(value: Any, /) -> ObjectRef[Any]: ...
def get(refs: Any, timeout: float | None) -> Any:
    """One value for an ObjectRef, a list for a list. TypeError names an element that is no ref."""

def wait(
    refs: Sequence[ObjectRef[Any]], num_returns: int, timeout: float | None, fetch_local: bool
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]] | None:
    """At most num_returns ready ones, then the others, each in the order given. TypeError unless a list.
    None if there is no connection when it begins."""

class StreamCore:
    """The consumer's end of a streaming generator."""

    def next(self, timeout: float | None) -> ObjectRef[Any]:
        """Waits for the next item; StopIteration at the end, GetTimeoutError after `timeout`."""
    def next_ready(self) -> bool: ...
    def is_finished(self) -> bool: ...  # true once next has raised StopIteration, or would at once
    def completed_ref(self) -> ObjectRef[Any]: ...
    def on_next_ready(self, callback: Callable[..., object]) -> None:
        """As on_ready, when `next` would not wait."""

# --- cluster ----------------------------------------------------------------------------------

def kv_put(key: bytes, value: bytes, overwrite: bool, namespace: bytes, /) -> bool:
    """Whether the key was there before."""

def kv_get(key: bytes, namespace: bytes, /) -> bytes | None: ...
def kv_del(key: bytes, namespace: bytes, /) -> bool: ...
def kv_exists(key: bytes, namespace: bytes, /) -> bool: ...
def kv_keys(prefix: bytes, namespace: bytes, /) -> list[bytes]: ...
def control_call(method: str, payload_json: str) -> str:
    """Methods: nodes, cluster_resources, available_resources, jobs, actors, placement_groups,
    pg_create, pg_remove, pg_wait. ValueError for one that this build does not know."""

class Context(TypedDict):
    job_id: bytes
    task_id: bytes | None
    actor_id: bytes | None
    worker_id: bytes
    node_id: bytes
    task_name: str
    function: Callable[..., Any] | None  # that a task runs
    method: str  # that an actor runs
    assigned_resources: dict[str, float]
    accelerator_ids: dict[str, list[str]]
    actor_name: str
    namespace: str
    runtime_env: str
    attempt: int
    is_worker: bool
    actor_restarted: bool
    placement_group_id: bytes | None
    should_capture: bool
    node_labels: dict[str, str]
    session_dir: str
    gcs_address: str

def context() -> Context:
    """The current thread's task; outside one, the job's driver or the worker."""

def current_actor() -> ActorCore | None: ...
def is_cancelled() -> bool: ...
def flush_logs(timeout: float | None) -> bool:
    """Ends next_log_batch(): it returns what the job's workers have printed up to now, then None. False: the
    node did not send all of that within the timeout."""

def next_log_batch(timeout: float | None) -> list[tuple[int, str, bool, bytes | None, int]] | None:
    """Lines of the job's workers: (pid, worker name, is stderr, line, lines that were dropped before it).
    The line is None where none came
    after those that were dropped. None once the connection has ended; an empty list after `timeout`."""

# --- worker side: what run_asyncio_actor is given ---------------------------------------------

class AsyncCall:
    """One call in flight, opaque but for these. While a coroutine of it runs, the context variable
    skate._worker.current_call holds it: context() and submits from the loop's thread read it there."""

    concurrency_group: str  # "" for the default group
    is_streaming: bool  # the caller takes a stream ("streaming" or "dynamic")

def look(timeout: float | None) -> None: ...  # a loop about to sleep: reads links, or spins for news

class AsyncActorCore:
    def fd(self) -> int: ...  # readable when next_batch, cancelled_batch or should_stop has news
    def next_batch(self) -> list[tuple[AsyncCall, str, tuple[Any, ...], dict[str, Any]]]:
        """The calls whose arguments are ready: (call, method name, args, kwargs). Clears fd."""
    def cancelled_batch(self) -> list[AsyncCall]: ...  # calls, given out before, that were cancelled
    def reply(self, call: AsyncCall, value: Any) -> None: ...
    def reply_error(self, call: AsyncCall, exc: BaseException) -> None:
        """Also ends a stream in error. An ActorExitRequest ends the actor."""
    def yield_value(self, call: AsyncCall, value: Any) -> None: ...  # reply(call, None) ends a stream
    def can_yield(self, call: AsyncCall) -> Awaitable[None] | None:
        """None when the consumer has room; otherwise what to await before the next yield_value."""
    def concurrency_groups(self) -> dict[str, int]: ...  # limits by group, "" is the default one
    def should_stop(self) -> bool: ...
    def leaving(self) -> bool: ...  # a call ended the actor: no further one begins
