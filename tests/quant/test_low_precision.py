"""The embedding and the head in the type of their file: reading and writing lose no bit."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from autograd import make_vjp
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, adapted, bits, quantized, random_base, random_batch, seeds
from toy_models import (
    CONFIG,
    GGUF_CONFIG,
    gguf,
    gguf_metadata,
    gguf_tensors,
    leaves,
    needs_hf,
)

import minilora
from minilora import kernels, layers, model
from minilora.config import InputError
from minilora.evaluation import metrics
from minilora.evaluation.memory import nbytes
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.formats.safetensors_file import encode
from minilora.kernels import fused, fused_loss, weights
from minilora.kernels import low_precision as compiled
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.quant import int8, low_precision
from minilora.quant.low_precision import LowPrecision, halves
from minilora.quant.schemes import error_report
from minilora.tree import flatten, get, named_leaves, num_parameters, overlay, tree_map, unflatten

UNIT = 2.0**-24  # of float32: half of the distance from 1 to the next number
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KINDS = ("Q8_0", "F16", "BF16")
EACH = pytest.mark.parametrize("kind", KINDS)


def some(kind, rows=70, blocks=2, seed=0):
    """A stored matrix of any finite bits: subnormal numbers, both zeros, the largest."""
    rng = np.random.default_rng(seed)
    if kind == "Q8_0":
        codes = rng.integers(-128, 128, (rows, 32 * blocks), np.int8)
        scales = rng.integers(0, 0x7C00, (rows, blocks), np.uint16).view(np.float16)
        return LowPrecision(kind, codes, scales.astype(np.float32))
    magnitudes = rng.integers(0, low_precision.INFINITY[kind], (rows, 32 * blocks), np.uint16)
    return halves(magnitudes | rng.choice(np.uint16([0, 0x8000]), magnitudes.shape), kind)


def of(kind, w):
    """The matrix w rounded into that kind."""
    if kind != "Q8_0":
        return halves(encode(w, kind), kind)
    blocks = w.reshape(len(w), -1, 32)
    scales = (np.abs(blocks).max(axis=2) / 127).astype(np.float16).astype(np.float32)
    codes = np.rint(blocks / scales[..., None]).clip(-128, 127).astype(np.int8)
    return LowPrecision(kind, codes.reshape(w.shape), scales)


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
    w, q = some("Q8_0"), int8.Int8(np.ones((4, 32), np.int8), np.ones(4, np.float32))
    out = np.zeros((2, 32), np.float32)
    for read, first, of, to in (
        (compiled.read_int8_rows, 3, q, out),  # rows beyond the last
        (compiled.read_int8_rows, -2, q, out),
        (compiled.read_int8_rows, 0, q, out[:, :31]),
        (compiled.read_int8_rows, 0, int8.Int8(q.codes, q.absmax[:1]), out),
        (compiled.read_rows, 69, w, np.zeros((2, 64), np.float32)),
        (compiled.read_rows, -1, w, np.zeros((2, 64), np.float32)),
        (compiled.read_rows, 0, w, out),
        (compiled.read_rows, 0, replace(w, scales=w.scales[:2]), np.zeros((2, 64), np.float32)),
        (compiled.read_rows, 0, replace(w, scales=w.scales[:, :0]), np.zeros((2, 64), np.float32)),
    ):
        with pytest.raises(InputError):
            read(of, first, to)
    x = np.ones(64, np.float32)
    for bad in (replace(w, scales=np.ones((70, 3), np.float32)), replace(w, scales=w.scales[:2])):
        with pytest.raises(InputError):
            compiled.matvec(bad, x)
    with pytest.raises(InputError):
        compiled.matvec(w, x[:63])


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_every_sixteen_bits(kind):
    w = halves(np.arange(2**16, dtype=np.uint16).reshape(64, 1024), kind)
    dense = exact(w)
    at = np.isfinite(dense)
    assert not w.is_finite() and at.sum() == 2 * low_precision.INFINITY[kind]
    with np.errstate(invalid="ignore"):  # a NaN times one
        assert bits(w.dequantize()[at]) == bits(dense[at])


def test_many_rows_are_shared_out():
    w = some("Q8_0", rows=3000)
    assert bits(weights.dense(w)) == bits(exact(w))


@EACH
@given(seeds)
def test_matvec(kind, seed):
    """Each way adds up to 65 roundings of the size of Σ|w x|; what float32 cannot hold is zero."""
    rng = np.random.default_rng(seed)
    w, x = some(kind, 9, 2, seed), rng.standard_normal(64).astype(np.float32)
    x *= np.float32(1e-3) if kind != "BF16" else np.float32(1e-6)  # BF16 reaches 3·10³⁸
    dense = exact(w).astype(np.float64)
    bound = 66 * UNIT * (np.abs(dense) @ np.abs(x)) + 64 * 2.0**-126
    y = compiled.matvec(w, x)
    assert (np.abs(y - dense @ x) <= bound).all()
    assert bits(weights.matmul(x, w)) == bits(y) == bits(weights.matmul(x[None, None], w))
    rows = np.stack([x, -x])
    assert bits(layers.matmul(rows, w)) == bits(rows @ exact(w).T)


def test_matvec_of_small_numbers():
    """Moved bits times a small x are below float32's range; the numbers times x are not."""
    w, x = of("F16", np.full((3, 32), 2.0**-14, np.float32)), np.full(32, 2.0**-30, np.float32)
    assert (compiled.matvec(w, x) == 32 * 2.0**-44).all()


