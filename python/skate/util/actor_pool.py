"""A pool of actors that take work as they become free."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import skate
from skate.exceptions import ActorDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

V = TypeVar("V")


class ActorPool:
    """Hands values to a fixed set of actors, one at a time each.

    `fn(actor, value)` makes the call and returns its ref. Not for several threads at once.
    """

    def __init__(self, actors: list[Any]) -> None:
        self._idle = list(actors)
        self._actor_of: dict[Any, Any] = {}  # ref of a call in flight to its actor
        self._index_of: dict[Any, int] = {}  # ref of a call not yet handed out to its number
        self._by_index: dict[int, Any] = {}
        self._next_number = 0
        self._next_result = 0
        self._waiting: collections.deque[tuple[Callable[[Any, Any], Any], Any]] = collections.deque()

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """The results in the order of the values. Results of earlier submits are dropped first."""
        self._drop_results()
        for value in values:
            self.submit(fn, value)
        return self._drain(self.get_next)

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """The results as they come. Results of earlier submits are dropped first."""
        self._drop_results()
        for value in values:
            self.submit(fn, value)
        return self._drain(self.get_next_unordered)

    def _drain(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def _drop_results(self) -> None:
        while self.has_next():
            with contextlib.suppress(TimeoutError):
                self.get_next(timeout=0, ignore_if_timedout=True)

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Calls `fn` with a free actor, or when one becomes free."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        ref = fn(actor, value)
        key = tuple(ref) if isinstance(ref, list) else ref
        number, self._next_number = self._next_number, self._next_number + 1
        self._actor_of[key] = actor
        self._index_of[key] = number
        self._by_index[number] = key

    def has_next(self) -> bool:
        """Whether a result is to come."""
        return bool(self._index_of)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of the submits.

        TimeoutError after `timeout` seconds; with `ignore_if_timedout` that result is then skipped.
        """
        if not self.has_next():
            raise StopIteration("no more results")
        if self._next_result >= self._next_number:
            raise ValueError("get_next does not go with get_next_unordered: use one of them")
        key = self._by_index[self._next_result]
        timed_out = False
        if timeout is not None:
            refs = list(key) if isinstance(key, tuple) else [key]
            ready, _ = skate.wait(refs, num_returns=len(refs), timeout=timeout)
            if len(ready) < len(refs):
                if not ignore_if_timedout:
                    raise TimeoutError("the next result was not there within the time given")
                timed_out = True
        del self._by_index[self._next_result]
        del self._index_of[key]
        self._next_result += 1
        if timed_out:
            self._give_back(self._actor_of.pop(key))
            raise TimeoutError("the next result was not there within the time given and is skipped")
        return self._result(key)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Any result, the first that is there."""
        if not self.has_next():
            raise StopIteration("no more results")
        firsts = {(key[-1] if isinstance(key, tuple) else key): key for key in self._index_of}
        ready, _ = skate.wait(list(firsts), num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                return None
            raise TimeoutError("no result was there within the time given")
        key = firsts[ready[0]]
        number = self._index_of.pop(key)
        del self._by_index[number]
        self._next_result = max(self._next_result, number + 1)
        return self._result(key)

    def _result(self, key: Any) -> Any:
        """What the call came to. Its actor takes the next value, unless it is dead."""
        actor = self._actor_of.pop(key)
        try:
            value = skate.get(list(key) if isinstance(key, tuple) else key)
        except ActorDiedError:
            self._submit_next()
            raise
        except BaseException:
            self._give_back(actor)
            raise
        self._give_back(actor)
        return value

    def _give_back(self, actor: Any) -> None:
        self._idle.append(actor)
        self._submit_next()

    def _submit_next(self) -> None:
        if self._waiting and self._idle:
            self.submit(*self._waiting.popleft())

    def has_free(self) -> bool:
        """Whether an actor would take a value at once."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any | None:
        """Takes a free actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Adds an actor; ValueError if it is in the pool already."""
        if actor in self._idle or actor in self._actor_of.values():
            raise ValueError("the actor is in the pool already")
        self._give_back(actor)
