"""The embedding and the head in the type of their file: reading and writing lose no bit."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from models import (
    PATHS,
    TINY,
    U32,
    adapted,
    assert_near,
    bits,
    fast_model,
    quantized,
    random_batch,
    seeds,
    vector,
)
from outcomes import refused
from toy_models import CONFIG, GGUF_CONFIG, gguf, gguf_metadata, gguf_tensors, leaves, needs_hf

import minilora
from minilora import Model, layers
from minilora.evaluation.memory import nbytes
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.formats.safetensors_file import encode
from minilora.kernels import weights
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.model import forward, hidden_states, lm_head, with_adapters
from minilora.quant import int8
from minilora.quant.low_precision import LowPrecision
from minilora.tree import flatten, get, num_parameters, unflatten

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# its bits (those of a scale); larger bits are NaN
INFINITY = {"Q8_0": 0x7C00, "F16": 0x7C00, "BF16": 0x7F80}
EACH = pytest.mark.parametrize("kind", INFINITY)


def some(kind, rows=70, blocks=2, seed=0):
    """A stored matrix of any finite bits: subnormal numbers, both zeros, the largest."""
    rng = np.random.default_rng(seed)
    if kind == "Q8_0":
        codes = rng.integers(-128, 128, (rows, 32 * blocks), np.int8)
        scales = rng.integers(0, INFINITY[kind], (rows, blocks), np.uint16).view(np.float16)
        return LowPrecision(kind, codes, scales.astype(np.float32))
    magnitudes = rng.integers(0, INFINITY[kind], (rows, 32 * blocks), np.uint16)
    return LowPrecision(kind, magnitudes | rng.choice(np.uint16([0, 0x8000]), magnitudes.shape))


def of(kind, w):
    """The matrix w rounded into that kind."""
    if kind != "Q8_0":
        return LowPrecision(kind, encode(w, kind).view(np.uint16))
    scales = np.abs(w).max(axis=1, keepdims=True) / 127  # a row is one block
    return LowPrecision(kind, np.rint(w / scales).astype(np.int8), scales)


def exact(w):
    """The numbers by another way than the module's: NumPy's own float16, float32's upper half."""
    if w.kind == "F16":
        return w.codes.view(np.float16).astype(np.float32)
    if w.kind == "BF16":
        return (w.codes.astype(np.uint32) << 16).view(np.float32)
    return w.codes * np.repeat(w.scales, 32, axis=1)


@EACH
@given(seeds, st.integers(1, 9), st.integers(1, 3))
def test_every_way_of_reading_gives_the_same_bits(kind, seed, rows, blocks):
    w = some(kind, rows, blocks, seed)
    dense = exact(w)
    assert w.shape == dense.shape and w.is_finite()
    assert bits(weights.dense(w)) == bits(layers.dense(w)) == bits(w.dequantize()) == bits(dense)
    index = np.random.default_rng(seed).integers(-rows, rows, (2, 3))
    for at in (index, index[:0], -1, slice(1, 4)):
        assert w[at].shape == dense[at].shape and bits(w[at]) == bits(dense[at])
    for outside in (rows, -rows - 1):
        with pytest.raises(IndexError):
            w[np.array([0, outside])]


def test_sizes_that_do_not_fit_are_refused_before_a_compiled_loop():
    """The loops check no bounds: they would write beyond the end of a row that is too narrow."""
    w, x = some("Q8_0"), np.ones(64, np.float32)
    few, none = (replace(w, scales=scales) for scales in (w.scales[:2], w.scales[:, :0]))
    for matrix in (few, none, int8.Int8(w.codes, x)):
        with refused():
            weights.dense(matrix)
        with refused():
            weights.matvec(matrix, x)
    with pytest.raises(ValueError, match="shape"):
        weights.matvec(w, x[1:])


@pytest.mark.parametrize("kind", [*INFINITY, "int8"])
@given(seeds)
def test_matvec(kind, seed):
    """Each way has up to 70 roundings of the size of Σ|w x|; what float32 cannot hold is zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(64).astype(np.float32)
    if kind == "int8":
        w = int8.quantize(rng.standard_cauchy((9, 64)) * 10.0 ** rng.integers(-35, 30, (9, 1)))
        exact_w = w.codes * (w.absmax[:, None].astype(np.float64) / 127)
    else:
        w = some(kind, 9, 2, seed)
        exact_w = exact(w).astype(np.float64)
    x *= np.float32(1e-6) if kind == "BF16" else np.float32(1e-3)  # BF16 reaches 3·10³⁸
    bound = 70 * U32 * (np.abs(exact_w) @ np.abs(x)) + 200 * 2.0**-126
    y = weights.matvec(w, x)
    assert y.dtype == np.float32 and (np.abs(y - exact_w @ x) <= bound).all()
    for rows in (x, x[None], x[None, None]):
        assert bits(weights.matmul(rows, w)) == bits(y)
    assert weights.matmul(np.float64(x), w).dtype == np.float64


def test_matvec_of_small_numbers():
    """Moved bits times a small x are below float32's range; the numbers times x are not."""
    w, x = of("F16", np.full((3, 32), 2.0**-14, np.float32)), np.full(32, 2.0**-30, np.float32)
    assert (weights.matvec(w, x) == 32 * 2.0**-44).all()


# ------------------------------------------------------------------------------ in a model


