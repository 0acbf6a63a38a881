"""A joblib backend: `register_ray()`, then `joblib.parallel_backend("ray")`."""

from skate.util.joblib import register_skate

__all__ = ["register_ray"]


def register_ray() -> None:
    """Makes the backend "ray" known to joblib, which has to be installed."""
    register_skate("ray")
