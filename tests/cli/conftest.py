"""The base and the rows of the tests of the command line."""

import pytest
from faults import figure
from small_run import write_base, write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Skip drawing, which takes half the time of these runs, but write a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.cli.run.curve", figure)
        yield
