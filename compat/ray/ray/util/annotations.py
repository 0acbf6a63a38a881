"""Stability marks, as libraries put them on their own classes and functions. They change nothing else."""

from __future__ import annotations

from typing import Any


class RayDeprecationWarning(DeprecationWarning):
    """The category of warnings about deprecated names."""


def _mark(args: tuple[Any, ...]) -> Any:
    if len(args) == 1 and callable(args[0]):
        return args[0]

    def decorate(target: Any) -> Any:
        return target

    return decorate


def PublicAPI(*args: Any, **kwargs: Any) -> Any:
    return _mark(args)


def DeveloperAPI(*args: Any, **kwargs: Any) -> Any:
    return _mark(args)


def Deprecated(*args: Any, **kwargs: Any) -> Any:
    return _mark(args)
