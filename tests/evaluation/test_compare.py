"""The sweeps of the lessons: sizes at a budget, runs, CSVs, runs again; what paired seeds show."""

import math

import numpy as np
import pytest
from outcomes import refused

import minilora
from minilora.lessons.helpers import again, common, compare
from minilora.lessons.helpers import sweep as runner
from minilora.lessons.helpers.compare import TABLE, Job
from minilora.lessons.studies.methods import best_rates_sweep as best_rates
from minilora.methods import registry
from minilora.tree import num_parameters

MICRO, _ = minilora.load("micro")


@pytest.mark.parametrize("method", sorted(registry.METHODS.keys() - compare.WITHOUT_RUNS))
def test_every_method_is_in_the_table_and_in_its_sweeps(method):
    names = [name for name, entry in TABLE.items() if entry.method == method]
    assert names, f"add {method} to TABLE in compare.py, or to WITHOUT_RUNS if it is not compared"
    for name in names:
        assert name in best_rates.ENDS, f"add the lowest and the highest rate of {name} to ENDS"
        for sweep in ("siblings", "best_rates"):
            measured = {row["method"] for row in common.read_sweep(sweep)}
            run = f"run python -m minilora.lessons.helpers.sweep {sweep}"
            assert name in measured, f"{sweep}_sweep.csv has no row of {name}: {run}"


@pytest.mark.parametrize("method", [m for m, entry in TABLE.items() if entry.size])
def test_a_size_is_the_nearest_to_the_budget(method):
    entry = TABLE[method]

    def off(config, budget):
        return abs(num_parameters(minilora.get_peft_model(MICRO, config).adapters) - budget)

    for budget in (1, compare.BUDGET, 20_000):
        found = compare.sized(entry, MICRO, budget)
        size = getattr(found, entry.size)
        for other in {max(1, size - 1), size + 1}:
            assert off(found, budget) <= off(compare.config_of(entry, other), budget)


def test_a_row_follows_from_its_job_in_any_process(monkeypatch):
    job = Job("norm", iters=3)
    (row,) = runner.mapped(compare.run, [job])
    assert row["trained"] == 7 * 48  # two gains a layer, and one above: 48 each
    assert row["notes_before"] == 0.20515  # 0.2051, as data-and-models.md says
    assert row["notes_after"] != row["notes_before"]
    monkeypatch.setattr(compare, "notes_loss", lambda *_: 0.0)  # it takes most of the time
    here = row | {"notes_before": 0.0, "notes_after": 0.0}
    # a core adds in another order than two: 3e-6 of the loss, which is rounded to 1e-5
    assert compare.run(job) == pytest.approx(here, abs=2e-5)
    assert compare.run(Job("norm", seed=1, iters=3))["loss"] != row["loss"]


class Sweep:
    """A sweep whose second jobs follow from the rows of the first ones."""

    JOBS = (1, 2)
    run = staticmethod(lambda job: {"job": job, "double": 2 * job})
    more = staticmethod(lambda rows: [sum(row["double"] for row in rows)])


def test_a_sweep_writes_its_csv(tmp_path, monkeypatch):
    path = tmp_path / "subject" / "twice_sweep.py"
    monkeypatch.setattr(Sweep, "__file__", str(path), raising=False)
    monkeypatch.setattr(runner, "mapped", lambda run, jobs: list(map(run, jobs)))
    monkeypatch.setattr(runner, "load", lambda name: Sweep)
    monkeypatch.setattr(common, "STUDIES", tmp_path)
    (tmp_path / "subject").mkdir()
    runner.write("twice")
    first = "# python -m minilora.lessons.helpers.sweep twice\njob,"
    assert path.with_suffix(".csv").read_text().startswith(first)
    assert common.read_sweep("twice") == [Sweep.run(float(job)) for job in (1, 2, 6)]


@pytest.mark.parametrize("name", again.NAMES)
def test_every_sweep_can_be_run_again_and_its_csv_has_all_runs(name):
    sweep = runner.load(name)
    stored = common.read_sweep(name)
    last = list(stored[0]).index("seed")
    runs = {tuple(row.values())[: last + 1] for row in stored}
    assert callable(sweep.run) and len(runs) == len(stored) >= len(sweep.JOBS)


# ------------------------------------------------------------------------------------ run again

STORED = [
    {"case": "a", "seed": seed, "trained": 3.0, "loss": loss, "exact_match": 0.0}
    for seed, loss in enumerate((0.1, 0.11, 0.09))
]


