"""A first-in, first-out queue that tasks and actors share."""

from skate.util.queue import (
    Empty,
    Full,
    Queue,
)

__all__ = [
    "Empty",
    "Full",
    "Queue",
]
