"""The comparison: pure jobs over any executor, sizes at a budget, a table and a figure of them."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, fingerprint, random_base
from sweeps import compare
from sweeps.compare import TABLE, Job
from threadpoolctl import threadpool_info

from minilora.config import InputError
from minilora.formats import pretrained
from minilora.kernels import threads
from minilora.methods import registry
from minilora.tree import num_parameters

MEASURED = ("step_ms",)  # the other columns of a row follow from its job


def sure(row):
    return {name: value for name, value in row.items() if name not in MEASURED}


def one_job(method, **fields):
    return Job(method, iters=3, **fields)


JOBS = [one_job("norm"), one_job("norm", seed=1), one_job("norm", rate=1e-4)]


@pytest.fixture(scope="module")
def micro():
    return pretrained.load("micro")[1]


# ------------------------------------------------------------------------------------- sizes


def test_every_method_is_in_the_table():
    compared = {entry.method for entry in TABLE.values()}
    assert compared <= set(registry.METHODS)
    assert set(registry.METHODS) - compared <= {"vera"}  # not measured yet


@pytest.mark.parametrize("method", [m for m, entry in TABLE.items() if entry.size])
@settings(max_examples=10)
@given(budget=st.integers(1, 20_000))
def test_a_size_is_the_nearest_to_the_budget(method, budget):
    entry, base = TABLE[method], random_base(TINY)

    def off(config):
        return abs(num_parameters(compare.start(entry, base, config)[0]) - budget)

    found = compare.sized(entry, base, budget)
    size = getattr(found, entry.size)
    for other in (size - 1, size + 1):
        assert other < 1 or off(found) <= off(compare.config_of(entry, other))


def test_the_default_budget_is_lora_at_rank_two(micro):
    # micro: L = 3, d = k = 48, f = 128; all seven projections at r: L·r·(9d + 2k + 3f)
    assert compare.BUDGET == 3 * 2 * (9 * 48 + 2 * 48 + 3 * 128)
    assert compare.sized(TABLE["lora"], micro, compare.BUDGET).r == 2
    assert compare.jobs(["lora"], 1, 1)[0].budget == compare.BUDGET


@pytest.mark.parametrize("method", TABLE)
def test_a_start_follows_from_its_seed(method, micro):
    config = compare.sized(TABLE[method], micro, compare.BUDGET)
    first, again = (compare.start(TABLE[method], micro, config, seed=1) for _ in range(2))
    assert fingerprint(first[0]) == fingerprint(again[0])
    assert compare.file_bytes(*first, config, "micro") > 0


# ------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def rows():
    """Of the first two of three jobs, one after the other in this process, one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "THREADS", 1)  # shares of a batch round in another way
        return [compare.run_one(job) for job in JOBS[:2]]


def test_a_row_says_what_was_trained(rows):
    row = rows[0]
    assert row["trained"] == 7 * 48  # two gains a layer, and one above: 48 each
    assert row["optimizer_bytes"] == 2 * 4 * row["trained"]
    header = row["adapter_bytes"] - 4 * row["trained"]
    assert 8 < header < 200 * 7  # a tensor's entry is some hundred letters
    assert 0 < row["step_ms"] < 60_000
    assert row["notes_before"] == pytest.approx(0.2051, abs=1e-4)  # as data-and-models.md says
    assert row["notes_after"] != row["notes_before"]


def test_processes_give_what_a_loop_gives(rows):
    # and so a row is a function of its job; another seed or another rate is another job
    again = compare.compare(JOBS)
    assert [sure(row) for row in again[:2]] == [sure(row) for row in rows]
    assert len({row["loss"] for row in again}) == 3


def test_any_executor_keeps_the_order(monkeypatch):
    monkeypatch.setattr(compare, "run_one", lambda job: job.seed)
    with ThreadPoolExecutor(3) as executor:
        jobs = [one_job("norm", seed=seed) for seed in range(20)]
        assert compare.compare(jobs, executor) == list(range(20))


