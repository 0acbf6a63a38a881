"""The interface of multiprocessing.Pool on actors."""

from skate.util.multiprocessing.pool import (
    AsyncResult,
    IMapIterator,
    OrderedIMapIterator,
    Pool,
    PoolTaskError,
    TimeoutError,
    UnorderedIMapIterator,
    div_round_up,
)

__all__ = [
    "AsyncResult",
    "IMapIterator",
    "OrderedIMapIterator",
    "Pool",
    "PoolTaskError",
    "TimeoutError",
    "UnorderedIMapIterator",
    "div_round_up",
]
