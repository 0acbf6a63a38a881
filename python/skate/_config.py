"""Settings that come from the environment."""

import os

#: Prefixes under which a setting is looked up, first match wins. A compatibility layer may add its own.
env_prefixes = ["SKATE_"]


def env(name: str) -> "str | None":
    for prefix in env_prefixes:
        value = os.environ.get(prefix + name)
        if value is not None:
            return value
    return None


def env_flag(name: str, default: bool) -> bool:
    value = env(name)
    if value is None:
        return default
    return value.strip().lower() not in ("0", "false", "no", "off", "")


def env_float(name: str, default: float) -> float:
    value = env(name)
    if value is None:
        return default
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"the environment variable *_{name} must be a number, not {value!r}") from None
