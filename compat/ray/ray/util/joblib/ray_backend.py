"""The class of the backend, which needs joblib."""

from skate.util._joblib_backend import SkateBackend as RayBackend

__all__ = ["RayBackend"]
