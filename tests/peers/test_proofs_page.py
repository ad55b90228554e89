"""The page "Proofs" of the guide has the table that the other tests have just filled."""

import statistics
from pathlib import Path

import pytest
from comparisons import rows_of_page

from minilora.config import InputError
from minilora.formats import fetch

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "lessons" / "guide" / "proofs.md"


def test_the_page_has_the_rows_and_bounds_of_this_run(request, recorded):
    """Every row that was filled is in the page, with its bound.

    A run of all files, with SmolLM2 and without -k or -m, also has the page's numbers of cases, and
    its differences are as large as the page's in the median: another processor rounds a single row
    otherwise (the losses of SmolLM2 in NF4 by a factor of 11 on one of them), but not most rows.
    """
    page = rows_of_page(PAGE.read_text("utf-8"))
    seen = {key: row.cells() for key, row in recorded.items()}
    if not seen:
        pytest.skip("no other test of tests/peers ran")
    bounds = {key: bound for key, (_, _, bound) in page.items()}
    assert {key: cells[2] for key, cells in seen.items()}.items() <= bounds.items()
    if everything_ran(request):
        cases = {key: cases for key, (cases, _, _) in page.items()}
        assert {key: cells[0] for key, cells in seen.items()} == cases
        rounded = [key for key, row in recorded.items() if row.bound > 0]
        ratios = [recorded[key].largest / float(page[key][1]) for key in rounded]
        assert 0.5 < statistics.median(ratios) < 2


def everything_ran(request):
    """Return whether all test files of this folder ran, with SmolLM2 and without a selection."""
    files = {item.path for item in request.session.items}
    selected = request.config.option.keyword or request.config.option.markexpr
    try:
        fetch.cached("smollm2")
    except InputError:
        return False
    return not selected and files >= set(HERE.glob("test_*.py"))
