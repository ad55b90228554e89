"""one-file-init-lora: create the trained matrices of LoRA.

base is {name: weight}. For each weight that is an NF4Weight, with w.shape = (out, in), put into a
new dict

- "NAME.lora_A": (RANK, in) float32, drawn from `rng`, uniform between −1/√in and 1/√in;
- "NAME.lora_B": (out, RANK) float32, zeros.

Arrays in `base`, such as norms and the embedding, get nothing. Return the dict.
"""

import numpy as np

from minilora.course.one_file import RANK, NF4Weight

CASES = {"layers": range(1, 3), "out": [16, 32], "width": [64, 96]}
HIDDEN = {"layers": range(3, 5), "out": [48, 128], "width": [32, 160]}


def arguments(rng, layers, out, width):
    base = {"model.embed_tokens": rng.uniform(-1, 1, (8, width)).astype("f4")}
    for i in range(layers):
        for name, rows in (("q_proj", out), ("v_proj", 2 * out)):
            codes, absmax = np.zeros(rows * width // 2, "u1"), np.zeros(rows * width // 64, "u1")
            w = NF4Weight(codes, absmax, np.ones(1, "f4"), np.float32(0), (rows, width))
            base[f"model.layers.{i}.self_attn.{name}"] = w
        base[f"model.layers.{i}.input_layernorm"] = np.ones(width, "f4")
    return base, np.random.default_rng(int(rng.integers(1000)))


def filled(a):
    """Describe how A fills ±1/√in. Of 256 uniform draws, the largest is below 0.9 of the bound, or
    the mean outside ±0.25 of it, less than once in 10⁹."""
    a = np.asarray(a, float) * np.sqrt(a.shape[-1])
    low, high, mean = a.min(), a.max(), a.mean()
    right = -1 <= low < -0.9 and 0.9 < high <= 1 and abs(mean) < 0.25 and abs(a).mean() < 0.62
    return "uniform" if right else f"from {low:.1g} to {high:.1g} times 1/√in, mean {mean:.1g}"


def observe(result, base, rng):
    """Return shapes and types, and the range of random numbers."""
    return {name: (np.shape(w), np.asarray(w).dtype.name, filled(w) if np.any(w) else "zero")
            for name, w in result.items()}  # fmt: skip


def property_drawn_from_the_generator(function, base, rng):
    """equal generators give equal numbers, others do not, and no two rows of A are equal"""

    def drawn(seed):
        found = function(base, np.random.default_rng(seed))
        return np.concatenate([w[:, :32] for name, w in found.items() if "lora_A" in name])

    first = drawn(1)
    assert np.array_equal(first, drawn(1)), "the same generator gives other numbers"
    assert not np.array_equal(first, drawn(2)), "another generator gives the same numbers"
    assert len(np.unique(first, axis=0)) == len(first), "some rows of A are equal"


def property_the_base_at_first(function, base, rng):
    """every NF4Weight has an adapter, whose A is not zero and whose BA is zero"""
    adapters = function(base, rng)
    for name, w in base.items():
        if isinstance(w, NF4Weight):
            a, b = (np.asarray(adapters[f"{name}.lora_{factor}"]) for factor in "AB")
            assert len(a) == RANK, f"{name}.lora_A has {len(a)} rows"
            assert a.any(), f"{name}.lora_A is zero"
            assert not (b @ a).any(), name
