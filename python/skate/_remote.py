"""The `remote` decorator."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar, overload

from skate import _options
from skate.actor import ActorClass
from skate.remote_function import RemoteFunction

T = TypeVar("T")


@overload
def remote(target: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[..., Any], /) -> RemoteFunction: ...
@overload
def remote(**options: Any) -> Callable[[Any], Any]: ...
def remote(*args: Any, **options: Any) -> Any:
    """Makes a function a remote function, or a class an actor class.

    Alone, `@skate.remote`, or with options, `@skate.remote(num_cpus=2)`.
    """
    if len(args) == 1 and not options:
        if not _is_target(args[0]):
            _refuse(args[0])
        return _make(args[0], {})
    if args or not options:
        raise TypeError(
            "remote is used alone, as in @skate.remote, or with options by keyword, as in "
            f"@skate.remote(num_cpus=2); the options are {', '.join(sorted(_options.REMOTE_OPTIONS))}"
        )

    def decorate(target: Any) -> Any:
        return _make(target, options)

    unknown = set(options) - set(_options.REMOTE_OPTIONS)
    if unknown:
        raise ValueError(
            f"remote has no options {', '.join(sorted(unknown))}: it has "
            f"{', '.join(sorted(_options.REMOTE_OPTIONS))}"
        )
    return decorate


def _is_target(target: Any) -> bool:
    return (
        isinstance(target, (type, types.FunctionType)) or type(target).__name__ == "cython_function_or_method"
    )


def _refuse(target: Any) -> None:
    if isinstance(target, (ActorClass, RemoteFunction)):
        raise TypeError(f"{target!r} is remote already: use its .options(...) to change it")
    raise TypeError(
        f"remote takes a function or a class, not {type(target).__name__} ({target!r}): wrap it in a function"
    )


def _make(target: Any, options: dict[str, Any]) -> Any:
    if not _is_target(target):
        _refuse(target)
    if isinstance(target, type):
        _options.validate_actor(options, in_options=False)
        return ActorClass(target, options)
    _options.validate_task(options, in_options=False)
    return RemoteFunction(target, options)