@pytest.mark.parametrize("tile", [1, 3, 70, 4096])
@EACH
def test_tiles(monkeypatch, kind, tile):
    w, h = of(kind, exact(some("F16"))), np.random.default_rng(1).standard_normal((5, 64))
    dense, h = exact(w), h.astype(np.float32)
    parts = [(at, part.copy()) for at, part in weights.tiles(w, tile)]
    assert bits(np.concatenate([part for _, part in parts])) == bits(dense)
    assert all(bits(dense[at]) == bits(part) for at, part in parts)
    assert bits(np.concatenate([part for _, part in weights.tiles(dense, tile)])) == bits(dense)
    monkeypatch.setattr(weights.tiles, "__defaults__", (tile,))
    y = weights.matmul(h, w)
    # two sums of 64 terms in some order, each rounding at most of the terms' sizes
    assert (np.abs(y - h @ dense.T) <= 2 * 64 * UNIT * (np.abs(h) @ np.abs(dense.T))).all()


# ------------------------------------------------------------------------------ in a model


def twins(kind, seed=0, tied=True):
    """(config, a base with stored tables, the same with these dense)."""
    config = replace(TINY, hidden_size=32, vocab_size=70, tie_word_embeddings=tied)
    held = tree_map(lambda w: w, quantized(random_base(config, seed)))
    for path in (EMBEDDING, HEAD)[: 1 if tied else 2]:
        name = path.removesuffix(".weight")
        get(held, name)["weight"] = of(kind, get(held, name)["weight"])
    return config, held, tree_map(lambda w: exact(w) if isinstance(w, LowPrecision) else w, held)


def loss_and_gradient(ops, hidden, head, batch):
    f = lambda h: ops.cross_entropy(h, head, batch["targets"], batch["mask"])  # noqa: E731
    vjp, loss = make_vjp(f)(hidden)
    return loss, vjp(1.0)


