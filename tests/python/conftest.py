"""Which system the Python tests run on is decided by what `import ray` finds, and by nothing else."""

import pathlib
import signal

import pytest

TEST_TIMEOUT_S = 60
KNOWN_GAPS = pathlib.Path(__file__).with_name("known_gaps.txt")


# A shell or nohup that starts this in the background makes it, and all that it starts, deaf to these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def known_gaps():
    """Test id -> reason, of what Skate is known not to do yet; docs/status.md speaks of each."""
    gaps = {}
    for line in KNOWN_GAPS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            test, _, reason = line.partition(" ")
            gaps[test] = reason.strip()
    return gaps


def pytest_report_header(config):
    import ray

    return f"ray API: {ray.__version__} from {ray.__file__}"


def pytest_collection_modifyitems(config, items):
    gaps = known_gaps()
    for item in items:
        reason = gaps.get(item.nodeid.split("tests/python/")[-1])
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
    if config.getoption("timeout", None) is not None:
        return  # asked for on the command line, for a slow machine
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
