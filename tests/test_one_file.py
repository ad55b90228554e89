"""QLoRA in one file equals the package: 4-bit weights, losses. test_conformance.py has the rest."""

import re
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from arrays import KINDS, weights
from hypothesis import given
from hypothesis import strategies as st
from models import seeds
from numpy.testing import assert_allclose, assert_array_equal

import minilora
from minilora import LoraConfig, TrainConfig, data, double_quant, kernels, layers, nf4, training
from minilora.tree import overlay, unflatten

LESSON = Path(__file__).parents[1] / "lessons" / "00_qlora_in_one_file.py"
STEPS, RATE = 200, 2e-3
FEW = 14  # steps of a shorter run
# the largest held-out loss after these steps, and the end of the answer, which few do not learn
AFTER = {FEW: (1.8, ""), STEPS: (0.05, "Who, what, where? Dot, teal doll, barn.")}
LOSSES = 2e-6  # nats
WHOLE = LESSON.read_text("utf-8")
# without the last cell, the curve of the loss, which needs matplotlib
TEXT = WHOLE.partition("# The curve of the loss")[0]
README = (LESSON.parents[1] / "README.md").read_text("utf-8")


@pytest.fixture(scope="module", params=[FEW, pytest.param(STEPS, marks=pytest.mark.long)])
def steps(request):
    return request.param


@pytest.fixture(scope="module")
def run(steps):
    """The lesson run as a script: (its names, the printed text); all its steps take 15 s."""
    matplotlib.use("Agg")  # the lesson shows a curve at its end, and no window may wait here
    text = WHOLE.replace("WARMUP = 200,", f"WARMUP = {steps},")
    names = {"__name__": "__main__"}
    with redirect_stdout(StringIO()) as printed:
        exec(compile(text, str(LESSON), "exec"), names)
    return SimpleNamespace(**names), printed.getvalue()


@pytest.fixture(scope="module")
def lesson(run):
    return run[0]


def test_it_imports_autograd_and_the_standard_library():
    packages = set(re.findall(r"^ *(?:import|from) (\w+)", TEXT, re.MULTILINE))
    assert packages == {"json", "importlib", "pathlib", "typing", "autograd"}


def test_what_it_prints(run, steps):
    lesson, printed = run
    assert not set(lesson.held_out) & set(lesson.rows)
    before, after, merged = printed.split("held-out loss ")[1:]
    largest, answer = AFTER[steps]
    assert float(before.split()[0]) > 4 and float(after.split()[0]) < largest
    assert after.splitlines()[1].endswith(answer)
    if steps == STEPS:  # those with which `minilora learn train` compares
        stored = np.loadtxt(LESSON.parent / "exercises" / "one_file_losses.txt")
        assert np.abs(stored - lesson.losses).max() < 1e-5
    # the loss of the merged model, to the four digits that are printed, and the same answer
    assert merged.splitlines() == after.splitlines()[:2]


# --- 4-bit weights


@given(st.sampled_from(KINDS), st.integers(1, 700), seeds)
def test_the_4_bit_weight_of_a_random_array(lesson, kind, m, seed):
    """m blocks. NumPy and torch add in another order, so the package gets the lesson's mean.

    A weight whose absmax values are all equal has only zeros at the second level.
    """
    w = weights(kind, (m, 64), seed)
    ours, theirs = nf4.quantize(w), lesson.quantize(w)
    assert_array_equal(ours.codes, theirs.codes)
    second = double_quant.double_quantize(ours.absmax, theirs.offset)
    assert_array_equal(second.codes, theirs.absmax_codes)
    assert_array_equal(second.nested_absmax, theirs.nested_absmax)
    back = replace(ours, stored_absmax=second).dequantize()
    assert_array_equal(back.view(np.uint32), lesson.dequantize(theirs).view(np.uint32))


# --- losses


def package_start(lesson):
    """(adapters, model) of the package, where the lesson's training starts."""
    model, _ = minilora.load("micro", "nf4-dq")
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
    adapters, _ = minilora.get_peft_model(model, lora_config, np.random.default_rng(0))
    rng = np.random.default_rng(0)  # the lesson draws its rows before its factors
    for _ in range(len(lesson.rows) + 200):
        lesson.question(rng)
    return overlay(adapters, unflatten(lesson.init_lora(lesson.base, rng))), model


@pytest.mark.parametrize("ops, most", [(layers, 4), (kernels.ops, STEPS)], ids=["plain", "fast"])
def test_the_losses_of_the_steps(lesson, steps, ops, most):
    """The two sides round differently, and training amplifies the difference.

    A loss of 4 is rounded to 2.4e-7; with float32 sums of 16 · 20 such terms, 7e-7 is seen. The
    reference is slow, so it takes the first steps only.
    """
    adapters, model = package_start(lesson)
    model = model._replace(ops=ops)
    settings = TrainConfig(
        steps, batch_size=16, mask_prompt=True, learning_rate=RATE,
        warmup_ratio=lesson.WARMUP / steps,
    )  # fmt: skip
    rows = np.array([{"prompt": prompt, "completion": answer} for prompt, answer in lesson.rows])
    order = np.random.default_rng([0, 0]).permutation(len(rows))  # as `batch_at` draws it
    tokenizer = minilora.load("micro").tokenizer
    examples, _ = data.encode_rows(rows[np.argsort(order)], tokenizer, settings)
    records = training.steps(training.start(adapters, settings), model, examples, settings)
    # end the run early, with the schedule of a whole one
    losses = [record["loss"] for _, record in islice(records, most)]
    assert lesson.losses.shape == (steps,)
    assert_allclose(losses, lesson.losses[:most], rtol=0, atol=LOSSES)


# --- what the texts say


def test_the_readme_says_the_lines_the_steps_and_the_bound():
    code = re.sub(r'""".*?"""', "", TEXT, flags=re.DOTALL)
    lines = re.findall(r"^ *[^ #\n]", code, re.MULTILINE)
    assert f"in {round(len(lines), -1)} lines" in README
    said = re.search(r"over (\d+) training steps\s.* bound of (\S+)·10⁻⁶ nats", README, re.DOTALL)
    assert (int(said[1]), float(said[2]) * 1e-6) == (STEPS, LOSSES)
    shown = re.search(r"## QLoRA in one file\n.*?```python\n(.*?)```", README, re.DOTALL)[1]
    assert all(piece in TEXT for piece in shown.strip().split("\n\n\n"))
