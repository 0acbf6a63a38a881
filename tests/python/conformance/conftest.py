"""Clusters for the corpus: one per module, with the arguments that the module names in CLUSTER."""

import json
import os
import sys

import pytest
import ray

# Workers unpickle the functions of a test module by reference, so they must be able to import it.
HERE = os.path.dirname(os.path.abspath(__file__))
if HERE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (HERE, os.environ.get("PYTHONPATH", "")) if p)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


def pytest_addoption(parser):
    parser.addoption("--init", type=json.loads, default={}, help="further arguments of init, as JSON")


@pytest.fixture(scope="module")
def cluster(request):
    """A cluster of four logical CPUs, or whatever the module's CLUSTER says."""
    arguments = getattr(request.module, "CLUSTER", {"num_cpus": 4}) | request.config.getoption("--init")
    yield ray.init(**arguments)
    ray.shutdown()


@pytest.fixture
def no_cluster():
    """Starts and ends without a cluster, whatever the test does in between."""
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def signal(cluster):
    from coordination import Signal

    actor = Signal.remote()
    yield actor
    ray.kill(actor)


@pytest.fixture
def tally(cluster):
    from coordination import Tally

    actor = Tally.remote()
    yield actor
    ray.kill(actor)
