"""Which weights are quantized, and the report of their errors."""

from dataclasses import replace

import numpy as np
import pytest
from models import TINY, random_model
from outcomes import refused

from minilora import Model, Source, load, nf4
from minilora.quant import int8, schemes
from minilora.quant.schemes import (
    SCHEMES,
    error_report,
    is_projection,
    leaf_in,
    quantize,
    quantize_leaf,
)
from minilora.tree import flatten, unflatten

BLOCK_SIZES = {scheme: None if scheme in ("none", "int8") else 32 for scheme in SCHEMES}
CONFIG = replace(TINY, hidden_size=32, intermediate_size=64, tie_word_embeddings=False)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_the_seven_projections_change(scheme):
    model = random_model(CONFIG)._replace(source=Source("m", digest="d"))
    base = model.base
    before = {path: w.copy() for path, w in flatten(base).items()}
    quantized = quantize(model, scheme, BLOCK_SIZES[scheme])
    source = Source("m", scheme, BLOCK_SIZES[scheme], "d")
    assert quantized == model._replace(base=quantized.base, source=source)
    assert list(flatten(quantized.base)) == list(before)
    for path, w in flatten(quantized.base).items():
        assert hasattr(w, "dequantize") == (scheme != "none" and "_proj" in path)
        assert w.shape == before[path].shape
        np.testing.assert_array_equal(flatten(base)[path], before[path])


@pytest.mark.parametrize("name", ["down_proj.bias", "not_down_proj.weight"])
def test_what_is_no_projection(name):
    assert not is_projection(f"model.layers.11.mlp.{name}")


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_error_report_is_what_one_would_compute(scheme):
    model = random_model(CONFIG)
    base = model.base
    rows = error_report(base, quantize(model, scheme, BLOCK_SIZES[scheme]).base)
    assert [row.path for row in rows] == [path for path in flatten(base) if "_proj" in path]
    for row in rows:
        w = flatten(base)[row.path].astype(np.float64)
        q = quantize_leaf(row.path, flatten(base)[row.path], scheme, 32)
        error, norm = q.dequantize() - w, np.linalg.norm
        assert row.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
        assert row.relative_rmse == pytest.approx(norm(error) / norm(w), rel=1e-6)
        assert row.bits == 8 * q.nbytes / w.size


def test_projections_that_are_quantized_in_two_ways_have_no_scheme():
    w = np.ones((2, 2))
    weights = {"q_proj": int8.quantize(w), "k_proj": w, "v_proj": nf4.quantize(w)}
    base = {name: {"weight": leaf} for name, leaf in weights.items()}
    assert schemes.storage(base) == ("none", None)
    del base["v_proj"]
    assert schemes.storage(base) == ("int8", None)


def test_error_report_with_zeros_and_a_short_block():
    base = {"q_proj": {"weight": np.zeros((3, 7), np.float32)}}
    (row,) = error_report(base, quantize(Model(CONFIG, base), "nf4", 16).base)
    assert row[1:3] == (0, 0)


PATH = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "w, scheme, block_size, message",
    [
        (np.ones((4, 4)), "nf5", 64, "unknown scheme 'nf5'"),
        (np.ones((4, 4)), "nf4", 48, f"{PATH}: a block size of 48"),
        *(
            (np.ones((4, 4)), "nf4", size, f"`block_size` must be .* number from 1, got {size}")
            for size in (64.0, 0)
        ),
        (np.diag([1.0, np.inf]), "int8", 64, f"{PATH}: a weight has a NaN or an infinity"),
        (leaf_in(np.eye(4), "bfloat16"), "nf4", 64, f"{PATH} is stored in BF16: quantize the base"),
        (nf4.quantize(np.ones((4, 4))), "int8", 64, f"{PATH} is quantized already"),
        (int8.quantize(np.ones((4, 4), "f4")), "nf4", 64, f"{PATH} is quantized already"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_name(w, scheme, block_size, message):
    with refused(message):
        quantize_leaf(PATH, w, scheme, block_size)


def test_a_quantized_model_does_not_become_dense():
    model = quantize(random_model(CONFIG), "int8")
    leaves = flatten(model.base)
    first = next(path for path, w in leaves.items() if isinstance(w, int8.Int8))
    mixed = model._replace(base=unflatten(leaves | {first: np.ones(leaves[first].shape, "f4")}))
    nf4_too = model._replace(base=unflatten(leaves | {first: nf4.quantize(np.ones((8, 8)))}))
    for each in (model, mixed, nf4_too):
        with refused(r"quantized already: minilora.merge\({}, model\) is dense"):
            quantize(each, "none")


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_a_block_size_without_blocks_is_refused(scheme):
    for call, first in ((quantize, random_model(CONFIG)), (load, "micro")):
        with refused(f"`block_size` has no effect with `scheme` {scheme}"):
            call(first, scheme, 0)
