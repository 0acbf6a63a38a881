"""The consumer's side of generators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from skate import _async, _skate

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class ObjectRefGenerator(Generic[T]):
    """Iterates over the refs of a streaming generator's items, sync or async, as they are produced.

    Belongs to the process that made the call. Dropping it stops the producer.
    """

    def __init__(self, core: _skate.StreamCore) -> None:
        self._core = core

    def __iter__(self) -> ObjectRefGenerator[T]:
        return self

    def __next__(self) -> _skate.ObjectRef[T]:
        return self._core.next(None)

    def _next_sync(self, timeout_s: float | None = None) -> _skate.ObjectRef[T]:
        """As next(); a nil ref when nothing came within the time."""
        from skate.exceptions import GetTimeoutError

        try:
            return self._core.next(timeout_s)
        except GetTimeoutError:
            return _skate.ObjectRef.nil()

    def __aiter__(self) -> ObjectRefGenerator[T]:
        return self

    async def __anext__(self) -> _skate.ObjectRef[T]:
        if not self._core.next_ready() and not self._core.is_finished():
            await self._wait_ready()
        try:
            return self._core.next(None)
        except StopIteration:
            raise StopAsyncIteration from None

    async def _wait_ready(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def complete(ended: BaseException | None) -> None:
            if ready.done():
                return
            if ended is None:
                ready.set_result(None)
            else:
                ready.set_exception(ended)

        def on_next_ready(ended: BaseException | None = None) -> None:
            _async.call_in_loop(loop, complete, ended)

        self._core.on_next_ready(on_next_ready)
        await ready

    def completed(self) -> _skate.ObjectRef[None]:
        """Ready when the task has ended; raises its error."""
        return self._core.completed_ref()

    def next_ready(self) -> bool:
        return self._core.next_ready()

    def is_finished(self) -> bool:
        return self._core.is_finished()

    def task_id(self) -> Any:
        return self.completed().task_id()

    def _refuse(self, name: str) -> NoReturn:
        raise NotImplementedError(
            f"{name}() cannot reach a remote generator. Drop the generator or call skate.cancel on it "
            "to stop it; pass arguments to the task to steer it."
        )

    def send(self, value: Any) -> NoReturn:
        self._refuse("send")

    def throw(self, value: Any) -> NoReturn:
        self._refuse("throw")

    def close(self) -> NoReturn:
        self._refuse("close")

    async def asend(self, value: Any) -> NoReturn:
        self._refuse("asend")

    async def athrow(self, value: Any) -> NoReturn:
        self._refuse("athrow")

    async def aclose(self) -> NoReturn:
        self._refuse("aclose")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ObjectRefGenerator stays with the process that made the call and cannot be passed, "
            "returned or put. Pass the refs that it yields instead."
        )


class DynamicObjectRefGenerator(Generic[T]):
    """The refs that a task with num_returns="dynamic" produced; may be iterated more than once."""

    def __init__(self, refs: list[_skate.ObjectRef[T]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[_skate.ObjectRef[T]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)
