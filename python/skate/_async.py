"""Awaiting refs. `on_ready` calls back on the native dispatcher thread, never on the loop's: without
arguments, or with the error if the connection ends before the ref is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate import _skate

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Generator


def ref_future(ref: _skate.ObjectRef[Any]) -> concurrent.futures.Future[Any]:
    """A future that completes on the dispatcher thread. Cancelling it does not cancel the task."""
    from concurrent.futures import Future

    future: Future[Any] = Future()

    def complete(ended: BaseException | None = None) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if ended is not None:
                raise ended
            value = _skate.get(ref, None)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    _skate.on_ready(ref, complete)
    return future


def ref_as_future(ref: _skate.ObjectRef[Any]) -> asyncio.Future[Any]:
    """A future of the running loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def complete(ended: BaseException | None) -> None:
        if future.done():
            return
        try:
            if ended is not None:
                raise ended
            value = _skate.get(ref, None)
        except StopIteration as error:
            # A future refuses StopIteration; a coroutine turns it into RuntimeError as well.
            wrapped = RuntimeError("the task raised StopIteration")
            wrapped.__cause__ = error
            future.set_exception(wrapped)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def on_ready(ended: BaseException | None = None) -> None:
        call_in_loop(loop, complete, ended)

    _skate.on_ready(ref, on_ready)
    return future


def ref_await(ref: _skate.ObjectRef[Any]) -> Generator[Any, None, Any]:
    return ref_as_future(ref).__await__()


def call_in_loop(loop: asyncio.AbstractEventLoop, callback: Any, *args: Any) -> None:
    """From another thread; a loop that has been closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
