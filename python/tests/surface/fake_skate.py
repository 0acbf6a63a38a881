"""skate._skate in one process, on threads: enough to test the Python surface by itself.

`install()` puts it in the place of the native module before skate is imported. Tasks run on a thread each,
an actor's calls on its own thread. It says nothing about the runtime.
"""

import contextlib
import os
import pickle
import queue
import sys
import threading
import types

import cloudpickle

module = types.ModuleType("skate._skate")
_local = threading.local()
_PID = os.getpid()
_state = {"connected": False, "config": None, "session_dir": "/nonexistent", "control": {}, "kv": {}}
_actors = {}
_names = {}


class ObjectRef:
    def __init__(self, id):
        if not isinstance(id, bytes):
            raise TypeError("bytes expected")
        if len(id) != 28:
            raise ValueError("28 bytes expected")
        self._id = id
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._callbacks = []

    def __class_getitem__(cls, item):
        return cls

    @classmethod
    def from_random(cls):
        return cls(os.urandom(28))

    @classmethod
    def nil(cls):
        return cls(b"\xff" * 28)

    def is_nil(self):
        return self._id == b"\xff" * 28

    def binary(self):
        return self._id

    def hex(self):
        return self._id.hex()

    def task_id(self):
        from skate._ids import TaskID

        return TaskID(self._id[:24])

    def __eq__(self, other):
        return isinstance(other, ObjectRef) and self._id == other._id

    def __hash__(self):
        return hash(self._id)

    def __repr__(self):
        return f"ObjectRef({self.hex()})"

    def __await__(self):
        from skate import _async

        return _async.ref_await(self)

    def future(self):
        from skate import _async

        return _async.ref_future(self)

    def as_future(self):
        from skate import _async

        return _async.ref_as_future(self)

    def __reduce__(self):
        _refs[self._id] = self
        return _find_ref, (self._id,)

    def _set(self, kind, data):
        with self._lock:
            self._kind, self._data = kind, data
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


_refs = {}


def _restore_ref(index):
    raise RuntimeError("there are no values with refs of their own here")


def _find_ref(id):
    return _refs[id]


def _new_ref():
    return ObjectRef(b"\x01" * 8 + b"\xff" * 12 + os.urandom(8))


def on_ready(ref, callback):
    with ref._lock:
        if not ref._done.is_set():
            ref._callbacks.append(callback)
            return
    callback()


def put(value, owner=None):
    ref = _new_ref()
    ref._set("value", cloudpickle.dumps(value))
    return ref


def get(refs, timeout):
    if isinstance(refs, list):
        for ref in refs:
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"{ref!r} is no ref")
        return [get(ref, timeout) for ref in refs]
    from skate import _errors

    if not refs._done.wait(timeout):
        raise _errors.make_system_error("get_timeout", {})
    if refs._kind == "error":
        raise _errors.load_error(refs._data)
    if refs._kind == "system":
        raise _errors.make_system_error(*refs._data)
    return pickle.loads(refs._data)


def wait(refs, num_returns, timeout, fetch_local):
    if not isinstance(refs, list) or not all(isinstance(ref, ObjectRef) for ref in refs):
        raise TypeError("refs only")
    if not refs:
        return [], []
    if not 0 < num_returns <= len(refs):
        raise ValueError("num_returns")
    enough, ready = threading.Event(), []

    def note(ref):
        def callback():
            ready.append(ref)
            if len(ready) >= num_returns:
                enough.set()

        return callback

    for ref in refs:
        on_ready(ref, note(ref))
    enough.wait(timeout)
    chosen = [ref for ref in refs if ref in ready][:num_returns]
    return chosen, [ref for ref in refs if ref not in chosen]


class _Context:
    def __init__(self, **fields):
        self.fields = fields


def context():
    base = {
        "job_id": b"\x01\0\0\0",
        "task_id": None,
        "actor_id": None,
        "worker_id": b"\x02" * 28,
        "node_id": b"\x03" * 28,
        "task_name": "",
        "function": None,
        "method": "",
        "assigned_resources": {},
        "accelerator_ids": {},
        "actor_name": "",
        "namespace": (_state["config"] or {}).get("namespace", ""),
        "runtime_env": (_state["config"] or {}).get("runtime_env", ""),
        "attempt": 0,
        "is_worker": False,
        "actor_restarted": False,
        "placement_group_id": None,
        "should_capture": False,
        "node_labels": {},
        "session_dir": _state["session_dir"],
        "gcs_address": "fake",
    }
    base.update(getattr(_local, "fields", {}))
    return base


