"""Pool: each of its processes is an actor; work goes to them in turn, in chunks."""

from __future__ import annotations

import collections
import itertools
import logging
import threading
from multiprocessing import TimeoutError
from typing import TYPE_CHECKING, Any

import skate
from skate import _config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)

__all__ = [
    "AsyncResult",
    "IMapIterator",
    "OrderedIMapIterator",
    "Pool",
    "PoolTaskError",
    "TimeoutError",
    "UnorderedIMapIterator",
]


class PoolTaskError(Exception):
    """Carries what a function of the pool raised back as a value."""

    def __init__(self, underlying: Exception) -> None:
        super().__init__(underlying)
        self.underlying = underlying


class PoolActor:
    """One process of a pool."""

    def __init__(self, initializer: Any = None, initargs: Any = None) -> None:
        if initializer is not None:
            initializer(*(initargs or ()))

    def ping(self) -> None:
        return None

    def run_batch(self, func: Callable[..., Any], batch: list[tuple[Any, Any]]) -> list[Any]:
        results = []
        for args, kwargs in batch:
            try:
                results.append(func(*(args or ()), **(kwargs or {})))
            except Exception as error:  # the function's, for the caller of the pool
                results.append(PoolTaskError(error))
        return results


class AsyncResult:
    """What an asynchronous call of the pool comes to."""

    def __init__(
        self,
        chunk_object_refs: list[Any],
        callback: Any = None,
        error_callback: Any = None,
        single_result: bool = False,
    ) -> None:
        self._refs = list(chunk_object_refs)
        self._single = single_result
        self._results: list[Any] | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        if callback is not None or error_callback is not None:
            self._watcher = threading.Thread(
                target=self._watch, args=(callback, error_callback), name="skate-pool-callback", daemon=True
            )
            self._watcher.start()

    def _watch(self, callback: Any, error_callback: Any) -> None:
        self._collect()
        if self._error is None:
            if callback is not None:
                callback(self._value())
        elif error_callback is not None:
            error_callback(self._error)

    def _collect(self) -> None:
        with self._lock:
            if self._results is not None:
                return
            results: list[Any] = []
            for ref in self._refs:
                try:
                    chunk = skate.get(ref)
                except Exception as error:  # of the runtime: the actor died, a value is lost
                    chunk = [PoolTaskError(error)]
                results.extend(chunk)
            failed = next((r for r in results if isinstance(r, PoolTaskError)), None)
            self._error = failed.underlying if failed is not None else None
            self._results = results
            self._refs = []

    def _value(self) -> Any:
        if self._results is None:
            raise RuntimeError("the results are not collected")
        return self._results[0] if self._single else self._results

    def wait(self, timeout: float | None = None) -> None:
        """Returns when the results are there, or after `timeout` seconds."""
        refs = self._refs
        if refs:
            skate.wait(refs, num_returns=len(refs), timeout=timeout, fetch_local=False)

    def get(self, timeout: float | None = None) -> Any:
        """The result; raises what the function raised, or TimeoutError."""
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        self._collect()
        if self._error is not None:
            raise self._error
        return self._value()

    def ready(self) -> bool:
        refs = self._refs
        if not refs:
            return True
        done, _ = skate.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        return len(done) == len(refs)

    def successful(self) -> bool:
        """Whether all calls returned; ValueError before the results are there."""
        if not self.ready():
            raise ValueError(f"{self!r} is not ready")
        self._collect()
        return self._error is None


