"""Functions as tasks."""

from skate.remote_function import RemoteFunction

__all__ = ["RemoteFunction"]
