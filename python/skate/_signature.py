"""What a callable takes, checked at submit. Built without `inspect`, which is slow to import."""

from __future__ import annotations

from typing import Any

_POSITIONAL_ONLY, _NORMAL, _VAR_POSITIONAL, _KEYWORD_ONLY, _VAR_KEYWORD = range(5)

_CO_VARARGS, _CO_VARKEYWORDS = 0x04, 0x08
_CO_GENERATOR, _CO_COROUTINE, _CO_ITERABLE_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x100, 0x200


class _Default:
    """Stands for a default in a message: its value is not known here."""

    def __repr__(self) -> str:
        return "..."


_SHOWN = _Default()

#: (name, kind, has default), as travels inside an actor handle.
Parameter = tuple[str, int, bool]


def _flags(function: Any) -> int:
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    return getattr(code, "co_flags", 0)


def is_generator(function: Any) -> bool:
    return bool(_flags(function) & (_CO_GENERATOR | _CO_ASYNC_GENERATOR))


def is_async(function: Any) -> bool:
    """True for `async def`, generators included."""
    return bool(_flags(function) & (_CO_COROUTINE | _CO_ITERABLE_COROUTINE | _CO_ASYNC_GENERATOR))


def is_coroutine_function(function: Any) -> bool:
    return bool(_flags(function) & (_CO_COROUTINE | _CO_ITERABLE_COROUTINE))


class CallSignature:
    """The parameters of a function, without `self` or `cls` for a method."""

    __slots__ = (
        "parameters",
        "name",
        "arity_min",
        "arity_max",
        "_names",
        "_required_keywords",
        "_any_keyword",
    )

    def __init__(self, parameters: tuple[Parameter, ...], name: str) -> None:
        self.parameters = parameters
        self.name = name
        positional = [p for p in parameters if p[1] <= _NORMAL]
        required_keywords = [p[0] for p in parameters if p[1] == _KEYWORD_ONLY and not p[2]]
        self._names = [p[0] for p in positional]
        self._required_keywords = required_keywords
        self._any_keyword = any(p[1] == _VAR_KEYWORD for p in parameters)
        self.arity_min = sum(not p[2] for p in positional)
        self.arity_max = -1 if any(p[1] == _VAR_POSITIONAL for p in parameters) else len(positional)
        if required_keywords:
            # No call without keywords is right, so every one has to be looked at.
            self.arity_min, self.arity_max = 1, 0

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises a TypeError where the call itself would."""
        if self._plainly_fits(args, kwargs):
            return
        signature = self._to_inspect()
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{error}; it is called as {self.name}{signature}") from None

    def _plainly_fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._required_keywords or self._any_keyword:
            return False
        count = len(args)
        if self.arity_max >= 0 and count > self.arity_max:
            return False
        open_names = {p[0]: p[2] for p in self.parameters[count:] if p[1] in (_NORMAL, _KEYWORD_ONLY)}
        if any(p[1] == _POSITIONAL_ONLY and not p[2] for p in self.parameters[count:]):
            return False
        if not all(name in open_names for name in kwargs):
            return False
        return all(default or name in kwargs for name, default in open_names.items())

    def _to_inspect(self) -> Any:
        import inspect

        kinds = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        )
        return inspect.Signature(
            [
                inspect.Parameter(name, kinds[kind], default=_SHOWN if default else inspect.Parameter.empty)
                for name, kind, default in self.parameters
            ]
        )

    def template_options(self) -> dict[str, Any]:
        return {"arity_min": self.arity_min, "arity_max": self.arity_max, "check": self.check}


ANY_CALL: dict[str, Any] = {"arity_min": 0, "arity_max": -1, "check": None}


def signature_of(function: Any, name: str, skip_first: bool = False) -> CallSignature | None:
    """None when the parameters cannot be known, as for many builtins."""
    code = getattr(function, "__code__", None)
    simple = (
        type(function).__name__ == "function"
        and not hasattr(function, "__wrapped__")
        and not hasattr(function, "__signature__")
    )
    parameters = _from_code(function, code) if simple else _from_inspect(function)
    if parameters is None:
        return None
    if skip_first and parameters and parameters[0][1] <= _NORMAL:
        parameters = parameters[1:]
    return CallSignature(parameters, name)


def _from_code(function: Any, code: Any) -> tuple[Parameter, ...]:
    names = code.co_varnames
    count, keyword_count = code.co_argcount, code.co_kwonlyargcount
    first_default = count - len(function.__defaults__ or ())
    parameters: list[Parameter] = []
    for i in range(count):
        kind = _POSITIONAL_ONLY if i < code.co_posonlyargcount else _NORMAL
        parameters.append((names[i], kind, i >= first_default))
    end = count + keyword_count
    if code.co_flags & _CO_VARARGS:
        parameters.append((names[end], _VAR_POSITIONAL, False))
        end += 1
    keyword_defaults = function.__kwdefaults__ or {}
    for name in names[count : count + keyword_count]:
        parameters.append((name, _KEYWORD_ONLY, name in keyword_defaults))
    if code.co_flags & _CO_VARKEYWORDS:
        parameters.append((names[end], _VAR_KEYWORD, False))
    return tuple(parameters)


def _from_inspect(function: Any) -> tuple[Parameter, ...] | None:
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    return tuple(
        (p.name, int(p.kind), p.default is not inspect.Parameter.empty) for p in signature.parameters.values()
    )
