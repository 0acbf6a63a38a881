"""What a driver says about its job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skate.logging_config import LoggingConfig


class JobConfig:
    """Settings of a job, passed to `init`."""

    def __init__(
        self,
        jvm_options: list[str] | None = None,
        code_search_path: list[str] | None = None,
        runtime_env: dict[str, Any] | None = None,
        _client_job: bool = False,
        metadata: dict[str, str] | None = None,
        namespace: str | None = None,
        default_actor_lifetime: str = "non_detached",
        *,
        ray_namespace: str | None = None,
    ) -> None:
        if _client_job:
            raise ValueError("client connections are not supported: leave _client_job out")
        if jvm_options or code_search_path:
            raise ValueError("jvm_options and code_search_path are for other languages, not supported yet")
        self.runtime_env: dict[str, Any] = {}
        self.metadata: dict[str, str] = dict(metadata or {})
        self.namespace = namespace if namespace is not None else ray_namespace
        self.logging_config: LoggingConfig | None = None
        self.set_runtime_env(runtime_env)
        self.set_default_actor_lifetime(default_actor_lifetime)

    def set_metadata(self, key: str, value: str) -> None:
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: dict[str, Any] | None, validate: bool = False) -> None:
        if validate:
            from skate import runtime_env as env_module

            env_module.validate(runtime_env or {})
        self.runtime_env = dict(runtime_env or {})

    def set_namespace(self, namespace: str) -> None:
        self.namespace = namespace

    def set_ray_namespace(self, ray_namespace: str) -> None:
        self.namespace = ray_namespace

    def set_default_actor_lifetime(self, default_actor_lifetime: str) -> None:
        if default_actor_lifetime not in ("detached", "non_detached"):
            raise ValueError(
                f"default_actor_lifetime must be 'detached' or 'non_detached', not {default_actor_lifetime!r}"
            )
        if default_actor_lifetime == "detached":
            raise ValueError(
                "default_actor_lifetime='detached' is not supported yet: pass lifetime='detached' "
                "to the actors"
            )
        self.default_actor_lifetime = default_actor_lifetime

    def set_py_logging_config(self, logging_config: LoggingConfig | None = None) -> None:
        self.logging_config = logging_config

    @classmethod
    def from_json(cls, job_config_json: dict[str, Any]) -> JobConfig:
        return cls(
            runtime_env=job_config_json.get("runtime_env"),
            metadata=job_config_json.get("metadata"),
            namespace=job_config_json.get("namespace", job_config_json.get("ray_namespace")),
        )
