"""A pool of actors that take work as they become free."""

from skate.util.actor_pool import (
    ActorPool,
)

__all__ = [
    "ActorPool",
]
