"""A first-in, first-out queue that tasks and actors share."""

from __future__ import annotations

import asyncio
import queue
from typing import TYPE_CHECKING, Any

import skate

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Empty", "Full", "Queue"]


class Empty(queue.Empty):
    """Nothing was there within the time."""


class Full(queue.Full):
    """No room was there within the time."""


class Queue:
    """A handle of a queue that lives in an actor of its own; may be passed to tasks and actors.

    `maxsize` 0 means no limit. `actor_options` are those of the actor.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor: Any = skate.remote(_QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def __reduce__(self) -> Any:
        return _rebuild, (self.maxsize, self.actor)

    def size(self) -> int:
        return int(skate.get(self.actor.qsize.remote()))

    def qsize(self) -> int:
        return self.size()

    def empty(self) -> bool:
        return bool(skate.get(self.actor.empty.remote()))

    def full(self) -> bool:
        return bool(skate.get(self.actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item; Full if there is no room (at once, or after `timeout` seconds)."""
        _check_timeout(block, timeout)
        skate.get(self.actor.put_nowait.remote(item) if not block else self.actor.put.remote(item, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        _check_timeout(block, timeout)
        await (self.actor.put_nowait.remote(item) if not block else self.actor.put.remote(item, timeout))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the oldest item; Empty if there is none (at once, or after `timeout` seconds)."""
        _check_timeout(block, timeout)
        return skate.get(self.actor.get_nowait.remote() if not block else self.actor.get.remote(timeout))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        _check_timeout(block, timeout)
        return await (self.actor.get_nowait.remote() if not block else self.actor.get.remote(timeout))

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all of the items, or none and raises Full."""
        if not hasattr(items, "__iter__"):
            raise TypeError(f"put_nowait_batch takes an iterable, not {type(items).__name__}")
        skate.get(self.actor.put_nowait_batch.remote(list(items)))

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes this many items, or none and raises Empty."""
        if not isinstance(num_items, int):
            raise TypeError(f"num_items takes an int, not {type(num_items).__name__}")
        if num_items < 0:
            raise ValueError(f"num_items cannot be negative, but is {num_items}")
        taken: list[Any] = skate.get(self.actor.get_nowait_batch.remote(num_items))
        return taken

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the queue. Without `force`, what is running has `grace_period_s` to end first."""
        if self.actor is None:
            return
        if not force:
            terminate = self.actor.__ray_terminate__.remote()
            done, _ = skate.wait([terminate], timeout=grace_period_s)
            force = not done
        if force:
            skate.kill(self.actor, no_restart=True)
        self.actor = None


def _rebuild(maxsize: int, actor: Any) -> Queue:
    made = Queue.__new__(Queue)
    made.maxsize = maxsize
    made.actor = actor
    return made


def _check_timeout(block: bool, timeout: float | None) -> None:
    if block and timeout is not None and timeout < 0:
        raise ValueError(f"timeout cannot be negative, but is {timeout}")


class _QueueActor:
    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    def qsize(self) -> int:
        return self._queue.qsize()

    def empty(self) -> bool:
        return self._queue.empty()

    def full(self) -> bool:
        return self._queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:
        try:
            await asyncio.wait_for(self._queue.put(item), timeout)
        except asyncio.TimeoutError:
            raise Full from None

    async def get(self, timeout: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except asyncio.TimeoutError:
            raise Empty from None

    def put_nowait(self, item: Any) -> None:
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            raise Full from None

    def put_nowait_batch(self, items: list[Any]) -> None:
        size = self._queue.qsize()
        if self._maxsize > 0 and size + len(items) > self._maxsize:
            raise Full(f"{len(items)} items do not fit: {size} of {self._maxsize} places are taken")
        for item in items:
            self._queue.put_nowait(item)

    def get_nowait(self) -> Any:
        try:
            return self._queue.get_nowait()
        except asyncio.QueueEmpty:
            raise Empty from None

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        size = self._queue.qsize()
        if num_items > size:
            raise Empty(f"{num_items} items were asked for, and {size} are there")
        return [self._queue.get_nowait() for _ in range(num_items)]
