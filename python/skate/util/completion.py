"""Results in the order in which they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import skate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def as_completed(
    refs: Sequence[Any],
    *,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """Yields the values of `refs`, or the refs, as they are ready.

    Looks for `chunk_size` ready ones at a time; `kwargs` go to `skate.wait`. A failed one raises.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")
    if "num_returns" in kwargs:
        raise ValueError("chunk_size says how many refs to wait for: leave num_returns out")
    pending = list(refs)
    while pending:
        ready, pending = skate.wait(pending, num_returns=min(chunk_size, len(pending)), **kwargs)
        yield from ready if yield_obj_refs else skate.get(ready)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """Calls `fn.remote` on each item and yields the values, or the refs, as they are ready.

    At most `backpressure_size` calls are out at a time; None for no limit.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")
    if backpressure_size is not None and backpressure_size < 1:
        raise ValueError(f"backpressure_size must be positive or None, not {backpressure_size}")
    source = iter(items)
    pending: list[Any] = []
    for item in source:
        pending.append(fn.remote(item))
        if backpressure_size is not None and len(pending) >= backpressure_size:
            ready, pending = skate.wait(pending, num_returns=min(chunk_size, len(pending)), **kwargs)
            yield from ready if yield_obj_refs else skate.get(ready)
    yield from as_completed(pending, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)