def _resolve(args, kwargs):
    data = cloudpickle.dumps((args, kwargs))
    args, kwargs = pickle.loads(data)
    plain = [get(a, None) if isinstance(a, ObjectRef) else a for a in args]
    return plain, {k: get(v, None) if isinstance(v, ObjectRef) else v for k, v in kwargs.items()}


def _check(options, args, kwargs):
    fits = len(args) >= options["arity_min"] and (
        options["arity_max"] < 0 or len(args) <= options["arity_max"]
    )
    if (kwargs or not fits) and options["check"] is not None:
        options["check"](args, kwargs)


class StreamCore:
    def __init__(self):
        self._items = queue.SimpleQueue()
        self._count = 0
        self._lock = threading.Lock()
        self._buffer = []
        self._ended = False
        self._finished = False
        self._callbacks = []
        self._completed = _new_ref()

    def _push(self, ref, end=False):
        with self._lock:
            if ref is not None:
                self._buffer.append(ref)
            self._ended = self._ended or end
            callbacks, self._callbacks = self._callbacks, []
        self._items.put(None)
        for callback in callbacks:
            callback()

    def next(self, timeout):
        from skate import _errors

        while True:
            with self._lock:
                if self._buffer:
                    return self._buffer.pop(0)
                if self._ended:
                    self._finished = True
                    raise StopIteration
            try:
                self._items.get(timeout=timeout)
            except queue.Empty:
                raise _errors.make_system_error("get_timeout", {}) from None

    def next_ready(self):
        return bool(self._buffer)

    def is_finished(self):
        return self._ended and not self._buffer

    def completed_ref(self):
        return self._completed

    def on_next_ready(self, callback):
        with self._lock:
            if not self._buffer and not self._ended:
                self._callbacks.append(callback)
                return
        callback()


def _returns(options):
    from skate._streaming import ObjectRefGenerator

    if options["mode"] == "streaming":
        core = StreamCore()
        return core, ObjectRefGenerator(core)
    refs = [_new_ref() for _ in range(options["num_returns"])]
    if not refs:
        return refs, None
    return refs, refs[0] if len(refs) == 1 else refs


def _finish(target, value):
    if isinstance(target, StreamCore):
        for item in value:
            target._push(put(item))
        target._completed._set("value", pickle.dumps(None))
        target._push(None, end=True)
        return
    if len(target) == 1:
        target[0]._set("value", cloudpickle.dumps(value))
        return
    for ref, item in zip(target, value, strict=False):
        ref._set("value", cloudpickle.dumps(item))


def _fail(target, kind, data):
    refs = [_new_ref(), target._completed] if isinstance(target, StreamCore) else target
    for ref in refs:
        ref._set(kind, data)
    if isinstance(target, StreamCore):
        target._push(refs[0], end=True)


class TaskTemplate:
    KEYS = {
        "num_returns", "mode", "resources", "max_retries", "retry_exceptions", "max_calls", "backpressure",
        "runtime_env", "scheduling", "name", "enable_task_events", "arity_min", "arity_max", "check",
    }  # fmt: skip

    def __init__(self, blob, name, options):
        assert set(options) == self.KEYS, set(options) ^ self.KEYS
        self.blob, self.name, self.options = blob, name, options

    def submit(self, *args, **kwargs):
        _check(self.options, args, kwargs)
        target, result = _returns(self.options)
        cloudpickle.dumps((args, kwargs))
        threading.Thread(target=self._run, args=(target, args, kwargs), daemon=True).start()
        return result

    def _run(self, target, args, kwargs):
        from skate import _worker

        _local.fields = {"is_worker": True, "task_id": b"\x07" * 24, "task_name": self.options["name"]}
        try:
            args, kwargs = _resolve(args, kwargs)
            function = _worker.load_function(self.blob)
            attempts = self.options["max_retries"] if self.options["retry_exceptions"] else 0
            while True:
                try:
                    _finish(target, function(*args, **kwargs))
                    return
                except BaseException as error:
                    if attempts <= 0 or not _worker.should_retry(error, function, b""):
                        raise
                    attempts -= 1
        except BaseException as error:
            _fail(target, "error", _worker.make_task_error(error, self.name))


class ActorMethodCore:
    KEYS = {
        "num_returns", "mode", "concurrency_group", "max_task_retries", "retry_exceptions", "retry_classes", "backpressure",
        "name", "enable_task_events", "arity_min", "arity_max", "check",
    }  # fmt: skip

    def __init__(self, actor, name, options):
        assert set(options) == self.KEYS, set(options) ^ self.KEYS
        self.actor, self.name, self.options = actor, name, options

    def submit(self, *args, **kwargs):
        _check(self.options, args, kwargs)
        target, result = _returns(self.options)
        self.actor.submit(self.name, target, self.options, args, kwargs)
        return result


