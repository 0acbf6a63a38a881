"""The interface of multiprocessing.Pool on actors, so that it spans a cluster."""

from multiprocessing import JoinableQueue, TimeoutError

from skate.util.multiprocessing.pool import Pool

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
