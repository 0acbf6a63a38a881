"""What a driver says about its job."""

from skate.job_config import JobConfig

__all__ = ["JobConfig"]