class AsyncCall:
    def __init__(self, target, options, name):
        self.target = target
        self.name = name
        self.concurrency_group = options["concurrency_group"]
        self.is_streaming = options["mode"] != "static"


class AsyncCore:
    def __init__(self, actor):
        self.actor = actor
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self.lock = threading.Lock()
        self.batch = []
        self.cancelled = []
        self.stop = False

    def add(self, item):
        with self.lock:
            self.batch.append(item)
        os.write(self.write_fd, b"x")

    def fd(self):
        return self.read_fd

    def next_batch(self):
        with contextlib.suppress(BlockingIOError):
            os.read(self.read_fd, 4096)
        with self.lock:
            batch, self.batch = self.batch, []
        return batch

    def cancelled_batch(self):
        cancelled, self.cancelled = self.cancelled, []
        return cancelled

    def reply(self, call, value):
        if isinstance(call.target, StreamCore):
            _finish(call.target, [])
        else:
            cloudpickle.dumps(value)
            _finish(call.target, value)

    def reply_error(self, call, exc):
        self.actor.error(call.target, exc, call.name)

    def yield_value(self, call, value):
        call.target._push(put(value))

    def can_yield(self, call):
        return None

    def concurrency_groups(self):
        return {"": self.actor.options["max_concurrency"], **self.actor.options["concurrency_groups"]}

    def leaving(self):
        return False

    def should_stop(self):
        return self.stop


class _Actor:
    def __init__(self, blob, class_name, args, kwargs, options):
        self.id = os.urandom(12) + b"\x01\0\0\0"
        self.blob, self.class_name, self.args, self.kwargs = blob, class_name, args, kwargs
        self.options = options
        self.calls = queue.SimpleQueue()
        self.dead = None
        self.async_core = AsyncCore(self) if options["is_asyncio"] else None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def fields(self):
        name = self.options["name"]
        return {"is_worker": True, "actor_id": self.id, "task_id": b"\x08" * 24, "actor_name": name}

    def submit(self, name, target, options, args, kwargs):
        cloudpickle.dumps((args, kwargs))
        if self.dead is not None:
            _fail(target, "system", ("actor_died", self.dead))
            return
        self.calls.put((name, target, options, args, kwargs))
        if self.async_core is not None and self.ready.wait(10):
            name, target, options, args, kwargs = self.calls.get()
            args, kwargs = _resolve(args, kwargs)
            self.async_core.add((AsyncCall(target, options, name), name, tuple(args), kwargs))

    def error(self, target, exc, name):
        from skate import _worker

        if isinstance(exc, _worker.ActorExitRequest):
            self.dead = {"actor_id": self.id, "cause": "intended", "message": "exit_actor was called"}
            _fail(target, "system", ("actor_died", self.dead))
            if self.async_core is not None:
                self.async_core.stop = True
                os.write(self.async_core.write_fd, b"x")
            return
        data = _worker.make_task_error(exc, f"{self.class_name}.{name}", self.id.hex())
        _fail(target, "error", data)

    @property
    def ready(self):
        return self.__dict__.setdefault("_ready", threading.Event())

    def run(self):
        from skate import _worker

        _local.fields = self.fields()
        try:
            cls = _worker.load_class(self.blob)
            args, kwargs = _resolve(self.args, self.kwargs)
            instance = _worker.create_actor_instance(cls, tuple(args), kwargs)
        except BaseException as error:
            data = _worker.make_task_error(error, f"{self.class_name}.__init__", self.id.hex())
            self.dead = {"actor_id": self.id, "creation_error": data}
        if self.async_core is not None and self.dead is None:
            self.ready.set()
            _worker.run_asyncio_actor(self.async_core)
            return
        while True:
            call = self.calls.get()
            if call is None:
                return
            name, target, options, args, kwargs = call
            if self.dead is not None:
                _fail(target, "system", ("actor_died", self.dead))
                continue
            try:
                args, kwargs = _resolve(args, kwargs)
                _finish(target, _worker.bind_method(instance, name)(*args, **kwargs))
            except BaseException as error:
                self.error(target, error, name)


