"""What the native pickler asks Python for: cloudpickle's rules, and the words when they do not help."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _rules

from skate import _skate

# Shared with cloudpickle, not copied: what a program registers there counts here.
dispatch: dict[type, Any] = _rules.Pickler._dispatch_table
by_value_modules: set[str] = _rules._PICKLE_BY_VALUE_MODULES


class_reduce = _rules._class_reduce


class FunctionReducer:
    """Reduces the functions of one pickle; those of one module share their globals after loading."""

    def __init__(self) -> None:
        self.globals_ref: dict[int, dict[str, Any]] = {}

    reduce = _rules.Pickler._function_reduce
    _dynamic_function_reduce = _rules.Pickler._dynamic_function_reduce
    _function_getnewargs = _rules.Pickler._function_getnewargs


class RefPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """For a pickle inside of a value that is being made: refs become indices into the value's refs, which
    hold them. Remembers which, for RefUnpickler."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.refs: dict[int, Any] = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not _skate.ObjectRef:
            return super().reducer_override(obj)
        reduced: Any = obj.__reduce__()
        maker, arguments = reduced
        if maker is _skate._restore_ref:  # the nil ref travels as itself
            self.refs[arguments[0]] = obj
        return reduced


class RefUnpickler(pickle.Unpickler):
    """Tries such a pickle before the value is there."""

    def __init__(self, file: Any, refs: dict[int, Any]) -> None:
        super().__init__(file)
        self._refs = refs

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self._refs.__getitem__ if found is _skate._restore_ref else found


_ATTEMPTS_MAX = 200
_DEPTH_MAX = 12


def explain(value: Any, error: BaseException) -> TypeError:
    """The TypeError for a value that cannot be pickled: where in it the culprit is, and what to do."""
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        explained = TypeError(
            f"cannot serialize {_kind(value)}: it is nested too deeply to be pickled. Flatten it, or "
            "raise sys.setrecursionlimit()."
        )
    else:
        path, culprit = _find_culprit(value)
        where = f" at value{path}, {_kind(culprit)}" if path else ""
        explained = TypeError(
            f"cannot serialize {_kind(value)}: {error}{where}. Leave it out and make it where it is used, "
            "give its class __reduce__ or __getstate__, or name a serializer with "
            "skate.util.register_serializer(). skate.util.inspect_serializability() shows all that is in it."
        )
    explained.__cause__ = error
    return explained


def blame_argument(error: BaseException, function: str) -> None:
    """Names the call whose argument cannot be pickled."""
    error.args = (f"an argument of {function}: {error}",)


def _kind(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a {name}"


def _find_culprit(value: Any) -> tuple[str, Any]:
    """Goes down to the innermost part that cannot be pickled by itself; gives up after some attempts."""
    path, culprit, attempts = "", value, 0
    for _ in range(_DEPTH_MAX):
        for step, part in _parts(culprit):
            attempts += 1
            if attempts > _ATTEMPTS_MAX:
                return path, culprit
            if part is not culprit and not _picklable(part):
                path, culprit = path + step, part
                break
        else:
            break
    return path, culprit


def _picklable(value: Any) -> bool:
    try:
        cloudpickle.dumps(value, protocol=5, buffer_callback=lambda _: None)
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{key!r:.60}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "{...}", item
    closure = getattr(value, "__closure__", None)
    if closure is not None:
        for name, cell in zip(value.__code__.co_freevars, closure, strict=True):
            try:
                yield f".<{name}>", cell.cell_contents
            except ValueError:  # a variable that is not assigned yet
                continue
    if callable(value) and hasattr(value, "__globals__") and hasattr(value, "__code__"):
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f".<{name}>", value.__globals__[name]
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        for name, item in list(attributes.items()):
            yield f".{name}", item
