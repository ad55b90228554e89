"""Which weights are quantized, and the report of their errors."""

from dataclasses import replace

import numpy as np
import pytest
from models import EVERY_BASE, TINY, fingerprint, quantized, random_model
from outcomes import refused

from minilora import Model, Source, load, nf4
from minilora.quant import int8
from minilora.quant.schemes import (
    SCHEMES,
    error_report,
    is_projection,
    leaf_in,
    quantize,
    quantize_leaf,
    storage,
)
from minilora.tree import flatten, unflatten

CONFIG = replace(TINY, hidden_size=32, intermediate_size=64, tie_word_embeddings=False)


@EVERY_BASE
def test_only_the_seven_projections_change(scheme):
    model = random_model(CONFIG)._replace(source=Source("m", digest="d"))
    leaves, before = flatten(model.base), fingerprint(model.base)
    found = quantized(model, scheme)
    source = Source("m", scheme, None if scheme in ("none", "int8") else 16, "d")
    assert found == model._replace(base=found.base, source=source)
    assert list(flatten(found.base)) == list(leaves) and fingerprint(model.base) == before
    for path, w in flatten(found.base).items():
        assert (w is not leaves[path]) == (scheme != "none" and "_proj" in path)
        assert w.shape == leaves[path].shape


@pytest.mark.parametrize("name", ["down_proj.bias", "not_down_proj.weight"])
def test_what_is_no_projection(name):
    assert not is_projection(f"model.layers.11.mlp.{name}")


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_error_report_is_what_one_would_compute(scheme):
    model = random_model(CONFIG)
    leaves, norm = flatten(model.base), np.linalg.norm
    rows = error_report(model.base, quantized(model, scheme).base)
    assert [row.path for row in rows] == [path for path in leaves if "_proj" in path]
    for row in rows:
        w = leaves[row.path].astype(np.float64)
        q = quantize_leaf(row.path, w, scheme, 16)
        error = q.dequantize() - w
        assert row.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
        assert row.relative_rmse == pytest.approx(norm(error) / norm(w), rel=1e-6)
        assert row.bits == 8 * q.nbytes / w.size


def test_projections_that_are_quantized_in_two_ways_have_no_scheme():
    w = np.ones((2, 2))
    base = {"q_proj": {"weight": int8.quantize(w)}, "k_proj": {"weight": w}}
    assert storage(base) == ("int8", None)
    base["k_proj"]["weight"] = nf4.quantize(w)
    assert storage(base) == ("none", None)


def test_error_report_with_zeros_and_a_short_block():
    base = {"q_proj": {"weight": np.zeros((3, 7), np.float32)}}
    (row,) = error_report(base, quantized(Model(CONFIG, base)).base)
    assert row[1:3] == (0, 0)


PATH = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "w, scheme, block_size, message",
    [
        (np.ones((4, 4)), "nf5", 64, "unknown scheme 'nf5'"),
        (np.ones((4, 4)), "nf4", 48, f"{PATH}: a block size of 48"),
        (np.ones((4, 4)), "nf4", 64.0, "`block_size` must be .* number from 1, got 64.0"),
        (np.diag([1.0, np.inf]), "int8", 64, f"{PATH}: a weight has a NaN or an infinity"),
        (leaf_in(np.eye(4), "bfloat16"), "nf4", 64, f"{PATH} is stored in BF16: quantize the base"),
        (int8.quantize(np.ones((4, 4), "f4")), "nf4", 64, f"{PATH} is quantized already"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_name(w, scheme, block_size, message):
    with refused(message):
        quantize_leaf(PATH, w, scheme, block_size)


def test_a_quantized_model_does_not_become_dense():
    """Nor one with weights in two storages, and a dense one."""
    model = quantize(random_model(CONFIG), "int8")
    mixed = flatten(model.base)
    for path, w in zip(filter(is_projection, [*mixed]), (np.eye(8), nf4.quantize(np.eye(8)))):
        mixed[path] = w
    with refused(r"quantized already: minilora.merge\({}, model\) is dense"):
        quantize(model._replace(base=unflatten(mixed)), "none")


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_a_block_size_without_blocks_is_refused(scheme):
    for call, first in ((quantize, random_model(CONFIG)), (load, "micro")):
        with refused(f"`block_size` has no effect with `scheme` {scheme}"):
            call(first, scheme, 0)