@EACH
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ops", [layers, fused])
def test_a_step_equals_that_of_dense_matrices(monkeypatch, kind, tied, ops):
    monkeypatch.setattr(fused_loss, "TILE", 16)  # five tiles, the last one short
    config, held, dense = twins(kind, tied=tied)
    batch = random_batch(config)
    head, twin = model.lm_head(held), model.lm_head(dense)
    assert isinstance(head, LowPrecision)
    args = (batch["tokens"], batch["segment_starts"], config, ops)
    x = model.hidden_states(held, *args)
    assert bits(x) == bits(model.hidden_states(dense, *args))
    logits, of_twin = (model.forward({}, b, batch["tokens"], config, ops) for b in (held, dense))
    # a logit is a sum of 32 terms, which a tile adds in another order
    size = np.abs(x) @ np.abs(exact(head)).T
    assert (np.abs(logits - of_twin) <= 2 * 32 * UNIT * size).all()
    loss, grad = loss_and_gradient(ops, x, head, batch)
    expected, of_twin = loss_and_gradient(ops, x, twin, batch)
    # a logit is a sum of 32 terms, ∂L/∂h of 70, in another order: the bounds of test_fused.py
    h, e, n = np.abs(x).max(), np.abs(twin).max(), batch["mask"].sum()
    of_p = 2 * (32 + 1) * (32 * h * e + 1) + 70 + 12
    assert abs(loss - expected) <= of_p * UNIT
    assert np.abs(grad - of_twin).max() <= 2 * e * (of_p + 70) / n * UNIT
    assert np.abs(of_twin).max() > 0.01


@EACH
def test_gradients_of_the_adapters(kind):
    """The same products in the same order, the loss's gradient apart, and that is rounding."""
    config, held, dense = twins(kind)
    batch, grads = random_batch(config), []
    for base in (held, dense):
        adapters, frozen = adapted(base)
        _, grad = value_and_grad(minilora.loss)(adapters, frozen, batch, config)
        grads.append(flatten(grad))
    norm = max(np.abs(g).max() for g in grads[1].values())
    for path, g in grads[1].items():
        # (a few hundred roundings through three layers' products, each of the largest's size)
        assert np.abs(grads[0][path] - g).max() <= 1000 * UNIT * norm, path


@EACH
def test_generation_and_scores(kind):
    config, held, dense = twins(kind, tied=False)
    said = [
        list(minilora.generate({}, base, [1, 2, 3], config, max_tokens=12))
        for base in (held, dense)
    ]
    assert said[0] == said[1] and len(set(said[0])) > 2
    batch = random_batch(config)
    parts = [metrics.token_scores(base, batch, config, kernels.ops) for base in (held, dense)]
    assert bits(parts[0]["hit"]) == bits(parts[1]["hit"])
    np.testing.assert_allclose(parts[0]["nll"], parts[1]["nll"], rtol=0, atol=1e-5)


def test_a_trained_embedding_or_head_takes_its_place():
    config, held, dense = twins("Q8_0")
    adapters, frozen = adapted(held)
    adapters = also_train(adapters, frozen, ("head",))
    head = model.lm_head(overlay(frozen, adapters))
    assert type(head) is np.ndarray and bits(head) == bits(get(dense, EMBEDDING))
    trained = {"model": {"embed_tokens": {"weight": get(dense, EMBEDDING) + 1}}}
    batch = random_batch(config)
    grads = make_vjp(lambda a: minilora.loss(a, held, batch, config))(trained)[0](1.0)
    assert np.abs(get(grads, EMBEDDING)).max() > 0


@EACH
def test_what_is_made_of_such_a_base(tmp_path, kind):
    config, held, dense = twins(kind)
    rows, width = config.vocab_size, config.hidden_size
    stored_bytes = rows * width + 4 * rows if kind == "Q8_0" else 2 * rows * width + 4
    assert get(held, EMBEDDING).nbytes == stored_bytes
    assert nbytes(dense) - nbytes(held) == 4 * rows * width - stored_bytes
    assert num_parameters(held) == num_parameters(dense)
    report = error_report(random_base(config), held)
    assert [row.path for row in report] == [
        p for p, _ in named_leaves(held) if p.endswith("_proj.weight")
    ]
    adapters, frozen = adapted(held)
    merged = minilora.merge(adapters, frozen)
    assert all(type(w) is np.ndarray for _, w in named_leaves(merged))
    assert bits(get(merged, EMBEDDING)) == bits(get(dense, EMBEDDING))
    save_pretrained(tmp_path / "dense", config, held)
    save_quantized(tmp_path / "quantized", config, held)
    for name in ("dense", "quantized"):
        where = tmp_path / name / "model.safetensors"
        assert bits(safetensors.numpy.load_file(where)[EMBEDDING]) == bits(get(dense, EMBEDDING))


