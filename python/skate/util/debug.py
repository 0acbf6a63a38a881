"""Logging less."""

from __future__ import annotations

import time

_logged: set[str] = set()
_disabled = False
_periodic = False
_last_reset = 0.0
_PERIOD_S = 60.0


def log_once(key: str) -> bool:
    """True the first time that it is called with `key`; with periodic logging, once a minute."""
    global _last_reset
    if _disabled:
        return False
    if _periodic and time.monotonic() - _last_reset > _PERIOD_S:
        _logged.clear()
        _last_reset = time.monotonic()
    if key in _logged:
        return False
    _logged.add(key)
    return True


def disable_log_once_globally() -> None:
    """Makes `log_once` return False from now on."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """Makes `log_once` return True once a minute for each key."""
    global _disabled, _periodic, _last_reset
    _disabled, _periodic, _last_reset = False, True, time.monotonic()


def reset_log_once(key: str | None = None) -> None:
    """Forgets one key, or all."""
    if key is None:
        _logged.clear()
    else:
        _logged.discard(key)
