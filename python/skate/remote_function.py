"""Functions as tasks."""

from __future__ import annotations

from typing import Any, NoReturn

from skate import _options, _runtime, _signature, _skate

#: A function above this size is almost always one that has captured data.
_FUNCTION_BYTES_WARN = 10 * 1024 * 1024
_FUNCTION_BYTES_MAX = 100 * 1024 * 1024
#: Options that a program passes again and again are checked and sent out once.
_VARIANTS_MAX = 64


class RemoteFunction:
    """What @skate.remote makes of a function. `remote(...)` submits a task and returns its ref.

    The first call sends the function out and then puts the native submit in the place of `remote`.
    """

    _function: Any
    _blobs: dict[Any, bytes]
    _variants: dict[Any, RemoteFunctionOptions]

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        if _signature.is_coroutine_function(function) or (
            _signature.is_async(function) and _signature.is_generator(function)
        ):
            raise ValueError(
                "a task cannot be an 'async def' function, for it has no event loop: wrap it in a function "
                "that calls asyncio.run, or make it a method of an actor"
            )
        _options.check_returns_fit(options.get("num_returns"), function)
        self._set_function(function, options)

    def _set_function(self, function: Any, options: dict[str, Any]) -> None:
        self._function = function
        self._default_options = options
        self._function_name = f"{function.__module__}.{function.__qualname__}"
        self._is_generator = _signature.is_generator(function)
        self._blobs = {}
        self._variants = {}
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"the remote function {self._function_name} cannot be called directly: call "
            f"{self.__name__}.remote() instead"
        )

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        _runtime.ensure_connected()
        template = self._template(self._default_options)
        _runtime.bind(self, template.submit)
        return template.submit(*args, **kwargs)

    def unbind(self) -> None:
        """After a disconnect: the next call connects and sends the function again."""
        self.__dict__.pop("remote", None)

    def options(self, **task_options: Any) -> RemoteFunctionOptions:
        """This function with other options; the decorator's stay as they are."""
        key = _options.cache_key(task_options)
        known = self._variants.get(key) if key is not None else None
        if known is not None:
            return known
        _options.validate_task(task_options, in_options=True)
        _options.check_returns_fit(task_options.get("num_returns"), self._function)
        made = RemoteFunctionOptions(self, merge_options(self._default_options, task_options))
        if key is not None and len(self._variants) < _VARIANTS_MAX:
            self._variants[key] = made
        return made

    def _remote(
        self,
        args: Any = None,
        kwargs: Any = None,
        **task_options: Any,
    ) -> Any:
        target = self.options(**task_options) if task_options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def _template(self, options: dict[str, Any]) -> _skate.TaskTemplate:
        num_returns, mode = _options.returns(options.get("num_returns"), self._is_generator)
        retry_exceptions = options.get("retry_exceptions") or False
        demand = _options.resources(options, default_cpus=1)
        _options.check_bundles(options, self._function_name, demand)
        max_calls = options.get("max_calls")
        if max_calls is None:
            # A process keeps its GPU memory until it ends.
            max_calls = 1 if demand.get("GPU") else 0
        max_retries = options.get("max_retries", 3)
        backpressure = options.get("_generator_backpressure_num_objects")
        signature = _signature.signature_of(self._function, self._function_name.rpartition(".")[2])
        return _skate.TaskTemplate(
            self._blob(retry_exceptions),
            self._function_name,
            {
                "num_returns": num_returns,
                "mode": mode,
                "resources": demand,
                "max_retries": 3 if max_retries is None else max_retries,
                "retry_exceptions": bool(retry_exceptions),
                "max_calls": max_calls,
                "backpressure": -1 if backpressure is None else backpressure,
                "runtime_env": _runtime.runtime_env_json(options.get("runtime_env")),
                "scheduling": _options.scheduling_json(options),
                "name": options.get("name") or self._function.__qualname__.rsplit(".", 1)[-1],
                "enable_task_events": options.get("enable_task_events", True),
                **(signature.template_options() if signature else _signature.ANY_CALL),
            },
        )

    def _blob(self, retry_exceptions: Any) -> bytes:
        types = tuple(retry_exceptions) if isinstance(retry_exceptions, (list, tuple)) else None
        blob = self._blobs.get(types)
        if blob is None:
            blob = self._blobs[types] = dump_code(
                (self._function, types), f"the function {self._function_name}", self._function
            )
        return blob

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self._function, "options": self._default_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_function(state["function"], state["options"])

    def __reduce__(self) -> Any:
        # Two steps, so that a function that calls itself by `remote` finds itself in the memo.
        return RemoteFunction.__new__, (RemoteFunction,), self.__getstate__()

    def __repr__(self) -> str:
        return f"RemoteFunction({self._function_name})"


class RemoteFunctionOptions:
    """A remote function with options of its own; made by `RemoteFunction.options`."""

    def __init__(self, function: RemoteFunction, options: dict[str, Any]) -> None:
        self._remote_function = function
        self._options = options

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        _runtime.ensure_connected()
        template = self._remote_function._template(self._options)
        _runtime.bind(self, template.submit)
        return template.submit(*args, **kwargs)

    def unbind(self) -> None:
        self.__dict__.pop("remote", None)

    def __reduce__(self) -> Any:
        return RemoteFunctionOptions, (self._remote_function, self._options)


def merge_options(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Later ones win; one way to name a place to run replaces the other."""
    merged = {**base, **changes}
    if "scheduling_strategy" in changes and "placement_group" not in changes:
        for name in tuple(merged):
            if name.startswith("placement_group"):
                del merged[name]
    elif "placement_group" in changes and "scheduling_strategy" not in changes:
        merged.pop("scheduling_strategy", None)
    return merged


def dump_code(value: Any, what: str, culprit: Any) -> bytes:
    """Pickles code by cloudpickle's rules; the errors say which part is at fault."""
    import cloudpickle

    try:
        blob: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise TypeError(_explain(error, what, culprit)) from error
    if len(blob) > _FUNCTION_BYTES_MAX:
        raise ValueError(
            f"{what} is {len(blob) >> 20} MiB when pickled, above the limit of {_FUNCTION_BYTES_MAX >> 20}: "
            "it captures a large value. Put the value with skate.put and pass the ref as an argument."
        )
    if len(blob) > _FUNCTION_BYTES_WARN:
        import warnings

        warnings.warn(
            f"{what} is {len(blob) >> 20} MiB when pickled: it captures a large value. Put the value with "
            "skate.put and pass the ref as an argument.",
            stacklevel=5,
        )
    return blob


def _explain(error: Exception, what: str, culprit: Any) -> str:
    import io

    from skate.util.check_serialize import inspect_serializability

    report = io.StringIO()
    inspect_serializability(culprit, print_file=report)
    return f"{what} cannot be pickled: {error}\n{report.getvalue()}"
