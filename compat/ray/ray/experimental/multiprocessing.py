"""Pool under its older name."""

from skate.util.multiprocessing import Pool

__all__ = ["Pool"]
