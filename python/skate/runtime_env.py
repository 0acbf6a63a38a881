"""Runtime environments: what a task's or actor's worker is given before it starts.

Supported are env_vars, working_dir and py_modules from local directories, excludes,
worker_process_setup_hook and config. Directories are copied into the session directory under the hash of
their contents, so that a later change of the source changes no running job.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNSUPPORTED = {
    "pip": "install the packages where the workers run",
    "uv": "install the packages where the workers run",
    "conda": "start the program inside of the conda environment",
    "container": "start the program inside of the container",
    "image_uri": "start the program inside of the container",
    "py_executable": "start the program with that interpreter",
    "nsight": "profile one worker by hand",
    "_nsight": "profile one worker by hand",
    "rocprof_sys": "profile one worker by hand",
    "_rocprof_sys": "profile one worker by hand",
    "java_jars": "only Python is supported",
}
_KNOWN = ("config", "env_vars", "excludes", "py_modules", "worker_process_setup_hook", "working_dir")
_DIRECTORY_BYTES_MAX = 512 * 1024 * 1024
_HOOK_BYTES_MAX = 1024 * 1024
_SESSION = "session:"


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is set up."""

    known_fields = frozenset(("setup_timeout_seconds", "eager_install", "log_files"))

    def __init__(
        self,
        setup_timeout_seconds: int = 600,
        eager_install: bool = True,
        log_files: list[str] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(setup_timeout_seconds, int):
            raise TypeError(f"setup_timeout_seconds takes an int, not {setup_timeout_seconds!r}")
        if setup_timeout_seconds <= 0 and setup_timeout_seconds != -1:
            raise ValueError(
                f"setup_timeout_seconds must be positive, or -1 for no limit, not {setup_timeout_seconds}"
            )
        if not isinstance(eager_install, bool):
            raise TypeError(f"eager_install takes a bool, not {eager_install!r}")
        if log_files is not None and not isinstance(log_files, list):
            raise TypeError(f"log_files takes a list, not {log_files!r}")
        self["setup_timeout_seconds"] = setup_timeout_seconds
        self["eager_install"] = eager_install
        self["log_files"] = list(log_files or [])

    @classmethod
    def default_config(cls) -> RuntimeEnvConfig:
        return cls()

    @classmethod
    def parse_and_validate_runtime_env_config(
        cls, config: dict[str, Any] | RuntimeEnvConfig
    ) -> RuntimeEnvConfig:
        if isinstance(config, RuntimeEnvConfig):
            return config
        if not isinstance(config, dict):
            raise TypeError(f"runtime_env['config'] takes a dict or a RuntimeEnvConfig, not {config!r}")
        unknown = set(config) - cls.known_fields
        if unknown:
            raise ValueError(
                f"runtime_env['config'] has no {', '.join(sorted(unknown))}: it has "
                f"{', '.join(sorted(cls.known_fields))}"
            )
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """A runtime environment that has been checked; a plain dict does as well."""

    known_fields = frozenset(_KNOWN)

    def __init__(
        self,
        *,
        py_modules: list[str] | None = None,
        py_executable: str | None = None,
        working_dir: str | None = None,
        pip: list[str] | None = None,
        conda: dict[str, str] | str | None = None,
        container: dict[str, str] | None = None,
        env_vars: dict[str, str] | None = None,
        worker_process_setup_hook: Any = None,
        nsight: dict[str, str] | str | None = None,
        rocprof_sys: dict[str, Any] | str | None = None,
        config: dict[str, Any] | RuntimeEnvConfig | None = None,
        _validate: bool = True,
        image_uri: str | None = None,
        uv: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "py_modules": py_modules,
            "py_executable": py_executable,
            "working_dir": working_dir,
            "pip": pip,
            "uv": uv,
            "conda": conda,
            "container": container,
            "image_uri": image_uri,
            "env_vars": env_vars,
            "worker_process_setup_hook": worker_process_setup_hook,
            "nsight": nsight,
            "rocprof_sys": rocprof_sys,
            "config": config,
            **kwargs,
        }
        present = {key: value for key, value in given.items() if value is not None}
        super().__init__(validate(present) if _validate else present)

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def get(self, name: str, default: Any = None, data_class: type | None = None) -> Any:
        """The field, made into a `data_class` if one is given."""
        value = super().get(name, default)
        return data_class(**value) if data_class is not None and isinstance(value, dict) else value

    def set(self, name: str, value: Any) -> None:
        self[name] = value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, validate({key: value}).get(key))

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars") or {})

    def working_dir(self) -> str:
        return str(self.get("working_dir") or "")

    def has_working_dir(self) -> bool:
        return bool(self.get("working_dir"))

    def py_modules(self) -> list[str]:
        return list(self.get("py_modules") or [])

    def serialize(self) -> str:
        return json.dumps(self, sort_keys=True)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        return cls(**json.loads(serialized_runtime_env))


