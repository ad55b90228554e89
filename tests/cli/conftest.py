"""The base and the rows of the tests of the command line."""

from functools import partial

import pytest
import small_run
from faults import figure
from small_run import write_adapter, write_base, write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="session")
def adapter(base, tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapters") / "adapter", base)


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def out(tmp_path):
    """The folder of a run, which does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def train(base, data, out):
    """Return a function that runs `train` with these, unless other flags are given."""
    return partial(small_run.train, base, data, out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, rows and an adapter, for the runs of one file."""
    folder = tmp_path_factory.mktemp("place")
    write_base(folder / "base")
    write_rows(folder / "rows.jsonl")
    write_adapter(folder / "adapter", folder / "base")
    return folder


@pytest.fixture(scope="module", autouse=True)
def short_runs():
    """Write a file and draw nothing; print four tokens of an answer: these take most of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.cli.run.curve", figure)
        patch.setattr("minilora.cli.run.SAMPLE", 4)
        yield
