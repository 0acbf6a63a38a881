"""The interface of multiprocessing.Pool on actors."""

from skate.util.multiprocessing import (
    JoinableQueue,
    Pool,
    TimeoutError,
)

__all__ = [
    "JoinableQueue",
    "Pool",
    "TimeoutError",
]
