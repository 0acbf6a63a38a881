"""joblib's work on a pool of actors."""

from __future__ import annotations

from typing import Any

from joblib._parallel_backends import ParallelBackendBase, SequentialBackend
from joblib.parallel import parallel_config

import skate
from skate.util.multiprocessing.pool import AsyncResult, Pool


class SkateBackend(ParallelBackendBase):  # type: ignore[misc]
    """One batch of calls is one call of the pool. `ray_remote_args` are options of the pool's actors."""

    supports_timeout = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **kwargs)
        self._remote_args = ray_remote_args
        self._pool: Pool | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        if not skate.is_initialized():
            skate.init()
        cpus = int(skate.cluster_resources().get("CPU", 1))
        return max(1, cpus + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **memmapping: Any,
    ) -> int:
        """joblib has used `prefer` and `require` to choose this backend; `memmapping` is about files for large
        arrays, which the object store stands for here."""
        n_jobs = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        if ray_remote_args is not None:
            self._remote_args = ray_remote_args
        self._pool = Pool(n_jobs, ray_remote_args=self._remote_args)
        return n_jobs

    def submit(self, func: Any, callback: Any = None) -> AsyncResult:
        if self._pool is None:
            raise RuntimeError("the backend is not configured")
        return self._pool.apply_async(_Batch(func), callback=callback, error_callback=callback)

    apply_async = submit

    def terminate(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def get_nested_backend(self) -> tuple[Any, Any]:
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


class _Batch:
    """A batch of joblib's, run without a backend of its own around it."""

    def __init__(self, func: Any) -> None:
        self._func = func

    def __call__(self) -> Any:
        with parallel_config(backend="sequential"):
            return self._func()
