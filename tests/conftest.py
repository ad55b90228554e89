"""Settings of all tests: how much they try, and the seed of what they draw.

Hypothesis has no deadlines, because the first example may compile a kernel.
"""

import gc
import os
import random
from functools import partial

import pytest
from hypothesis import settings

# Matrices are tiny here, so a second thread only waits for the first; other tests use other cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")


def pytest_addoption(parser):
    text = "every method with every storage"
    parser.addoption("--all-combinations", action="store_true", help=text)
    text = "every fault, hundreds of kills and interrupts, ten times as many examples per property"
    parser.addoption("--long", action="store_true", help=text)
    text = "only the tests that --long or --all-combinations lengthens, with N draws per test"
    parser.addoption("--draw", type=int, metavar="N", help=text)
    text = "write what the commands of a transcript print into its file; see transcripts.py"
    parser.addoption("--rewrite", action="store_true", help=text)
    new = str(random.SystemRandom().randrange(10**6))
    new = os.environ.setdefault("PYTEST_SEED", new)  # pytest-xdist's processes inherit it
    text = "seed of all draws (default: a new one, which is printed)"
    parser.addoption("--seed", type=int, default=int(new), help=text)


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads its option
def pytest_configure(config):
    """Draw more examples per property with --long, and those of --seed."""
    examples = 300 if config.getoption("--long") else 30
    settings.register_profile("tests", deadline=None, max_examples=examples)
    settings.load_profile("tests")
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = config.getoption("--seed")


def pytest_collection_finish():
    """Let the garbage collector leave out what is imported: else it takes 6 % of the time."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    """Print how to repeat the draws of this run, also with -q."""
    seed = config.getoption("--seed")
    terminalreporter.write_line(f"What this run draws is repeated with --seed {seed}.")


@pytest.fixture
def rng(request):
    """A random generator that depends on --seed and on the name of the test."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.nodeid}")


@pytest.fixture
def tries(request):
    """tries(few, every): how many of `every` possible tries this run takes."""
    options = request.config.option

    def tries(few, every):
        if options.long:
            return every
        return min(every, max(few, options.draw or 0))

    return tries


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked `combinations` or `long`, unless an option asks for them."""
    combinations = [item for item in items if item.get_closest_marker("combinations")]
    long = [item for item in items if item.get_closest_marker("long")]
    options, left_out = config.option, []
    if options.draw is not None:
        number = min(options.draw, len(combinations))
        drawn = random.Random(options.seed).sample(combinations, number)
        with_draws = [item for item in items if "tries" in item.fixturenames]
        left_out = [item for item in items if item not in [*drawn, *long, *with_draws]]
    else:
        if not options.all_combinations:
            left_out += combinations
        if not options.long:
            left_out += long
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def transcript(request, tmp_path, monkeypatch):
    """Check transcripts.txt, next to the test, in an empty folder; see `check_transcript`."""
    from transcripts import check_transcript

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    path = request.path.with_name("transcripts.txt")
    return partial(check_transcript, path, request.config.getoption("--rewrite"))


@pytest.fixture(scope="module")
def compiled_for_small_weights():
    """Compiled loops quantize small weights, and multiply them with a single row, too."""
    from minilora.kernels import loops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "LARGE", 0)
        yield
