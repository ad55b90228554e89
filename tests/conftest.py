"""Settings of all tests: hypothesis without deadlines (the first example may compile a kernel)."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1] / "lessons"))  # `sweeps`, also in processes

# Matrices are tiny here: a second thread in the products only waits for the first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("short", deadline=None, max_examples=30)
settings.register_profile("long", deadline=None, max_examples=300)
settings.load_profile("short")


def pytest_addoption(parser):
    text = "every method with every storage"
    parser.addoption("--all-combinations", action="store_true", help=text)
    text = "every fault, hundreds of kills and interrupts, six times as many examples per property"
    parser.addoption("--long", action="store_true", help=text)


def pytest_configure(config):
    """Draw more examples per property with --long."""
    settings.load_profile("long" if config.getoption("--long", default=False) else "short")


@pytest.fixture
def long(request):
    """Whether the long versions of tests were asked for."""
    return request.config.getoption("--long")


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked `combinations` or `long`, unless an option asks for them."""
    options = {"combinations": "--all-combinations", "long": "--long"}
    marks = [mark for mark, option in options.items() if not config.getoption(option)]
    left_out = [item for item in items if any(map(item.get_closest_marker, marks))]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
