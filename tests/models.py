"""Random tiny models for the tests: any shape, tied or not, dense or quantized, any precision."""

import hashlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from hypothesis import strategies as st

from minilora import kernels, layers, lora
from minilora.batching import Example
from minilora.config import ALL_LINEAR, LoraConfig, ModelConfig
from minilora.formats.hf_folder import shapes
from minilora.kernels import fused, threads
from minilora.methods.method import MethodConfig
from minilora.model import Model
from minilora.quant import schemes
from minilora.tree import arrays, flatten, named_leaves, overlay, tree_map, unflatten, without

PATHS = pytest.mark.parametrize("ops", [layers, fused], ids=["plain", "fused"])
FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EVERY_BASE = pytest.mark.parametrize("scheme", schemes.SCHEMES)
# The exponential inside a loop is a polynomial only when it is compiled.
compiled_only = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="NUMBA_DISABLE_JIT is set"
)

U32, U64 = 2.0**-24, 2.0**-53  # the largest relative error of one operation

TINY = ModelConfig(
    vocab_size=11, hidden_size=12, intermediate_size=10, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=6,
)  # fmt: skip


up_to = partial(st.integers, 1)


@st.composite
def configs(draw, max_layers=3):
    """Any shape of model: odd widths, one head, shared keys, heads that do not add up to D."""
    heads = draw(up_to(3))
    return ModelConfig(
        vocab_size=draw(st.integers(3, 17)),
        hidden_size=draw(up_to(13)),
        intermediate_size=draw(up_to(15)),
        num_hidden_layers=draw(up_to(max_layers)),
        num_attention_heads=heads * draw(up_to(3)),
        num_key_value_heads=heads,
        head_dim=draw(st.sampled_from((2, 4, 6))),
        tie_word_embeddings=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from((1e-5, 0.1))),
        sliding_window=draw(st.sampled_from((None, None, 2, 3))),
        qk_norm=draw(st.booleans()),
        query_pre_attn_scalar=draw(st.sampled_from((None, None, 5))),
    )


seeds = st.integers(0, 2**32 - 1)
target_sets = st.sets(st.sampled_from(ALL_LINEAR), min_size=1).map(sorted).map(tuple)


def random_base(config=TINY, seed=0, dtype=np.float32, biases=()):
    """A base with weights of the size that keeps activations near one. `biases`: which have one."""
    rng, leaves = np.random.default_rng(seed), {}
    for path, shape in shapes(config, biases).items():
        w = rng.standard_normal(shape)
        if "norm" in path:
            w = 1 + 0.2 * w
        elif path.endswith("bias"):
            w *= 0.5
        elif "_proj" in path:
            w *= shape[1] ** -0.5
        leaves[path] = w.astype(np.float32).astype(dtype)
    return unflatten(leaves)


def weightless(config):
    """A base without memory, of which only the shapes count."""
    return unflatten(
        {path: np.broadcast_to(np.float32(0), s) for path, s in shapes(config).items()}
    )


def random_model(config=TINY, seed=0, dtype=np.float32, biases=(), ops=layers):
    """A model with a `random_base`, computed by the reference if nothing else is said."""
    return Model(config, random_base(config, seed, dtype, biases), ops)


def fast_model(config=TINY, seed=0, dtype=np.float32):
    """The same, computed by the optimized operations."""
    return random_model(config, seed, dtype, ops=kernels.ops)


def quantized(model, scheme="nf4"):
    """The model with its projections in few bits, in blocks that divide none of its shapes."""
    return schemes.quantize(model, scheme, None if scheme in schemes.WITHOUT_BLOCKS else 16)


def adapted(model, seed=0, **lora_fields):
    """(adapters, model) with both factors random, so that the update is as large as the weight."""
    rng = np.random.default_rng([9, seed])
    adapters = lora.init(model.base, LoraConfig(**lora_fields), rng)
    dtype = model.base["model"]["norm"]["weight"].dtype
    filled = tree_map(lambda w: rng.uniform(-0.5, 0.5, w.shape).astype(dtype), arrays(adapters))
    return overlay(adapters, filled), model


def usual_config(name):
    """The configuration of a method, with its defaults."""
    if name in ("lora", "dora"):
        return LoraConfig(use_dora=name == "dora")
    return MethodConfig(name)


def moved(adapters, f, *others):
    """The adapter with its arrays replaced by f(array, *arrays of the others)."""
    return overlay(adapters, tree_map(f, arrays(adapters), *map(arrays, others)))