def validate(env: dict[str, Any]) -> dict[str, Any]:
    """The environment with its fields checked; None counts as not given."""
    if not isinstance(env, dict):
        raise TypeError(f"runtime_env takes a dict, not {type(env).__name__}")
    result: dict[str, Any] = {}
    for key, value in env.items():
        if value is None:
            continue
        if key in _UNSUPPORTED:
            raise ValueError(f"runtime_env[{key!r}] is not supported yet: {_UNSUPPORTED[key]}")
        if key not in _KNOWN:
            raise ValueError(f"runtime_env has no field {key!r}: it has {', '.join(_KNOWN)}")
        result[key] = _VALIDATORS[key](value)
    if "excludes" in result and not ("working_dir" in result or "py_modules" in result):
        raise ValueError("runtime_env['excludes'] needs a working_dir or py_modules to leave files out of")
    return result


def _env_vars(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"runtime_env['env_vars'] maps strings to strings, and is no {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(
                f"runtime_env['env_vars'] maps strings to strings, not {name!r} to {text!r} "
                f"({type(text).__name__})"
            )
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(
                f"runtime_env['env_vars'] has a name or value that no environment can hold: {name!r}"
            )
    return dict(value)


def _directory(what: str, value: Any) -> str:
    if hasattr(value, "__fspath__"):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise TypeError(f"{what} takes the path of a directory, not {type(value).__name__}")
    if "://" in value:
        raise ValueError(f"{what} takes a local directory; fetching {value!r} is not supported yet")
    if value.startswith(_SESSION):
        return value  # merged from the environment around
    path = os.path.abspath(os.path.expanduser(value))
    if not os.path.isdir(path):
        state = "is no directory" if os.path.exists(path) else "does not exist"
        raise ValueError(f"{what} takes a local directory, and {path} {state}")
    return path


def _working_dir(value: Any) -> str:
    return _directory("runtime_env['working_dir']", value)


def _py_modules(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"runtime_env['py_modules'] takes a list, not {type(value).__name__}")
    return [_py_module(item) for item in value]


def _py_module(item: Any) -> str:
    what = "runtime_env['py_modules']"
    if type(item).__name__ == "module":
        paths = list(getattr(item, "__path__", None) or [])
        if len(paths) == 1:
            return _directory(what, paths[0])
        raise ValueError(f"{what} takes packages of one directory, and {item.__name__} is none")
    return _directory(what, item)


def _excludes(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"runtime_env['excludes'] takes a list of patterns, not {value!r}")
    return list(value)


