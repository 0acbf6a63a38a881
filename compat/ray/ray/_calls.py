"""Calls whose parameters Ray names after itself."""

from __future__ import annotations

from typing import Any

import skate


def wait(
    ray_waitables: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    return skate.wait(ray_waitables, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local)


def cancel(ray_waitable: Any, *, force: bool = False, recursive: bool = True) -> None:
    skate.cancel(ray_waitable, force=force, recursive=recursive)


wait.__doc__ = skate.wait.__doc__
cancel.__doc__ = skate.cancel.__doc__
