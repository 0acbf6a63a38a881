"""Fixtures of the fault tests: drivers that are surely gone afterwards, private mounts, a cluster."""

import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from os_facts import Driver, private_mounts  # noqa: E402


@pytest.fixture
def driver():
    """Starts drivers: `driver(code, env=..., limits=...)`."""
    started = []

    def start(code, **options):
        started.append(Driver(code, **options))
        return started[-1]

    yield start
    for d in started:
        d.close()


@pytest.fixture
def driver_with_mount(driver):
    """Starts a driver that alone sees a small tmpfs: `(code, folder, size, fill_bytes=0)`.

    The mount is in a mount namespace of its own and ends with it.
    """
    unshare = private_mounts()
    if unshare is None:
        pytest.fail("needs a mount namespace of its own: run as root, or allow user namespaces")

    def start(code, folder, size, **options):
        script = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"'
        wrapper = [*unshare, "--propagation", "private", "sh", "-c", script, "sh"]
        return driver(code, wrapper=wrapper, **options)

    return start


@pytest.fixture(scope="module")
def cluster(request):
    import skate

    arguments = getattr(request.module, "CLUSTER", {"num_cpus": 4})
    yield skate.init(**arguments)
    skate.shutdown()