def _hook(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
            raise ValueError(f"worker_process_setup_hook {value!r} must be a 'module.function'")
        return value
    if isinstance(value, dict) and set(value) == {"name", "pickle"}:
        return value  # pickled before
    if not callable(value):
        raise TypeError(f"worker_process_setup_hook takes a callable or 'module.function', not {value!r}")
    return value


_VALIDATORS: dict[str, Any] = {
    "env_vars": _env_vars,
    "working_dir": _working_dir,
    "py_modules": _py_modules,
    "excludes": _excludes,
    "worker_process_setup_hook": _hook,
    "config": lambda value: dict(RuntimeEnvConfig.parse_and_validate_runtime_env_config(value)),
}


def merge(around: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """env_vars add up, all else is replaced."""
    merged = {**around, **own}
    if "env_vars" in around and "env_vars" in own:
        merged["env_vars"] = {**around["env_vars"], **own["env_vars"]}
    return merged


class Package:
    """An environment made ready to travel: `env` is plain JSON, `sources` what has to be copied."""

    def __init__(self, env: dict[str, Any]) -> None:
        self.env = dict(env)
        #: (source directory, patterns to leave out, place relative to the session directory)
        self.sources: list[tuple[str, list[str], str]] = []
        excludes = self.env.pop("excludes", [])
        if "working_dir" in self.env:
            self.env["working_dir"] = self._add(self.env["working_dir"], excludes, "")
        if "py_modules" in self.env:
            self.env["py_modules"] = [
                self._add(path, excludes, os.path.basename(path)) for path in self.env["py_modules"]
            ]
        hook = self.env.get("worker_process_setup_hook")
        if callable(hook):
            self.env["worker_process_setup_hook"] = {"name": _hook_name(hook), "pickle": _pickle_hook(hook)}

    def _add(self, path: str, excludes: list[str], name: str) -> str:
        """The directory that goes onto sys.path; a module keeps its name below it."""
        if path.startswith(_SESSION):
            return path
        place = f"runtime_env/{_digest(path, excludes)}"
        self.sources.append((path, excludes, os.path.join(place, name) if name else place))
        return _SESSION + place

    def copy_into(self, session_dir: str) -> None:
        """Whole or not at all; what is there already is the same, for its name is its hash."""
        import shutil
        import tempfile

        for source, excludes, place in self.sources:
            target = os.path.join(session_dir, place)
            if os.path.isdir(target):
                continue
            parent = os.path.dirname(target)
            os.makedirs(parent, exist_ok=True)
            partial = tempfile.mkdtemp(prefix=".partial-", dir=parent)
            try:
                for relative, full in _files(source, excludes):
                    copy = os.path.join(partial, relative)
                    os.makedirs(os.path.dirname(copy), exist_ok=True)
                    shutil.copy2(full, copy)
                os.chmod(partial, 0o755)
                os.rename(partial, target)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                if not os.path.isdir(target):  # otherwise another process was faster
                    raise RuntimeError(f"{source} cannot be copied to {target}: {error}") from error


def _hook_name(hook: Any) -> str:
    name = getattr(hook, "__qualname__", None) or type(hook).__qualname__
    return f"{getattr(hook, '__module__', None)}.{name}"


def _pickle_hook(hook: Any) -> str:
    import base64

    from skate.remote_function import dump_code

    blob = dump_code(hook, "worker_process_setup_hook", hook)
    if len(blob) > _HOOK_BYTES_MAX:
        raise ValueError(
            f"worker_process_setup_hook is {len(blob)} bytes when pickled, above {_HOOK_BYTES_MAX}"
        )
    return base64.b64encode(blob).decode()


def resolve(path: str, session_dir: str) -> str:
    if path.startswith(_SESSION):
        return os.path.join(session_dir, path[len(_SESSION) :])
    return path


# --- directories ------------------------------------------------------------------------------


def _digest(root: str, excludes: list[str]) -> str:
    import hashlib

    digest = hashlib.sha256(os.path.basename(root).encode("utf-8", "surrogateescape"))
    total = 0
    for relative, full in _files(root, excludes):
        total += os.path.getsize(full)
        if total > _DIRECTORY_BYTES_MAX:
            raise ValueError(
                f"{root} holds more than {_DIRECTORY_BYTES_MAX >> 20} MiB: leave large files out by "
                "runtime_env['excludes'] or a .gitignore"
            )
        executable = b"x" if os.access(full, os.X_OK) else b"-"
        digest.update(relative.encode("utf-8", "surrogateescape") + b"\0" + executable)
        with open(full, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:32]


def _files(root: str, excludes: list[str]) -> Iterator[tuple[str, str]]:
    """(relative path, full path) of the files that travel, sorted."""
    rules = [_Rule("", line) for line in excludes]
    yield from _walk(root, "", [rule for rule in rules if rule.pattern is not None])


def _walk(root: str, relative: str, rules: list[_Rule]) -> Iterator[tuple[str, str]]:
    here = os.path.join(root, relative)
    ignore = os.path.join(here, ".gitignore")
    if os.path.isfile(ignore):
        with open(ignore, encoding="utf-8", errors="surrogateescape") as file:
            found = [_Rule(relative, line) for line in file]
        rules = rules + [rule for rule in found if rule.pattern is not None]
    for entry in sorted(os.scandir(here), key=lambda item: item.name):
        path = f"{relative}/{entry.name}" if relative else entry.name
        is_dir = entry.is_dir(follow_symlinks=True)
        if entry.name in (".git", "__pycache__") and is_dir:
            continue
        ignored = False
        for rule in rules:
            if rule.matches(path, is_dir):
                ignored = not rule.negated
        if ignored:
            continue
        if is_dir:
            if entry.is_symlink() and os.path.realpath(here).startswith(os.path.realpath(entry.path)):
                continue  # a link to a directory above would never end
            yield from _walk(root, path, rules)
        elif entry.is_file():
            yield path, entry.path


class _Rule:
    """One line of a .gitignore, or of excludes."""

    def __init__(self, base: str, line: str) -> None:
        line = line.rstrip("\n")
        line = line if line.endswith("\\ ") else line.rstrip()
        self.negated = line.startswith("!")
        line = line[1:] if self.negated else line
        self.only_directories = line.endswith("/")
        line = line.rstrip("/")
        self.base = base + "/" if base else ""
        self.pattern = None
        if line and not line.startswith("#"):
            anchored = "/" in line
            text = _translate(line.lstrip("/"))
            self.pattern = re.compile(text if anchored else f"(?:.*/)?{text}", re.DOTALL)

    def matches(self, path: str, is_dir: bool) -> bool:
        if self.only_directories and not is_dir:
            return False
        if not path.startswith(self.base) or self.pattern is None:
            return False
        return self.pattern.fullmatch(path[len(self.base) :]) is not None


def _translate(glob: str) -> str:
    out, i = "", 0
    while i < len(glob):
        if glob.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif glob.startswith("**", i):
            out, i = out + ".*", i + 2
        elif glob[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif glob[i] == "?":
            out, i = out + "[^/]", i + 1
        elif glob[i] == "[" and "]" in glob[i + 2 :]:
            end = glob.index("]", i + 2)
            body = glob[i + 1 : end].replace("\\", "\\\\")
            out, i = out + "[" + ("^" + body[1:] if body[0] == "!" else body) + "]", end + 1
        elif glob[i] == "\\" and i + 1 < len(glob):
            out, i = out + re.escape(glob[i + 1]), i + 2
        else:
            out, i = out + re.escape(glob[i]), i + 1
    return out
