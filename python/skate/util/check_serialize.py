"""Finds what cannot be pickled inside of an object."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FailureTuple", "inspect_serializability"]


class FailureTuple:
    """One part that cannot be pickled, and how it is reached."""

    def __init__(self, obj: Any, path: tuple[str, ...], parent: Any) -> None:
        self.obj = obj
        self.path = path
        self.parent = parent

    @property
    def name(self) -> str:
        return self.path[-1] if self.path else ""

    def __repr__(self) -> str:
        return f"FailureTuple({'.'.join(self.path) or '<the object itself>'}, obj={_safe_repr(self.obj)})"


def inspect_serializability(
    base_obj: Any,
    name: str | None = None,
    depth: int = 3,
    print_file: Any | None = None,
) -> tuple[bool, set[FailureTuple]]:
    """Whether the object can be pickled, and if not, which of its parts are at fault.

    Looks through closures, globals and attributes to `depth` levels and prints what it finds.
    """
    search = _Search(print_file if print_file is not None else sys.stdout)
    title = name or _safe_repr(base_obj)
    search.print(f"Can {title} be pickled?")
    error = _pickle_error(base_obj)
    if error is None:
        search.print("Yes.")
        return True, set()
    search.print(f"No: {error}")
    search.look(base_obj, (name,) if name else (), None, depth, 1)
    search.print("At fault:")
    for failure in search.failures:
        search.print(f"  {failure}")
    search.print("Leave these out, or create them inside of the function or the class that uses them.")
    return False, set(search.failures)


def _pickle_error(obj: Any) -> str | None:
    import cloudpickle

    try:
        cloudpickle.dumps(obj)
    except Exception as error:  # whatever a user's class does
        return f"{type(error).__name__}: {error}"
    return None


def _safe_repr(obj: Any) -> str:
    try:
        text = repr(obj)
    except Exception as error:  # a user's __repr__
        return f"<{type(obj).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= 200 else text[:197] + "..."


class _Search:
    def __init__(self, file: Any) -> None:
        self._file = file
        self._seen: set[int] = set()
        self.failures: list[FailureTuple] = []

    def print(self, text: str, level: int = 0) -> None:
        print("    " * level + text, file=self._file)

    def look(self, obj: Any, path: tuple[str, ...], parent: Any, depth: int, level: int) -> None:
        """Descends into the parts of `obj`, which cannot be pickled; it is at fault if none of them is."""
        self._seen.add(id(obj))
        found = False
        if depth > 0:
            for kind, name, part in _parts(obj):
                if id(part) in self._seen:
                    continue
                error = _pickle_error(part)
                if error is None:
                    continue
                found = True
                self.print(f"{kind} {name!r} = {_safe_repr(part)}: {error}", level)
                self.look(part, (*path, name), obj, depth - 1, level + 1)
        if not found:
            self.failures.append(FailureTuple(obj, path, parent))


def _parts(obj: Any) -> Iterator[tuple[str, str, Any]]:
    if inspect.isfunction(obj):
        closure = inspect.getclosurevars(obj)
        for name, part in closure.globals.items():
            yield "global", name, part
        for name, part in closure.nonlocals.items():
            yield "captured", name, part
        return
    if isinstance(obj, dict):
        for key, part in obj.items():
            yield "item", str(key), part
        return
    if isinstance(obj, (list, tuple, set, frozenset)):
        for index, part in enumerate(obj):
            yield "item", str(index), part
        return
    if isinstance(obj, type):
        members = dict(vars(obj))
    elif inspect.ismethod(obj):
        members = {"__self__": obj.__self__, "__func__": obj.__func__}
    else:
        members = dict(getattr(obj, "__dict__", {}))
        for cls in type(obj).__mro__:
            for name in getattr(cls, "__slots__", ()):
                if isinstance(name, str) and hasattr(obj, name):
                    members[name] = getattr(obj, name)
    for name, part in members.items():
        if name in ("__dict__", "__weakref__"):
            continue
        yield "attribute", name, getattr(part, "__func__", part) if isinstance(obj, type) else part
