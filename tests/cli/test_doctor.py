"""What `inspect --adapter-path` says about an adapter: one planted adapter per kind of fault."""

import math
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, adapted, quantized, random_examples, random_model, seeds
from outcomes import error_of, run
from safetensors.numpy import load_file, save_file
from small_run import at, train, write_base
from toy_models import change_json, change_tensors

from minilora.batching import collate
from minilora.cli.commands import faults_of_effect
from minilora.evaluation import doctor, metrics
from minilora.formats.checkpoint import CONFIG, WEIGHTS
from minilora.layers import dense, value_and_grad
from minilora.model import loss
from minilora.tree import flatten, get, overlay, unflatten

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
EVERYWHERE = "--lora-r 4 --target-modules all-linear --quantize none"


@pytest.fixture(scope="module")
def trained(place):
    """The folder of a run of a few steps, with its base and its rows next to it."""
    given = place / "base", place / "rows.jsonl", place / "run"
    train(*given, EVERYWHERE, "--iters 12 --learning-rate 0.02 --save-every 50")
    return place / "run"


def planted(trained, folder, change=dict, **fields):
    """Copy a run, change the tensors {name: array} of its adapter and the fields of its config."""
    shutil.copytree(trained, folder)
    change_tensors(folder / WEIGHTS, change)
    change_json(folder / CONFIG, **fields)
    return folder


def without_run(folder):
    """Remove the files of the run from the folder of its adapter; return the folder."""
    for name in ("train_config.toml", "checkpoint.safetensors"):
        (folder / name).unlink()
    return folder


def times(factor, *parts):
    """Return a function that multiplies the tensors whose names have all the parts."""
    return lambda tensors: {
        name: np.float32(factor) * w if all(part in name for part in parts) else w
        for name, w in tensors.items()
    }


def zeros_with_magnitudes(tensors):
    return times(0)(tensors) | {
        name.replace("lora_B.weight", "lora_magnitude_vector"): np.zeros(len(w), "f4")
        for name, w in tensors.items()
        if "lora_B" in name
    }


QKV, MLP = (
    ", ".join(f"model.layers.0.{block}.{name}_proj" for name in names)
    for block, *names in (("self_attn", *"qkv"), ("mlp", "gate", "up", "down"))
)
PLANTED = {
    "zeros": (
        zeros_with_magnitudes, {"use_dora": True},
        "lora_A and lora_B and lora_magnitude_vector is zero in 14 of 14 projections",
    ),
    # the median is that of the six others
    "attention": (
        times(0, "attn", "lora_B"), {}, f"lora_B is zero in 8 of 14 projections ({QKV}, …)",
    ),
    "an outlier": (
        times(1e-3, "layers.0.mlp", "lora_B"), {},
        f"than the median in 3 of 14 projections ({MLP})",
    ),
    "NaN": (times(np.nan, f"{FIRST}A"), {}, f"{FIRST}A.weight has a NaN or an infinite number"),
    "rank": (dict, {"r": 2}, "down_proj.lora_A.weight has the shape (4, 24), not (2, 24)"),
    # seen only on the rows of the run
    "sign": (times(-1, "lora_B"), {}, "downhill (below 5%) on these rows in"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_each_fault_has_its_verdict(name, trained, tmp_path):
    change, fields, expected = PLANTED[name]
    folder = planted(trained, tmp_path / "ill", change, **fields)
    printed = run("inspect", *at(folder), status=1)
    last = printed.out.splitlines()[-1]
    assert last.startswith("ill: ") and expected in last and not printed.err
    assert "; " not in last.partition("(one of")[0]  # one fault, and no consequences of it


HEALTHY = doctor.Row("q_proj", (), 4, 2.0, 1.0, 0.5, 1.0, 1.0, 1.0, downhill=0.05)


@pytest.mark.parametrize(
    "fields, median, says",
    [
        ({}, 100.0, ""),
        ({}, 0.01, ""),
        ({"downhill": math.nan}, 1.0, ""),
        ({"ratio": 1e-5}, 1e-5, ""),
        ({"ratio": 100.0}, 100.0, ""),
        ({"ratio": 0.9e-5}, 1e-5, "‖ΔW‖/‖W‖ is below 1e-05"),
        ({"ratio": 100.1}, 100.0, "‖ΔW‖/‖W‖ is above 100"),
        ({"ratio": math.nan}, 1.0, "‖ΔW‖/‖W‖ is above 100"),
        ({}, 100.1, "‖ΔW‖/‖W‖ is 100 times more or less than the median"),
        ({}, 0.0099, "‖ΔW‖/‖W‖ is 100 times more or less than the median"),
        ({"downhill": 0.0499}, 1.0, "B does not lead downhill (below 5%) on these rows"),
    ],
)
def test_the_limits_of_a_healthy_projection(fields, median, says):
    assert doctor.fault_of(HEALTHY._replace(**fields), median) == says


def test_a_loss_on_the_rows_may_be_a_thousandth_higher(monkeypatch):
    losses = iter([1.0, 1.0009, 1.0, 1.0011, 1.0, math.nan])
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: {"loss": next(losses)})
    monkeypatch.setattr(doctor, "logits_change", lambda *_: 1.0)
    found = [faults_of_effect(Mock(), None, random_examples(TINY, 1), "them") for _ in range(3)]
    assert [len(faults) for faults in found] == [0, 1, 1]


def test_without_its_rows_another_sign_is_not_seen(trained, tmp_path):
    """All numbers stay usual."""
    ill = without_run(planted(trained, tmp_path / "sign", times(-1, "lora_B")))
    assert "\nhealthy" in run("inspect", *at(ill)).out
    said = run("inspect --data notes", *at(ill), status=1).out
    assert "loss on 16 of the rows of notes: " in said
    assert "\nill: B does not lead downhill (below 5%) on these rows in" in said


def test_a_file_of_peft_does_not_tell_its_base(trained, tmp_path):
    folder = without_run(planted(trained, tmp_path / "peft"))
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})
    other = write_base(tmp_path / "other", seed=1)
    printed = run("inspect --model", other, *at(folder)).out
    assert "the file does not tell on which base it was trained" in printed


