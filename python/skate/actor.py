"""Classes as actors."""

from __future__ import annotations

import functools
import pickle
import types
from typing import Any, Generic, NoReturn, TypeVar, Union

from skate import _options, _runtime, _signature, _skate
from skate._ids import ActorID
from skate.remote_function import dump_code, merge_options

T = TypeVar("T")

#: Calls that every actor answers: (parameters, function of the instance). See skate._worker.bind_method.
BUILTIN_METHODS: dict[str, tuple[_signature.Parameter, ...]] = {
    "__skate_ready__": (),
    "__skate_terminate__": (),
    "__skate_call__": (("function", 1, False), ("args", 2, False), ("kwargs", 4, False)),
}
BUILTIN_METHODS.update(
    {name.replace("__skate_", "__ray_"): spec for name, spec in list(BUILTIN_METHODS.items())}
)

_ASYNC_CONCURRENCY = 1000
_VARIANTS_MAX = 64
_CLASSES_BYTES_MAX = 60_000  # of the exceptions that a call brings along; a record has room for 64 KiB


class ActorClassInheritanceException(TypeError):
    """A class was derived from an actor class."""


def method(*args: Any, **kwargs: Any) -> Any:
    """Options for a method of an actor class: num_returns, concurrency_group, max_task_retries,
    retry_exceptions, enable_task_events, _generator_backpressure_num_objects."""
    if len(args) == 1 and not kwargs and callable(args[0]):
        return args[0]
    if args:
        raise TypeError("method takes keyword arguments only, as in @skate.method(num_returns=2)")
    if "name" in kwargs:
        raise ValueError("name is an option of a call, not of a method: use .options(name=...)")
    _options.validate_method(kwargs)

    def annotate(function: Any) -> Any:
        _options.check_returns_fit(kwargs.get("num_returns"), function)
        target = getattr(function, "__func__", function)
        target.__skate_method_options__ = dict(kwargs)
        return function

    return annotate


class MethodSpec:
    """What a handle knows of a method. Pickles as a tuple of plain values."""

    __slots__ = ("parameters", "is_generator", "options", "groups")

    def __init__(
        self, parameters: Any, is_generator: bool, options: dict[str, Any], groups: tuple[str, ...]
    ) -> None:
        self.parameters: tuple[_signature.Parameter, ...] | None = parameters
        self.is_generator = is_generator
        self.options = options
        self.groups = groups  # the concurrency groups of the actor

    def __reduce__(self) -> Any:
        return MethodSpec, (self.parameters, self.is_generator, self.options, self.groups)

    def call_options(self, name: str) -> dict[str, Any]:
        if self.parameters is None:
            return _signature.ANY_CALL
        return _signature.CallSignature(self.parameters, name).template_options()


class ActorMeta:
    """What a handle knows of its class; travels with the handle."""

    def __init__(self, class_name: str, methods: dict[str, MethodSpec], groups: tuple[str, ...]) -> None:
        self.class_name = class_name
        self.methods = methods
        self.groups = groups

    def to_bytes(self) -> bytes:
        plain = {name: (m.parameters, m.is_generator, m.options) for name, m in self.methods.items()}
        return pickle.dumps((self.class_name, plain, self.groups))

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_bytes(data: bytes) -> ActorMeta:
        class_name, plain, groups = pickle.loads(data)
        methods = {
            name: MethodSpec(parameters, is_generator, options, groups)
            for name, (parameters, is_generator, options) in plain.items()
        }
        return ActorMeta(class_name, methods, groups)

    @staticmethod
    def of_class(cls: type, groups: tuple[str, ...] = (), backpressure: int | None = None) -> ActorMeta:
        methods = {
            name: _method_spec(function, groups, backpressure)
            for name, function in class_methods(cls).items()
        }
        for name, parameters in BUILTIN_METHODS.items():
            methods[name] = MethodSpec(parameters, False, {}, groups)
        return ActorMeta(cls.__name__, methods, groups)