def test_results_are_compared_with_the_seeds_of_their_case():
    row = {"case": "a", "seed": 7, "trained": 3, "loss": 0.2, "exact_match": 0.0}
    other = [{**of, "case": "b", "loss": 5.0} for of in STORED]
    assert again.comparisons(row, STORED + other) == [("loss", 0.2, [0.1, 0.11, 0.09])]
    with refused("run the sweep"):
        again.comparisons({**row, "case": "c"}, STORED)


# C(5, 3)·0.05³ is 0.0013, and C(5, 4)·0.05⁴ is 3e-5
@pytest.mark.parametrize(("outside", "status"), [(3, 0), (4, 1)])
def test_a_sweep_that_differs_is_told(outside, status, monkeypatch, capsys):
    rows = [{"case": "a", "seed": 0, "loss": 0.5 if i < outside else 0.1} for i in range(5)]
    monkeypatch.setattr(again, "read_sweep", lambda name: STORED)
    monkeypatch.setattr(again, "run_until", lambda *_: rows)
    monkeypatch.setattr("sys.argv", ["again.py", "rank", "--seed", "3"])
    assert again.main() == status
    shown = capsys.readouterr().out
    assert "rank, seed 3: 5 of" in shown and "0.5" in shown


def test_no_run_begins_too_late():
    """Not even one that waits for a process."""
    assert again.run_until(abs, range(9), 0) == []
    assert again.run_before(math.inf, abs, -1) == 1


def test_the_seed_chooses_the_sweep_and_each_has_its_turn(monkeypatch):
    found = []
    monkeypatch.setattr(again, "check", lambda name, *_: found.append(name) or 1.0)
    for seed in range(len(again.NAMES)):
        assert again.main(["--seed", str(seed)]) == 0
    assert found == again.NAMES


# -------------------------------------------------------------------- what paired seeds show


def test_the_interval_of_a_mean():
    # s = √(5/3), and Student's t for three degrees of freedom: its angles are 1.6e-5 apart, and
    # dt = √ν·(1 + tan²θ)·dθ, so t is off by at most a part in a thousand here
    for level, t in ((0.95, 3.18245), (0.99, 5.84091)):
        half = t * math.sqrt(5 / 3) / 2
        found = common.interval([1, 2, 3, 4], level)
        assert found == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-3)
    # that of 1 to 4 is from 0.45 at 95 %, and from −1.27 at 99 %
    assert common.verdict([1, 2, 3, 4]) == common.HOLDS
    assert common.verdict([1, 2, 3, 4], level=0.99) == common.OPEN


CLEAR = [1.0, 1.1, 0.9, 1.0]


@pytest.mark.parametrize(
    "above, below, found",
    [
        (2, math.inf, common.FAILS),
        (1, math.inf, common.OPEN),
        (-2, 2, common.HOLDS),  # less than 2 in either direction
        (-0.5, 0.5, common.FAILS),
    ],
)
def test_a_verdict_needs_the_whole_interval(above, below, found):
    assert common.claim("", CLEAR, above, below) == found


def test_a_claim_prints_its_evidence(capsys):
    assert common.claim("twice", np.log(2 * np.array([1, 1.1, 0.9])), times=True) == common.HOLDS
    assert capsys.readouterr().out == "twice: 1.993 times (1.553 to 2.558), 3 seeds: holds here\n"


def test_further_seeds_are_where_their_share_says():
    """Within t·s·√(1 + 1/n), of the logarithms; t is that of the interval above."""
    half = 5.84091 * math.sqrt(0.02 / 3) * math.sqrt(1 + 1 / 4)
    expected = np.exp([1 - half, 1 + half])
    assert common.further_seeds(np.exp(CLEAR), 0.99) == pytest.approx(expected, rel=1e-3)
    assert common.further_seeds([1e-300, 1.0], 0.95) == (0, np.inf), "too far apart to tell"


@pytest.mark.parametrize(
    "live, rival, agrees",
    [
        (1.05, [2.0, 2.1], True),
        (0.0, [2.0, 2.1], False),  # farther away than another seed would be
        (1.2, [1.1, 1.2], False),  # within the spread of the seeds, but on the rival's side
        # further seeds are within 1 ± 0.533 in 99 of 100 cases
        (1.5, (), True),
        (1.55, (), False),
    ],
)
def test_a_repeated_run_must_agree_with_its_cell(live, rival, agrees):
    assert common.belongs(live, CLEAR, rival) == agrees
    assert common.agrees(math.exp(live), np.exp(CLEAR), np.exp(rival)) == agrees