def twins(kind, seed=0, tied=True):
    """(a model with stored tables, the same with these dense)."""
    config = replace(TINY, hidden_size=32, vocab_size=70, tie_word_embeddings=tied)
    model = quantized(fast_model(config, seed))
    base = flatten(model.base)
    held = {path: of(kind, base[path]) for path in (EMBEDDING, HEAD) if path in base}
    dense = {path: exact(w) for path, w in held.items()}
    return (model._replace(base=unflatten(base | tables)) for tables in (held, dense))


@EACH
@PATHS
def test_a_model_equals_that_of_dense_matrices(monkeypatch, kind, ops):
    monkeypatch.setattr(weights, "TILE", 16)  # five tiles, the last one short
    held, dense = twins(kind, tied=kind != "F16")
    assert isinstance(lm_head(held.base), LowPrecision)
    batch = random_batch(held.config)

    def computed(model):
        adapters, model = adapted(model._replace(ops=ops))
        tokens = batch["tokens"]
        _, grads = value_and_grad(minilora.loss)(adapters, model, batch)
        return (
            bits(hidden_states(with_adapters(adapters, model), tokens, 0 * tokens)),
            list(minilora.generate(adapters, model, [1, 2, 3], 9)),
            forward(adapters, model, tokens),
            vector(grads),
        )

    (*same, logits, grads), (*expected, of_dense, grads_of_dense) = map(computed, (held, dense))
    assert same == expected
    # sums of 32 (and of 70) terms in another order, through the products of three layers
    assert_near(logits, of_dense, 100 * U32)
    assert_near(grads, grads_of_dense, 1000 * U32)


def test_a_trained_embedding_or_head_takes_its_place():
    held, dense = twins("Q8_0")
    adapters, expected = also_train({}, held.base, ("head",)), get(dense.base, EMBEDDING)
    head = lm_head(with_adapters(adapters, held).base)
    assert type(head) is np.ndarray and bits(head) == bits(expected)
    trained = unflatten({EMBEDDING: expected + 1})
    _, grads = value_and_grad(minilora.loss)(trained, held, random_batch(held.config))
    assert np.abs(get(grads, EMBEDDING)).max() > 0


@EACH
def test_what_is_made_of_such_a_base(tmp_path, kind):
    held, dense = twins(kind)
    rows, width = held.config.vocab_size, held.config.hidden_size
    stored_bytes = rows * width + 4 * rows if kind == "Q8_0" else 2 * rows * width
    assert get(held.base, EMBEDDING).nbytes == stored_bytes
    assert nbytes(dense.base) - nbytes(held.base) == 4 * rows * width - stored_bytes
    assert num_parameters(held.base) == num_parameters(dense.base)
    save_pretrained(tmp_path, held)
    written = safetensors.numpy.load_file(tmp_path / "model.safetensors")[EMBEDDING]
    merged = get(minilora.merge(*adapted(held)).base, EMBEDDING)
    assert type(merged) is np.ndarray
    assert bits(merged) == bits(written) == bits(get(dense.base, EMBEDDING))


# ------------------------------------------------------------------------------- from files


def gguf_with(tmp_path, kind, damage=None):
    """Write a GGUF file whose embedding and head have this type; return its path and one table."""
    tensors = gguf_tensors(leaves(replace(GGUF_CONFIG, tie_word_embeddings=False)))
    _, shape, _ = tensors["output.weight"]
    table = some(kind, shape[0], blocks=1)
    raw = table.codes
    if kind == "Q8_0":  # a row is one block: its scale, its codes
        scales = table.scales.astype(np.float16)
        raw = np.concatenate([scales.view(np.uint8), raw.view(np.uint8)], axis=1)
    if damage is not None:
        raw.view(np.uint16)[3, 0] = damage
    tensor = {"F16": 1, "BF16": 30, "Q8_0": 8}[kind], shape, raw.tobytes()
    tensors |= dict.fromkeys(("token_embd.weight", "output.weight"), tensor)
    return gguf(tmp_path / "m.gguf", gguf_metadata(), tensors), table


@EACH
def test_a_gguf_files_tables_stay_in_their_type(tmp_path, kind):
    needs_hf()
    path, table = gguf_with(tmp_path, kind)
    for options in ({}, {"scheme": "nf4"}, {"low_precision": True}):
        base = load(path, **options).model.base
        for w in (get(base, EMBEDDING), get(base, HEAD)):
            assert getattr(w, "kind", None) == (kind if options else None)
            assert bits(layers.dense(w)) == bits(exact(table))


@EACH
def test_what_is_not_finite_is_refused(tmp_path, kind):
    needs_hf()
    for damage in (INFINITY[kind], INFINITY[kind] | 0x8000):
        path, _ = gguf_with(tmp_path, kind, damage=damage)
        with refused("embd.weight has a NaN or an infinite"):
            load(path, "nf4")


@pytest.mark.parametrize(
    "dtype, kind", [("float32", None), ("float16", "F16"), ("bfloat16", "BF16")]
)
def test_a_folders_embedding_stays_in_its_type(tmp_path, dtype, kind):
    save_pretrained(tmp_path / "dense", Model(CONFIG, unflatten(leaves())), dtype=dtype)
    expected = get(load(tmp_path / "dense").model.base, EMBEDDING)
    held = load(tmp_path / "dense", "int8").model
    save_quantized(tmp_path / "quantized", held, dtype=dtype)
    for model in (held, load(tmp_path / "quantized").model):  # quantized here, and in the file
        w = get(model.base, EMBEDDING)
        assert getattr(w, "kind", None) == kind
        assert bits(layers.dense(w)) == bits(expected)