def class_methods(cls: type) -> dict[str, Any]:
    """Name to function, staticmethod or classmethod, inherited ones included."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is object:
            continue
        for name, value in vars(base).items():
            if name in found:
                continue
            plain = getattr(value, "__func__", value)
            if isinstance(plain, types.FunctionType) or type(plain).__name__ in (
                "cython_function_or_method",
                "partialmethod",
            ):
                found[name] = value
            else:
                found[name] = None  # hides what a base class calls so
    return {name: value for name, value in found.items() if value is not None}


def _method_spec(function: Any, groups: tuple[str, ...], backpressure: int | None) -> MethodSpec:
    target = getattr(function, "__func__", function)
    signature = _signature.signature_of(target, "", skip_first=not isinstance(function, staticmethod))
    options = dict(getattr(target, "__skate_method_options__", {}))
    if "retry_exceptions" in options:
        options["retry_exceptions"] = bool(options["retry_exceptions"])  # the worker knows the classes
    if backpressure is not None:
        options.setdefault("_generator_backpressure_num_objects", backpressure)
    return MethodSpec(
        signature.parameters if signature else None, _signature.is_generator(target), options, groups
    )


class ActorClass(Generic[T]):
    """What @skate.remote makes of a class. `remote(...)` creates an actor and returns its handle."""

    def __init__(self, *args: Any) -> None:
        if len(args) == 3 and isinstance(args[0], str):
            bases = ", ".join(repr(b._class_name) for b in args[1] if isinstance(b, ActorClass))
            raise ActorClassInheritanceException(
                f"{args[0]!r} cannot derive from the actor class {bases}: derive from the plain class, and "
                "make the derived one an actor by @skate.remote"
            )
        cls, options = args
        self._set_class(cls, options)

    def _set_class(self, cls: type, options: dict[str, Any]) -> None:
        self.__skate_actor_class__ = cls
        self._class_name = cls.__name__
        self._default_options = options
        self._blob: bytes | None = None
        self._metas: dict[Any, bytes] = {}
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"the actor class {self._class_name} cannot be called directly: "
            f"call {self._class_name}.remote() instead"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"a class cannot derive from the actor class {self._class_name!r}: derive from the plain class, "
            "and make the derived one an actor by @skate.remote"
        )

    def __getattr__(self, name: str) -> Any:
        # Plain attributes of the class, so that its constants and functions stay readable.
        if name.startswith("__") or "__skate_actor_class__" not in self.__dict__:
            raise AttributeError(f"the actor class has no attribute {name!r}")
        return getattr(self.__dict__["__skate_actor_class__"], name)

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        return self._create(args, kwargs, self._default_options)

    def options(self, **actor_options: Any) -> ActorClassOptions[T]:
        """This class with other options; the decorator's stay as they are."""
        _options.validate_actor(actor_options, in_options=True)
        return ActorClassOptions(self, merge_options(self._default_options, actor_options))

    def _remote(self, args: Any = None, kwargs: Any = None, **actor_options: Any) -> ActorHandle[T]:
        target: Any = self.options(**actor_options) if actor_options else self
        handle: ActorHandle[T] = target.remote(*(args or ()), **(kwargs or {}))
        return handle

    def _create(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> ActorHandle[T]:
        cls = self.__skate_actor_class__
        name, namespace = options.get("name"), options.get("namespace")
        if name == "":
            raise ValueError("the name of an actor cannot be empty: pass None for none")
        if namespace == "":
            raise ValueError("a namespace cannot be empty: pass None for the job's own")
        _check_constructor(cls, args, kwargs)
        is_asyncio = any(_signature.is_async(m) for m in class_methods(cls).values())
        groups = _options.concurrency_groups(options.get("concurrency_groups"))
        out_of_order = options.get("allow_out_of_order_execution")
        concurrency = options.get("max_concurrency")
        if is_asyncio and out_of_order is False:
            raise ValueError(
                "an asyncio actor runs its calls out of order: leave allow_out_of_order_execution out"
            )
        if concurrency is None:
            concurrency = _ASYNC_CONCURRENCY if is_asyncio else 1
        _runtime.ensure_connected()
        if self._blob is None:
            self._blob = dump_code(cls, f"the actor class {cls.__module__}.{cls.__qualname__}", cls)
        held, to_place = _options.actor_resources(options)
        _options.check_bundles(options, self._class_name, held, to_place)
        meta = self._meta(tuple(groups), options.get("_actor_generator_backpressure_num_objects"))
        pending = options.get("max_pending_calls")
        core = _skate.create_actor(
            self._blob,
            self._class_name,
            args,
            kwargs,
            {
                "resources": held,
                "placement_resources": to_place,
                "max_restarts": options.get("max_restarts") or 0,
                "max_task_retries": options.get("max_task_retries") or 0,
                "name": name or "",
                "namespace": namespace or "",
                "detached": options.get("lifetime") == "detached",
                "get_if_exists": bool(options.get("get_if_exists")),
                "max_concurrency": max(1, concurrency),
                "concurrency_groups": groups,
                "is_asyncio": is_asyncio,
                "max_pending_calls": pending if pending and pending > 0 else -1,
                "runtime_env": _runtime.runtime_env_json(options.get("runtime_env")),
                "scheduling": _options.scheduling_json(options),
                "allow_out_of_order": is_asyncio or bool(out_of_order),
                "meta": meta,
                "enable_task_events": options.get("enable_task_events", True),
            },
        )
        return ActorHandle(core)

    def _meta(self, groups: tuple[str, ...], backpressure: int | None) -> bytes:
        meta = self._metas.get((groups, backpressure))
        if meta is None:
            meta = ActorMeta.of_class(self.__skate_actor_class__, groups, backpressure).to_bytes()
            self._metas[groups, backpressure] = meta
        return meta

    def __reduce__(self) -> Any:
        state = {"cls": self.__skate_actor_class__, "options": self._default_options}
        return ActorClass.__new__, (ActorClass,), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_class(state["cls"], state["options"])

    def __repr__(self) -> str:
        return f"ActorClass({self._class_name})"


class ActorClassOptions(Generic[T]):
    """An actor class with options of its own; made by `ActorClass.options`."""

    def __init__(self, actor_class: ActorClass[T], options: dict[str, Any]) -> None:
        self._actor_class = actor_class
        self._options = options

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        return self._actor_class._create(args, kwargs, self._options)


def _check_constructor(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    constructor: Any = cls.__dict__.get("__init__") or getattr(cls, "__init__")  # noqa: B009
    if constructor is object.__init__ and getattr(cls, "__new__") is object.__new__:  # noqa: B009
        _signature.CallSignature((), cls.__name__).check(args, kwargs)
        return
    if isinstance(constructor, types.FunctionType):
        signature = _signature.signature_of(constructor, cls.__name__, skip_first=True)
        if signature is not None:
            signature.check(args, kwargs)


class ActorHandle(Generic[T]):
    """A counted reference to an actor. Its attributes are the actor's methods; it may be passed on."""

    def __init__(self, core: _skate.ActorCore) -> None:
        fields = self.__dict__
        fields["_skate_core"] = core
        fields["_skate_meta"] = ActorMeta.from_bytes(core.meta())

    _skate_core: _skate.ActorCore
    _skate_meta: ActorMeta

    def __getattr__(self, name: str) -> ActorMethod:
        meta = self.__dict__.get("_skate_meta")
        spec = meta.methods.get(name) if meta is not None else None
        if spec is None:
            what = f"the actor class {meta.class_name}" if meta is not None else "the actor"
            raise AttributeError(f"{what} has no method {name!r}")
        made = ActorMethod(self._skate_core, self._skate_meta.class_name, name, spec)
        self.__dict__[name] = made
        return made

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._skate_core.actor_id())

    def __dir__(self) -> list[str]:
        return [*self._skate_meta.methods, *object.__dir__(self)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._skate_core.actor_id() == other._skate_core.actor_id()

    def __hash__(self) -> int:
        return hash(self._skate_core.actor_id())

    def __repr__(self) -> str:
        return f"Actor({self._skate_meta.class_name}, {self._skate_core.actor_id().hex()})"

    def __reduce__(self) -> Any:
        return ActorHandle, (self._skate_core,)


#: For annotations: a handle, in which type checkers find the methods of the class too.
ActorProxy = Union[ActorHandle[T], type[T]]  # noqa: UP007  (an alias that takes a parameter)


class ActorMethod:
    """A method of an actor. `remote(...)` calls it and returns the ref; from then on `remote` is native."""

    def __init__(self, core: _skate.ActorCore, class_name: str, name: str, spec: MethodSpec) -> None:
        self._core = core
        self._class_name = class_name
        self._method_name = name
        self._spec = spec
        self._variants: dict[Any, ActorMethodOptions] = {}
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"the actor method {self._class_name}.{self._method_name} cannot be called directly: call "
            f".{self._method_name}.remote() instead"
        )

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        submit = _bind(self._core, self._class_name, self._method_name, self._spec, {})
        self.remote = submit  # type: ignore[method-assign]
        return submit(*args, **kwargs)

    def options(self, **options: Any) -> ActorMethodOptions:
        """This method with other options."""
        key = _options.cache_key(options)
        known = self._variants.get(key) if key is not None else None
        if known is not None:
            return known
        _options.validate_method(options)
        made = ActorMethodOptions(self._core, self._class_name, self._method_name, self._spec, options)
        if key is not None and len(self._variants) < _VARIANTS_MAX:
            self._variants[key] = made
        return made

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        target: Any = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def __reduce__(self) -> Any:
        return ActorMethod, (
            self._core,
            self._class_name,
            self._method_name,
            self._spec,
        )

    def __repr__(self) -> str:
        return f"ActorMethod({self._class_name}.{self._method_name})"


def _bind(
    core: _skate.ActorCore, class_name: str, name: str, spec: MethodSpec, changes: dict[str, Any]
) -> Any:
    """The native submit of a method with these options."""
    options = {**spec.options, **{k: v for k, v in changes.items() if v is not None}}
    num_returns, mode = _options.returns(options.get("num_returns"), spec.is_generator)
    retry = changes.get("retry_exceptions")
    group = options.get("concurrency_group") or ""
    if group and group not in spec.groups:
        names = ", ".join(map(repr, spec.groups)) or "none"
        raise ValueError(
            f"the actor class {class_name} has no concurrency group {group!r}; it has {names}. Name it in "
            "@skate.remote(concurrency_groups=...)"
        )
    backpressure = options.get("_generator_backpressure_num_objects")
    events = options.get("enable_task_events")
    made = core.method(
        name,
        {
            "num_returns": num_returns,
            "mode": mode,
            "concurrency_group": group,
            "max_task_retries": options.get("max_task_retries"),
            "retry_exceptions": bool(options.get("retry_exceptions", False)),
            "retry_classes": _retry_classes(class_name, name, retry) if retry else b"",
            "backpressure": -1 if backpressure is None else backpressure,
            "name": options.get("name") or f"{class_name}.{name}",
            "enable_task_events": True if events is None else events,
            **spec.call_options(f"{class_name}.{name}"),
        },
    )
    return made.submit


def _retry_classes(class_name: str, name: str, classes: bool | list[Any] | tuple[Any, ...]) -> bytes:
    """What a call is to be retried on, pickled for `_worker.should_retry`."""
    given = (Exception,) if classes is True else tuple(classes)  # type: ignore[arg-type]
    blob = dump_code(given, f"retry_exceptions of {class_name}.{name}", given)
    if len(blob) > _CLASSES_BYTES_MAX:
        raise ValueError(
            f"the exception classes in retry_exceptions of {class_name}.{name} take {len(blob)} bytes when "
            f"pickled, above {_CLASSES_BYTES_MAX}: put them into a module that the workers can import, or "
            "on the method by @skate.method"
        )
    return blob


class ActorMethodOptions:
    """A method with options of its own; made by `ActorMethod.options`."""

    def __init__(self, *binding: Any) -> None:
        # Not the method itself, which remembers this: a cycle would keep the actor alive.
        self._binding = binding

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        submit = _bind(*self._binding)
        self.remote = submit  # type: ignore[method-assign]
        return submit(*args, **kwargs)


def exit_actor() -> NoReturn:
    """Ends the actor whose method calls this, as intended: it is not restarted."""
    from skate._worker import ActorExitRequest

    if not _skate.is_connected() or _skate.context()["actor_id"] is None:
        raise TypeError("exit_actor can only be called inside of an actor")
    raise ActorExitRequest(0)
