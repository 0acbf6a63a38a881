"""Where the calling code runs."""

from __future__ import annotations

import json
from typing import Any

from skate import _runtime, _skate
from skate.runtime_env import RuntimeEnv


class RuntimeContext:
    """Answers for the current thread's task at the time of each call. Ids are hexadecimal strings."""

    def get_job_id(self) -> str:
        return _skate.context()["job_id"].hex()

    def get_node_id(self) -> str:
        return _skate.context()["node_id"].hex()

    def get_worker_id(self) -> str:
        return _skate.context()["worker_id"].hex()

    def get_task_id(self) -> str | None:
        """None in the driver."""
        context = _skate.context()
        task_id = context["task_id"]
        return task_id.hex() if task_id and context["is_worker"] else None

    def get_task_name(self) -> str | None:
        context = _skate.context()
        return context["task_name"] if context["is_worker"] else None

    def get_task_function_name(self) -> str | None:
        """module.function or module.Class.method, whatever `name` the task was given. None in a driver."""
        from skate import _worker

        context = _skate.context()
        return _worker.function_name(context["function"], context["method"]) if context["is_worker"] else None

    def get_actor_id(self) -> str | None:
        """None outside of actors."""
        actor_id = _skate.context()["actor_id"]
        return actor_id.hex() if actor_id else None

    def get_actor_name(self) -> str | None:
        """ "" for an actor without a name, None outside of actors."""
        context = _skate.context()
        return context["actor_name"] if context["actor_id"] else None

    @property
    def namespace(self) -> str:
        return _skate.context()["namespace"]

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the current actor has been restarted."""
        context = _skate.context()
        if not context["actor_id"]:
            raise RuntimeError("was_current_actor_reconstructed can only be asked inside of an actor")
        return context["actor_restarted"]

    @property
    def current_actor(self) -> Any:
        """The handle of the actor that runs this."""
        from skate.actor import ActorHandle

        core = _skate.current_actor()
        if core is None:
            raise RuntimeError("current_actor can only be asked inside of an actor")
        return ActorHandle(core)

    def get_placement_group_id(self) -> str | None:
        group = _skate.context()["placement_group_id"]
        return group.hex() if group else None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        return _skate.context()["should_capture"]

    def get_assigned_resources(self) -> dict[str, float]:
        """What the current task or actor holds."""
        context = _skate.context()
        if not context["is_worker"]:
            raise RuntimeError("get_assigned_resources can only be asked inside of a task or an actor")
        return dict(context["assigned_resources"])

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The devices of the current task or actor, by kind."""
        return dict(_skate.context()["accelerator_ids"])

    def get_node_labels(self) -> dict[str, str]:
        return dict(_skate.context()["node_labels"])

    def get_runtime_env_string(self) -> str:
        return _skate.context()["runtime_env"] or "{}"

    @property
    def runtime_env(self) -> RuntimeEnv:
        return RuntimeEnv(_validate=False, **json.loads(self.get_runtime_env_string()))

    def get_session_name(self) -> str:
        import os

        return os.path.basename(_skate.context()["session_dir"])

    def get_temp_dir(self) -> str:
        import os

        return os.path.dirname(_skate.context()["session_dir"])

    @property
    def gcs_address(self) -> str:
        """Where the cluster's control service listens."""
        return _skate.context()["gcs_address"]

    def is_canceled(self) -> bool:
        """Whether somebody has asked for the current task to stop; for long computations to look at."""
        if not _skate.context()["is_worker"]:
            raise RuntimeError("is_canceled can only be asked inside of a task")
        return _skate.is_cancelled()


def get_runtime_context() -> RuntimeContext:
    """Where the calling code runs; connects if nothing has yet."""
    _runtime.ensure_connected()
    return _CONTEXT


_CONTEXT = RuntimeContext()