class IMapIterator:
    """Keeps one chunk per process out and hands out results one by one."""

    def __init__(
        self, pool: Pool, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
    ):
        self._pool = pool
        self._func = func
        self._source = iter(iterable)
        self._chunk_size = max(1, chunksize or 1)
        self._pending: list[Any] = []
        self._ready: collections.deque[Any] = collections.deque()
        for _ in range(pool.process_count):
            self._submit()

    def _submit(self) -> None:
        chunk = list(itertools.islice(self._source, self._chunk_size))
        if chunk:
            self._pending.append(self._pool._run_batch(self._func, [((item,), None) for item in chunk]))

    def _choose(self, timeout: float | None) -> Any | None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; raises what the function raised, StopIteration at the end, or TimeoutError."""
        if not self._ready:
            if not self._pending:
                raise StopIteration
            ref = self._choose(timeout)
            if ref is None:
                raise TimeoutError
            self._pending.remove(ref)
            self._submit()
            self._ready.extend(skate.get(ref))
        result = self._ready.popleft()
        if isinstance(result, PoolTaskError):
            raise result.underlying
        return result


class OrderedIMapIterator(IMapIterator):
    """Results in the order of the iterable."""

    def _choose(self, timeout: float | None) -> Any | None:
        ready, _ = skate.wait([self._pending[0]], timeout=timeout)
        return ready[0] if ready else None


class UnorderedIMapIterator(IMapIterator):
    """Results as they come."""

    def _choose(self, timeout: float | None) -> Any | None:
        ready, _ = skate.wait(list(self._pending), timeout=timeout)
        return ready[0] if ready else None


class Pool:
    """The interface of multiprocessing.Pool.

    `processes` defaults to the CPUs of the cluster; if there is none, one with so many CPUs is started.
    `ray_address` is the cluster to join if nothing is connected yet, `ray_remote_args` are the options of the
    actors, which take no CPU by default.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        if context is not None:
            logger.warning("the processes of a Pool are actors: its context=%r has no effect", context)
        if not skate.is_initialized():
            is_own = ray_address in (None, "local") and not _config.env("ADDRESS")
            skate.init(address=ray_address, num_cpus=processes if is_own else None)
        available = int(skate.cluster_resources().get("CPU", 0))
        if processes is None:
            processes = max(1, available)
        if processes <= 0:
            raise ValueError(f"processes must be positive, not {processes}")
        if processes > available:
            raise ValueError(f"{processes} processes want as many CPUs, and the cluster has {available}")
        self._actor_class = skate.remote(PoolActor).options(**{"num_cpus": 0, **(ray_remote_args or {})})
        self._initializer = initializer
        self._initargs = tuple(initargs or ())
        self._max_tasks = maxtasksperchild or -1
        self._closed = False
        self._refs: list[Any] = []
        self._turn = itertools.cycle(range(processes))
        self._actors: list[tuple[Any, int]] = [(self._new_actor(), 0) for _ in range(processes)]
        skate.get([actor.ping.remote() for actor, _ in self._actors])

    @property
    def process_count(self) -> int:
        return len(self._actors)

    def _new_actor(self) -> Any:
        return self._actor_class.remote(self._initializer, self._initargs)

    def _run_batch(self, func: Callable[..., Any], batch: list[tuple[Any, Any]]) -> Any:
        index = next(self._turn)
        actor, count = self._actors[index]
        if self._max_tasks > 0 and count >= self._max_tasks:
            # The last call of the old one is still out; it ends by itself when its handle goes.
            actor, count = self._new_actor(), 0
        ref = actor.run_batch.remote(func, batch)
        self._actors[index] = (actor, count + 1)
        self._refs.append(ref)
        if len(self._refs) > 4 * len(self._actors) + 64:
            _, self._refs = skate.wait(self._refs, num_returns=len(self._refs), timeout=0, fetch_local=False)
        return ref

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def _chunks(self, func: Any, iterable: Iterable[Any], chunksize: int | None, unpack: bool) -> list[Any]:
        items = list(iterable)
        if chunksize is None:
            chunksize, rest = divmod(len(items), len(self._actors) * 4)
            chunksize = max(1, chunksize + bool(rest))
        calls = [(tuple(item), None) if unpack else ((item,), None) for item in items]
        return [
            self._run_batch(func, calls[start : start + chunksize])
            for start in range(0, len(calls), chunksize)
        ]

    def apply(self, func: Callable[..., Any], args: Any = None, kwargs: Any = None) -> Any:
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[[Any], None] | None = None,
        error_callback: Callable[[BaseException], None] | None = None,
    ) -> AsyncResult:
        self._check_running()
        ref = self._run_batch(func, [(tuple(args or ()), dict(kwargs or {}))])
        return AsyncResult([ref], callback, error_callback, single_result=True)

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> Any:
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], None] | None = None,
        error_callback: Callable[[BaseException], None] | None = None,
    ) -> AsyncResult:
        self._check_running()
        return AsyncResult(self._chunks(func, iterable, chunksize, False), callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> Any:
        self._check_running()
        return AsyncResult(self._chunks(func, iterable, chunksize, True)).get()

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        callback: Callable[[list[Any]], None] | None = None,
        error_callback: Callable[[BaseException], None] | None = None,
    ) -> AsyncResult:
        self._check_running()
        return AsyncResult(self._chunks(func, iterable, None, True), callback, error_callback)

    def imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        self._check_running()
        return OrderedIMapIterator(self, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        self._check_running()
        return UnorderedIMapIterator(self, func, iterable, chunksize)

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        self.terminate()

    def close(self) -> None:
        """No new work; what is out runs to its end."""
        self._closed = True

    def terminate(self) -> None:
        """Ends the processes at once."""
        self._closed = True
        for actor, _ in self._actors:
            skate.kill(actor)

    def join(self) -> None:
        """Waits for the end of the work; after close or terminate."""
        if not self._closed:
            raise ValueError("Pool is still running")
        if self._refs:
            skate.wait(self._refs, num_returns=len(self._refs), fetch_local=False)
        self._refs = []
        self._actors = []


def div_round_up(a: int, b: int) -> int:
    return -(-a // b)
