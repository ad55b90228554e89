"""What all tests share: hypothesis without deadlines (the first example may compile a kernel)."""

import os

from hypothesis import settings

# Matrices are tiny here: a second thread in the products only waits for the first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("minilora", deadline=None)
settings.load_profile("minilora")


def pytest_addoption(parser):
    text = "every method with every storage, and the other long versions"
    parser.addoption("--all-combinations", action="store_true", help=text)
    parser.addoption(
        "--long", action="store_true", help="the long versions of fuzz, fault and kill tests"
    )


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked `combinations`, unless the option asks for them."""
    if config.getoption("--all-combinations"):
        return
    long = [item for item in items if item.get_closest_marker("combinations")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)
