"""Which system the Python tests run on is decided by what `import ray` finds, and by nothing else."""

import signal

import pytest

TEST_TIMEOUT_S = 60

# A shell or nohup that starts this in the background makes it, and all that it starts, deaf to these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_report_header(config):
    import ray

    return f"ray API: {ray.__version__} from {ray.__file__}"


def pytest_collection_modifyitems(config, items):
    if config.getoption("timeout", None) is not None:
        return  # asked for on the command line, for a slow machine
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