def test_an_update_that_is_not_finite_is_an_error_that_names_its_projection(trained, tmp_path):
    folder = planted(trained, tmp_path / "infinite", times(1e30, "lora_"))
    assert "q_proj" in error_of(run, "inspect", *at(folder))


# half of the widest gap between two numbers of a format whose largest is 1, rounded up
HALF_GAP = {"nf4": 0.153, "fp4": 0.168, "int8": 0.004}


@given(
    seeds, st.sampled_from(("none", "nf4", "int8")), st.integers(1, 5), st.floats(-6, 3),
    st.booleans(),
)  # fmt: skip
def test_the_numbers_are_those_of_the_dense_matrices(seed, scheme, r, exponent, rs):
    fields = {"r": r, "lora_alpha": 10**exponent, "use_rslora": rs}
    adapters, model = adapted(random_model(TINY, seed), seed, **fields)
    if scheme != "none":
        model = quantized(model, scheme)
    path = "model.layers.1.self_attn.v_proj"
    row = doctor.measure(path, adapters, model, model)
    node = get(adapters, path)
    ba = np.float64(node["lora_B"]) @ np.float64(node["lora_A"])
    update = node["lora_scaling"] * ba
    w = np.float64(dense(get(model.base, f"{path}.weight")))
    # BA is computed in float32: 5 products and sums of each element, each rounded once, and the
    # terms may cancel; ‖|B||A|‖ bounds their sum
    size = np.linalg.norm(np.abs(node["lora_B"]) @ np.abs(node["lora_A"])) * node["lora_scaling"]
    error = 7 * 2**-24 * size
    ratio = np.linalg.norm(update) / np.linalg.norm(w)
    assert abs(row.ratio - ratio) <= error / np.linalg.norm(w) + 1e-12 * ratio
    squares = np.linalg.svd(ba, compute_uv=False) ** 2
    np.testing.assert_allclose(row.first, squares[0] / squares.sum(), rtol=1e-9)
    for name, kept in zip(doctor.SCHEMES, row[6:9]):
        # kept − 1 = ⟨e, ΔW⟩/‖ΔW‖² with the error e of rounding Ŵ + ΔW
        largest = 1.2 * np.abs(w).max() + np.abs(update).max()  # Ŵ may exceed W by a half gap
        e = (HALF_GAP[name] + 1e-5) * largest * np.sqrt(w.size)
        assert abs(kept - 1) <= e / np.linalg.norm(update) + 1e-3
        assert doctor.share_kept(path, w, 0 * w, name) == 0


def test_the_direction_is_the_better_one_of_the_start_and_half_way(monkeypatch):
    adapters, model = adapted(random_model(TINY))
    examples = random_examples(TINY, 5)
    factors = {path: w for path, w in flatten(adapters).items() if path.endswith("lora_B")}
    cosines = []
    for part in (0, np.float32(0.5)):
        at_part = overlay(adapters, unflatten({path: part * b for path, b in factors.items()}))
        _, grads = value_and_grad(loss)(at_part, model, collate([[e] for e in examples]))
        pairs = [(b.ravel(), -get(grads, path).ravel()) for path, b in factors.items()]
        cosines.append([np.dot(*pair) / np.prod(np.linalg.norm(pair, axis=1)) for pair in pairs])
    assert {*np.argmax(cosines, axis=0)} == {0, 1}, "each of the two is the better one for some"
    monkeypatch.setattr(metrics, "TOKENS", 20)  # in several batches
    found = doctor.directions(adapters, model, examples)
    # the gradients are sums of float32 in another order
    assert [*found.values()] == pytest.approx(np.max(cosines, axis=0), abs=1e-5)


def test_what_the_softmax_does_not_see_is_no_change_of_logits():
    z = np.random.default_rng(0).standard_normal((1, 3, 5))
    shifted = doctor.centered(z + [[[1.0], [2.0], [4.0]]])
    # sums of five numbers below 8, in float64
    np.testing.assert_allclose(shifted, doctor.centered(z), atol=40 * 2.0**-53)