def threads_of(_):
    return threads.THREADS, [pool["num_threads"] for pool in threadpool_info()]


def test_processes_take_one_thread():
    before = threads_of(None)
    for own, libraries in compare.mapped(threads_of, range(2)):
        assert own == 1 and libraries and set(libraries) == {1}
    assert threads_of(None) == before


# ------------------------------------------------------------------------------ what came out


def row(method, seed, loss, exact=0.5, trained=100):
    return {
        "method": method, "seed": seed, "trained": trained, "adapter_bytes": 4 * trained,
        "optimizer_bytes": 8 * trained, "step_ms": 12.34, "loss": loss, "exact_match": exact,
        "notes_before": 0.25, "notes_after": 2 * loss,
    }  # fmt: skip


ROWS = [row("lora", seed, loss) for seed, loss in enumerate((0.1, 0.2, 0.3))]
ROWS += [row("full", 0, 0.01, exact=1.0, trained=123_456)]


def test_a_method_has_the_mean_and_the_deviation_of_its_seeds():
    found = compare.by_method(ROWS)
    assert list(found) == ["lora", "full"]
    # the sample's deviation of 1, 2, 3 is 1
    assert found["lora"]["loss"] == pytest.approx((0.2, 0.1, 0.1, 0.3))
    assert found["full"]["loss"] == (0.01, 0.0, 0.01, 0.01)


def test_the_table():
    head, rule, lora, full = compare.markdown(ROWS).splitlines()
    assert head.endswith("| own text, 0.2500 before |") and rule.count("|") == head.count("|")
    assert lora == (
        "| lora | 100 | 400 | 800 | 12.3 | 0.2000 ± 0.1000 | 50.0 ± 0.0 | 0.400 ± 0.200 |"
    )
    assert full == (
        "| full | 123,456 | 493,824 | 987,648 | 12.3 | 0.0100 ± 0.0000 | 100.0 ± 0.0 |"
        " 0.020 ± 0.000 |"
    )


def test_the_figure(tmp_path):
    compare.draw(tmp_path / "one.png", ROWS)
    compare.draw(tmp_path / "two.png", ROWS)
    first = (tmp_path / "one.png").read_bytes()
    assert first[:4] == b"\x89PNG" and first == (tmp_path / "two.png").read_bytes()


# -------------------------------------------------------------------------------- the command


def test_the_command_prints_the_table_and_draws_the_figure(tmp_path, capsys):
    figure = tmp_path / "compare.png"
    flags = ["--methods", "norm", "head", "--seeds", "1", "--iters", "2", "--out", str(figure)]
    assert compare.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["method", "---", "norm", "head"]
    assert np.isfinite(float(lines[2].split("|")[6].split("±")[0]))
    assert figure.stat().st_size > 1000


@pytest.mark.parametrize("flags", [
    ["--methods", "lora", "adapter"], ["--seeds", "0"], ["--iters", "0"], ["--budget", "0"],
    ["--out", "no/such/folder.png"], ["--out", "figure.svgz"],
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line_and_no_run(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "compare", lambda jobs: pytest.fail("it ran"))
    assert compare.main(flags) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and flags[0] in err and not out


@pytest.mark.parametrize("what", ["a folder", "too long", "not allowed"])
def test_a_figure_that_cannot_be_written_is_refused_before_the_runs(
    what, tmp_path, capsys, monkeypatch
):
    (tmp_path / "a folder.png").mkdir()
    name = "a" * 300 if what == "too long" else what
    if what == "not allowed":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(compare, "compare", lambda jobs: pytest.fail("it ran"))
    assert compare.main(["--out", str(tmp_path / f"{name}.png")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and f"{name}.png" in err


def test_a_stranger_is_not_compared():
    with pytest.raises(InputError, match="--methods adapter is not one of lora"):
        compare.jobs(["adapter"], 1, 1)
