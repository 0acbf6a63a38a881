"""How the Python loggers of driver and workers write."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

_ENCODINGS = ("TEXT", "JSON")
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")
_OWN_ATTRIBUTES = ("asctime", "levelname", "message", "filename", "lineno")


@dataclasses.dataclass
class LoggingConfig:
    """Passed to `init`; applies to the root logger of the driver and of every worker of the job.

    JSON writes one object a line. Both encodings name job, task and actor where there are any.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"encoding must be one of {', '.join(_ENCODINGS)}, not {self.encoding!r}")
        if not isinstance(self.log_level, str) or not isinstance(logging.getLevelName(self.log_level), int):
            raise ValueError(
                f"log_level must be one of {', '.join(_LEVELS)}, not {self.log_level!r} (a level of your own "
                "needs logging.addLevelName before, in the workers too: by a worker_process_setup_hook)"
            )
        known = _standard_attributes()
        for name in self.additional_log_standard_attrs:
            if name not in known:
                raise ValueError(
                    f"{name!r} is no attribute of a log record: they are {', '.join(sorted(known))}"
                )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> LoggingConfig:
        return cls(**d)

    def apply(self) -> None:
        """Sets up this process's root logger; a second call replaces the first one's handler."""
        root = logging.getLogger()
        for handler in list(root.handlers):
            if isinstance(handler.formatter, _Formatter):
                root.removeHandler(handler)
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter(self.encoding, self.additional_log_standard_attrs))
        root.addHandler(handler)
        root.setLevel(self.log_level)


class _Formatter(logging.Formatter):
    def __init__(self, encoding: str, extra: list[str]) -> None:
        super().__init__()
        self._json = encoding == "JSON"
        self._extra = extra

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        fields: dict[str, Any] = {name: getattr(record, name) for name in _OWN_ATTRIBUTES}
        fields.update({name: getattr(record, name, None) for name in self._extra})
        known = _standard_attributes()
        fields.update({name: value for name, value in vars(record).items() if name not in known})
        fields.update(_identity())
        if record.exc_info:
            fields["exc_text"] = self.formatException(record.exc_info)
        if self._json:
            import json

            return json.dumps(fields, default=str)
        shown = " ".join(f"{k}={v}" for k, v in fields.items() if k not in (*_OWN_ATTRIBUTES, "exc_text"))
        line = f"{record.asctime}\t{record.levelname} {record.filename}:{record.lineno} -- {record.message}"
        line = f"{line} {shown}" if shown else line
        return f"{line}\n{fields['exc_text']}" if "exc_text" in fields else line


@functools.cache
def _standard_attributes() -> frozenset[str]:
    """What every record has; the others came in by `extra`."""
    return frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _identity() -> dict[str, str]:
    from skate import _skate

    if not _skate.is_connected():
        return {}
    context = _skate.context()
    identity = {"job_id": context["job_id"].hex(), "worker_id": context["worker_id"].hex()}
    identity["node_id"] = context["node_id"].hex()
    if context["task_id"]:
        identity["task_id"] = context["task_id"].hex()
        identity["task_name"] = context["task_name"]
    if context["actor_id"]:
        identity["actor_id"] = context["actor_id"].hex()
        identity["actor_name"] = context["actor_name"]
    return identity
