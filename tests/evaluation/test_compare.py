"""The comparison: pure jobs over any executor, sizes at a budget, a table and a figure of them.

Also the verdicts of the lessons on paired differences.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import common
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, fingerprint, random_base
from sweeps import again, best_rates, compare
from sweeps.compare import TABLE, Job
from threadpoolctl import threadpool_info

from minilora.config import InputError
from minilora.formats import pretrained
from minilora.kernels import threads
from minilora.methods import registry
from minilora.methods.registry import get_peft_model
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


@pytest.mark.parametrize("method", registry.METHODS.keys() - compare.WITHOUT_RUNS)
def test_every_method_is_in_the_table_and_in_its_sweeps(method):
    names = [name for name, entry in TABLE.items() if entry.method == method]
    where = "in lessons/sweeps/compare.py"
    assert names, f"add {method} to TABLE {where}, or to WITHOUT_RUNS if it is not compared"
    for name in names:
        ends = "the lowest and the highest rate to try"
        assert name in best_rates.ENDS, f"add {name} to ENDS in best_rates.py: {ends}"
        for sweep in ("siblings", "best_rates"):
            measured = {row["method"] for row in common.read_sweep(sweep)}
            run = f"run python lessons/sweeps/{sweep}.py, which writes all rows again"
            assert name in measured, f"{sweep}.csv has no row of {name}: {run}"


@pytest.mark.parametrize("method", [m for m, entry in TABLE.items() if entry.size])
@settings(max_examples=10)
@given(budget=st.integers(1, 20_000))
def test_a_size_is_the_nearest_to_the_budget(method, budget):
    entry, base = TABLE[method], random_base(TINY)

    def off(config):
        return abs(num_parameters(get_peft_model(base, config).adapters) - budget)

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
    first, again = (get_peft_model(micro, config, 1) for _ in range(2))
    assert fingerprint(first.adapters) == fingerprint(again.adapters)
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


# ------------------------------------------------------------------------------------- done again


@pytest.mark.parametrize("n", [2, 3, 5])
def test_further_seeds_are_where_their_share_says(n):
    """Of 20,000 draws, 95 % and 99 % of the next numbers are within the interval of n seeds."""
    rng = np.random.default_rng(0)
    draws = np.exp(0.3 * rng.standard_normal((20_000, n + 1)))
    for share in (0.95, 0.99):
        intervals = [common.further_seeds(seeds[:n], share) for seeds in draws[:2000]]
        inside = [low <= again <= high for (low, high), again in zip(intervals, draws[:, n])]
        # five standard errors of a share of 2,000 draws
        assert abs(np.mean(inside) - share) < 5 * (share * (1 - share) / 2000) ** 0.5


@pytest.mark.parametrize(
    ("again", "other", "expected"),
    [
        (0.1, (), True),  # a stored run itself
        (0.11, (), True),
        (0.3, (), False),  # outside 99 % of further seeds
        (0.02, (), False),
        (0.12, (0.13, 0.14), False),  # inside, but nearer to the other case
        (0.1, (0.13, 0.14), True),
        (0.1, np.array([0.13, 0.14]), True),
    ],
)
def test_a_run_agrees_with_its_seeds_and_not_with_another_case(again, other, expected):
    assert common.agrees(again, [0.1, 0.09, 0.11, 0.1, 0.105], other) == expected


STORED = [
    {"case": "a", "seed": seed, "trained": 3.0, "loss": loss, "exact_match": 0.0}
    for seed, loss in enumerate((0.1, 0.11, 0.09))
]


def test_results_are_compared_with_the_seeds_of_their_case():
    row = {"case": "a", "seed": 7, "trained": 3, "loss": 0.2, "exact_match": 0.0}
    other = [{**of, "case": "b", "loss": 5.0} for of in STORED]
    assert again.comparisons(row, STORED + other) == [("loss", 0.2, [0.1, 0.11, 0.09])]
    with pytest.raises(InputError, match="run the sweep"):
        again.comparisons({**row, "case": "c"}, STORED)


def test_a_sweep_that_differs_is_told(monkeypatch, capsys):
    monkeypatch.setattr(again, "read_sweep", lambda name: STORED)
    for losses, status in (((0.1, 0.1, 0.1, 0.1, 0.5), 0), ((0.1, 0.1, 0.1, 0.5, 0.5), 1)):
        rows = [{"case": "a", "seed": 0, "loss": loss} for loss in losses]
        monkeypatch.setattr(again, "run_until", lambda *_, rows=rows: rows)
        assert again.main(["rank", "--seed", "3"]) == status  # more than a fifth outside
        shown = capsys.readouterr().out
        assert "rank, seed 3: 5 of" in shown and "0.5" in shown


def test_the_seed_chooses_the_sweep_and_each_has_its_turn(monkeypatch):
    found = []
    monkeypatch.setattr(again, "check", lambda name, *_: found.append(name) or 0.0)
    for seed in range(len(again.NAMES)):
        assert again.main(["--seed", str(seed)]) == 0
    assert found == again.NAMES


@pytest.mark.parametrize("name", again.NAMES)
def test_every_sweep_can_be_run_again_and_its_csv_has_all_runs(name):
    function, jobs = again.function_and_jobs(import_module(f"sweeps.{name}"))
    stored = common.read_sweep(name)
    columns = list(stored[0])
    names = columns[: columns.index("seed") + 1]
    runs = {tuple(row[name] for name in names) for row in stored}
    assert callable(function) and len(runs) == len(stored) >= len(jobs)


def test_no_job_begins_after_the_time():
    assert again.run_until(abs, [-1, -2], 60) == [1, 2]
    assert len(again.run_until(abs, range(50_000), 0)) < 50_000


# -------------------------------------------------------------------- what paired seeds show


# The tables of Student's t. The angles are 1.6e-5 apart, and dt = √ν·(1 + tan²θ)·dθ, so t is off by
# at most a part in a thousand here.
@pytest.mark.parametrize(
    "level, degrees, t",
    [(0.95, 1, 12.7062), (0.95, 7, 2.36462), (0.99, 7, 3.49948), (0.95, 29, 2.04523)],
)
def test_students_t(level, degrees, t):
    assert common.student(level, degrees) == pytest.approx(t, rel=1e-3)


def test_the_interval_of_a_mean():
    # s = √(5/3), and t for three degrees of freedom
    for level, t in ((0.95, 3.18245), (0.99, 5.84091)):
        half = t * math.sqrt(5 / 3) / 2
        found = common.interval([1, 2, 3, 4], level)
        assert found == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-3)
    assert common.interval([1, 2, 3, 4]) == common.interval([1, 2, 3, 4], 0.95)


CLEAR, UNCLEAR = [1.0, 1.1, 0.9, 1.0], [3.0, -2.0, 4.0, -1.0]  # both have a mean of 1


@pytest.mark.parametrize(
    "differences, above, below, found",
    [
        (CLEAR, 0, math.inf, common.HOLDS),
        (CLEAR, 2, math.inf, common.FAILS),
        (CLEAR, 1, math.inf, common.OPEN),
        (UNCLEAR, 0, math.inf, common.OPEN),
        (CLEAR, -2, 2, common.HOLDS),  # less than 2 in either direction
        (UNCLEAR, -2, 2, common.OPEN),
        (CLEAR, -0.5, 0.5, common.FAILS),
    ],
)
def test_a_verdict_needs_the_whole_interval(differences, above, below, found):
    assert common.verdict(differences, above, below) == found
    assert common.claim("", differences, above, below) == found


def test_a_verdict_at_a_higher_level_needs_more():
    # the interval of 1 to 4 is from 0.45 at 95 %, and from −1.27 at 99 %
    assert common.verdict([1, 2, 3, 4]) == common.HOLDS
    assert common.verdict([1, 2, 3, 4], level=0.99) == common.OPEN


def test_a_claim_prints_its_evidence(capsys):
    assert common.claim("twice", np.log(2 * np.array([1, 1.1, 0.9])), times=True) == common.HOLDS
    assert capsys.readouterr().out == "twice: 1.993 times (1.553 to 2.558), 3 seeds: holds here\n"


@pytest.mark.parametrize(
    "live, cell, rival, agrees",
    [
        (1.05, CLEAR, [2.0, 2.1], True),
        (2.0, CLEAR, [2.0, 2.1], False),  # like the rival
        (0.0, CLEAR, [2.0, 2.1], False),  # farther away than another seed would be
        (1.2, CLEAR, [1.1, 1.2], False),  # within the spread of the seeds, but on the rival's side
        # further seeds are within 1 ± 0.291 in 95 of 100 cases, and within 1 ± 0.533 in 99
        (1.5, CLEAR, (), True),
        (1.55, CLEAR, (), False),
    ],
)
def test_a_repeated_run_must_agree_with_its_cell(live, cell, rival, agrees):
    assert common.belongs(live, cell, rival) == agrees