# ------------------------------------------------------------------------------- from files


def gguf_with(tmp_path, kind, w, damage=None):
    """A GGUF file whose embedding and head have this type, written byte by byte."""
    number = {"F32": 0, "F16": 1, "BF16": 30, "Q8_0": 8, "Q4_0": 2}[kind]
    tensors = gguf_tensors(w)
    for name in ("token_embd.weight", "output.weight"):
        if name in tensors:
            rng, (_, shape, _) = np.random.default_rng(5), tensors[name]
            sixteen = some("F16" if kind != "BF16" else "BF16", shape[0], shape[1] // 32).codes
            if damage is not None:
                sixteen[3, 0] = damage
            if kind in ("Q8_0", "Q4_0"):  # a row is one block: its scale, its codes
                codes = rng.integers(0, 256, (shape[0], 32 if kind == "Q8_0" else 16), np.uint8)
                sixteen = np.concatenate([sixteen[:, :1].copy().view(np.uint8), codes], axis=1)
            raw = sixteen.tobytes()
            if kind != "F32":
                tensors[name] = (number, shape, raw)
    return gguf(tmp_path / "m.gguf", gguf_metadata(), tensors)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "F32", "Q4_0"])
def test_a_gguf_files_tables_stay_in_their_type(tmp_path, kind, tied):
    needs_hf()
    w = leaves(replace(GGUF_CONFIG, tie_word_embeddings=tied))
    path = gguf_with(tmp_path, kind, w)
    dense = flatten(load(path)[1])
    held = flatten(load(path, "nf4")[1])
    beside_dense = flatten(load(path, low_precision=True)[1])
    assert type(dense[EMBEDDING]) is np.ndarray
    for name in (EMBEDDING, HEAD)[: 1 if tied else 2]:
        assert type(beside_dense[name]) is type(held[name])
        if kind in KINDS:
            assert isinstance(held[name], LowPrecision) and held[name].kind == kind
        else:
            assert type(held[name]) is np.ndarray
        assert bits(layers.dense(held[name])) == bits(dense[name])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_refused(tmp_path, kind):
    needs_hf()
    infinity = low_precision.INFINITY["BF16" if kind == "BF16" else "F16"]
    for damage in (infinity, infinity + 1, infinity | 0x8000):
        path = gguf_with(tmp_path, kind, leaves(GGUF_CONFIG), damage)
        for scheme in ("none", "nf4"):
            refused = pytest.raises(InputError, match=r"token_embd.weight has a NaN or an infinite")
            with refused, np.errstate(invalid="ignore"):
                load(path, scheme)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folders_embedding_stays_in_its_type(tmp_path, dtype):

    base = unflatten(leaves())
    save_pretrained(tmp_path / "dense", CONFIG, base, dtype=dtype)
    expected = get(load(tmp_path / "dense")[1], EMBEDDING)
    held = load(tmp_path / "dense", "int8")[1]
    save_quantized(tmp_path / "quantized", CONFIG, held, dtype=dtype)
    kind = {"float16": "F16", "bfloat16": "BF16"}.get(dtype)
    for base in (held, load(tmp_path / "quantized")[1]):  # quantized here, and in the file
        w = get(base, EMBEDDING)
        assert w.kind == kind if kind else type(w) is np.ndarray
        assert bits(layers.dense(w)) == bits(expected)