class ActorCore:
    def __init__(self, actor):
        self.actor = actor

    def actor_id(self):
        return self.actor.id

    def meta(self):
        return self.actor.options["meta"]

    def method(self, name, options):
        return ActorMethodCore(self.actor, name, options)

    def is_owned(self):
        return True

    def __reduce__(self):
        return _find_actor, (self.actor.id,)


def _find_actor(id):
    return ActorCore(_actors[id])


ACTOR_KEYS = {
    "resources", "placement_resources", "max_restarts", "max_task_retries", "name", "namespace", "detached",
    "get_if_exists", "max_concurrency", "concurrency_groups", "is_asyncio", "max_pending_calls",
    "runtime_env", "scheduling", "allow_out_of_order", "meta", "enable_task_events",
}  # fmt: skip


def create_actor(blob, class_name, args, kwargs, options):
    assert set(options) == ACTOR_KEYS, set(options) ^ ACTOR_KEYS
    key = (options["namespace"] or context()["namespace"], options["name"])
    if options["name"] and key in _names:
        if options["get_if_exists"]:
            return ActorCore(_names[key])
        from skate import _errors

        raise _errors.make_system_error("actor_exists", {"name": options["name"]})
    actor = _Actor(blob, class_name, args, kwargs, options)
    _actors[actor.id] = actor
    if options["name"]:
        _names[key] = actor
    return ActorCore(actor)


def get_named_actor(name, namespace):
    actor = _names.get((namespace, name))
    if actor is None:
        raise ValueError(f"there is no actor named {name!r}")
    return ActorCore(actor)


def list_named_actors(all_namespaces):
    return [key for key in _names if all_namespaces or key[0] == context()["namespace"]]


def kill_actor(core, no_restart):
    core.actor.dead = {"actor_id": core.actor.id, "cause": "killed", "message": "it was killed by skate.kill"}


def current_actor():
    actor_id = context()["actor_id"]
    return ActorCore(_actors[actor_id]) if actor_id else None


def cancel(ref, force, recursive):
    for actor in _actors.values():
        if actor.async_core is not None:
            actor.async_core.cancelled += [
                call for call in _calls_of(actor) if isinstance(call.target, list) and ref in call.target
            ]
            os.write(actor.async_core.write_fd, b"x")


def _calls_of(actor):
    import gc

    return [o for o in gc.get_objects() if isinstance(o, AsyncCall)]


CONFIG_KEYS = {
    "address", "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "memory", "namespace",
    "session_dir_base", "python_executable", "script_dir", "cwd", "sys_path", "log_to_driver", "runtime_env",
    "prepare", "job_metadata", "node_name", "inline_limit_bytes",
    "send_twice", "spill_dir", "preload_modules",
    "logging_config",
}  # fmt: skip


def connect(config):
    import tempfile

    assert set(config) == CONFIG_KEYS, set(config) ^ CONFIG_KEYS
    session_dir = tempfile.mkdtemp(prefix="fake-skate-")
    if config["prepare"] is not None:
        config["prepare"](session_dir)
    _state.update(connected=True, config=config, session_dir=session_dir)
    return {
        "node_id": "03" * 28,
        "session_dir": session_dir,
        "session_name": os.path.basename(session_dir),
        "job_id": b"\x01\0\0\0",
        "worker_id": b"\x02" * 28,
        "node_ip_address": "127.0.0.1",
        "gcs_address": "fake",
        "object_store_bytes": 1 << 30,
        "version": "fake",
    }


def disconnect():
    import shutil

    if _state["connected"]:
        shutil.rmtree(_state["session_dir"], ignore_errors=True)
    _state["connected"] = False
    _names.clear()


def is_connected():
    return _state["connected"]


FORKED_TEXT = "this process was forked from one that is connected: start it with 'spawn'"


def in_forked_child():
    return _state["connected"] and os.getpid() != _PID


_log_batches = queue.SimpleQueue()


def flush_logs(timeout):
    _log_batches.put(None)
    return True


def next_log_batch(timeout):
    try:
        return _log_batches.get(timeout=timeout)
    except queue.Empty:
        return []


def control_call(method, payload):
    return _state["control"][method]


def register_serializer(cls, serializer, deserializer):
    """The table of cloudpickle's, in which it is as well, does for the fake."""


def deregister_serializer(cls):
    """See register_serializer."""


def is_cancelled():
    return False


def look(timeout):
    """There are no links to read."""


def install():
    for name, value in list(globals().items()):
        if not name.startswith("__") and name not in ("module", "install"):
            setattr(module, name, value)
    module.state = _state
    sys.modules["skate._skate"] = module
    import skate

    skate._skate = module
