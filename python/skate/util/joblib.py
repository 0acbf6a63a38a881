"""A joblib backend: `register_skate()`, then `joblib.parallel_backend("skate")`."""

from __future__ import annotations

__all__ = ["register_skate"]


def register_skate(name: str = "skate") -> None:
    """Makes the backend known to joblib, which has to be installed."""
    try:
        import joblib
    except ImportError as error:
        raise ImportError("register_skate needs joblib: pip install joblib") from error
    from skate.util._joblib_backend import SkateBackend

    joblib.register_parallel_backend(name, SkateBackend)
