"""Settings of all tests: hypothesis without deadlines (the first example may compile a kernel)."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1] / "lessons"))  # `sweeps`, also in processes

# Matrices are tiny here: a second thread in the products only waits for the first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("minilora", deadline=None)
settings.load_profile("minilora")


def pytest_addoption(parser):
    text = "every method with every storage"
    parser.addoption("--all-combinations", action="store_true", help=text)
    text = "every fault, hundreds of kills and interrupts, in place of a few of each"
    parser.addoption("--long", action="store_true", help=text)


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