def random_batch(config=TINY, seed=0, B=2, T=5, packed=True):
    """A batch whose mask has holes and whose rows, if packed, hold several examples."""
    rng = np.random.default_rng([8, seed])
    tokens, targets = rng.integers(config.vocab_size, size=(2, B, T))
    mask = (rng.random((B, T)) < 0.7).astype(np.float32)
    mask[rng.integers(B), rng.integers(T)] = 1
    starts = random_starts(rng, B, T, packed)
    return {"tokens": tokens, "targets": targets, "mask": mask, "segment_starts": starts}


def random_starts(rng, B, T, packed=True):
    """For every token the position at which its example begins: (B, T), ascending in each row."""
    begins = rng.random((B, T)) < 0.3 * packed
    begins[:, 0] = True
    return np.maximum.accumulate(np.where(begins, np.arange(T), 0), axis=1)


def random_examples(config, n, seed=0, longest=9):
    """n examples of 2 to `longest` tokens; each with a masked prompt of random length."""
    rng, examples = np.random.default_rng([7, seed]), []
    for _ in range(n):
        tokens = rng.integers(config.vocab_size, size=rng.integers(2, longest + 1)).tolist()
        prompt = int(rng.integers(0, len(tokens) - 1))
        examples.append(Example(tokens, [0] * prompt + [1] * (len(tokens) - prompt)))
    return examples


@st.composite
def attention_inputs(draw):
    """(q, k, v, angles, starts, hd) in float64: any groups of heads, one token, packed rows."""
    kv, groups = draw(up_to(3)), draw(up_to(3))
    hd, B, T = draw(st.sampled_from((2, 4, 6))), draw(up_to(3)), draw(up_to(6))
    rng = np.random.default_rng(draw(seeds))
    q, k, v = (rng.standard_normal((B, T, n * hd)) for n in (kv * groups, kv, kv))
    starts = random_starts(rng, B, T, draw(st.booleans()))
    angles = layers.rope_cos_sin(np.arange(T) - starts, replace(TINY, head_dim=hd), np.float64)
    return q, k, v, angles, starts, hd


def as_dtype(tree, dtype):
    """The tree with its arrays cast to another dtype; other leaves do not change."""
    return tree_map(lambda w: w.astype(dtype) if isinstance(w, np.ndarray) else w, tree)


def parts(tree):
    """(path, value) of all that the leaves consist of: a quantized one has several arrays."""
    for path, leaf in sorted(flatten(tree).items()):
        for part in vars(leaf).values() if hasattr(leaf, "dequantize") else (leaf,):
            yield path, part


def fingerprint(tree):
    """A hash of every byte of every leaf, and of the paths."""
    digest = hashlib.sha256()
    for path, part in parts(tree):
        digest.update(path.encode())
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def read_only(tree):
    """The same arrays, read-only: writing to one raises an error."""
    for _, part in parts(tree):
        if isinstance(part, np.ndarray):
            part.flags.writeable = False
    return tree


def untimed(records):
    """The records of a run without what is measured."""
    measured = ("seconds", "peak_rss_mb")
    return [without(record, *measured) for record in records]


def empty_caches(config=TINY):
    """A cache for each layer."""
    return [layers.LayerCache() for _ in range(config.num_hidden_layers)]


def spying(ops, seen):
    """`ops` that append (name, arguments) of each call to `seen`, to see what autograd traces."""

    def call(name, *args, **kwargs):
        seen.append((name, args))
        return getattr(ops, name)(*args, **kwargs)

    spies = {name: partial(call, name) for name in OPERATIONS}
    return SimpleNamespace(**spies, dense=ops.dense, THREADS=1, parallel_map=map)


def on_cores(cores, ops=kernels.ops, parallel_map=threads.parallel_map):
    """`ops` that compute a step in shards for this number of cores."""
    return SimpleNamespace(**vars(ops) | {"THREADS": cores, "parallel_map": parallel_map})


OPERATIONS = ("linear", "attention", "rms_norm", "swiglu", "cross_entropy")


def vector(tree):
    """All numbers of all leaves, in one array."""
    return np.concatenate([w.ravel() for _, w in named_leaves(tree)])


def bits(x):
    """The bytes of an array: equal only if every bit is."""
    return np.ascontiguousarray(x).tobytes()


def assert_near(found, expected, part):
    """Assert that no difference is larger than this part of the largest expected number."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=part * np.abs(expected).max())


def close(a, b, roundings=1000, unit=U64):
    """Assert that outputs of a tiny model are equal but for `roundings` to this unit.

    Each is amplified as badly as can be: 1e4, by RMSNorms near zero, 1/√ε each.
    """
    atol = roundings * 1e4 * unit * max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)
