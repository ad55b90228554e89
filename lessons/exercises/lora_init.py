"""lora-init: initialize an adapter that does not change the model yet and can learn.

For each path of `target_paths(base, lora_config)`, with r, scaling =
lora_config.rank_and_scaling(path) and a weight of shape (out, in), `set_leaf` a node at the path
into a new tree, `adapters`. The node is a dict with

- "lora_A": (r, in) float32, drawn from `rng`, uniform between −1/√in and 1/√in;
- "lora_B": (out, r) float32, zeros;
- "lora_scaling": scaling;
- "lora_dropout": lora_config.lora_dropout.

Return `adapters`. Do not change the base.
"""

import numpy as np

from minilora.config import LoraConfig
from minilora.tree import flatten

CASES = {
    "layers": range(1, 3),
    "r": range(2, 5),
    "alpha": [3.0, 16.0],
    "everything": [False, True],
    "dropout": [0.0, 0.1],
    "patterns": [False, True],
    "rslora": [False, True],
}
HIDDEN = {"layers": range(3, 5), "r": range(5, 8), "alpha": [5.0]}


def arguments(rng, layers, r, alpha, everything, dropout, patterns, rslora):
    def layer():
        return {
            "self_attn": {
                name: {"weight": rng.uniform(-1, 1, (out, 64)).astype("f4")}
                for name, out in (("q_proj", 32), ("v_proj", 16))
            },
            "mlp": {"down_proj": {"weight": rng.uniform(-1, 1, (64, 48)).astype("f4")}},
        }

    base = {"model": {"layers": {str(i): layer() for i in range(layers)}}}
    names = ("q_proj", "v_proj", "down_proj") if everything else ("v_proj",)
    config = LoraConfig(
        r, alpha, dropout, names, rslora,
        rank_pattern={"v_proj": r + 1} if patterns else {},
        alpha_pattern={"down_proj": 7.0} if patterns else {},
    )  # fmt: skip
    return base, config, np.random.default_rng(int(rng.integers(1000)))


def config_of_adapter(a):
    """Describe how lora_A fills ±1/√in. Of 96 draws, the largest is below ¾ of the bound, or the
    mean outside ±0.4 of it, with a probability of 10⁻¹¹."""
    a = np.asarray(a, float) * np.sqrt(a.shape[-1])
    low, high, mean = a.min(), a.max(), a.mean()
    if low == high == 0:
        return "zero"
    right = -1 <= low < -0.75 and 0.75 < high <= 1 and abs(mean) < 0.4 and abs(a).mean() < 0.7
    return "uniform" if right else f"from {low:.1g} to {high:.1g} times 1/√in, mean {mean:.1g}"


def observe(result, base, config, rng):
    """Return range and mean of random numbers, and all other leaves unchanged."""
    seen = {}
    for path, leaf in flatten(result).items():
        random = path.endswith("lora_A") or (np.any(leaf) and path.endswith("lora_B"))
        seen[path] = (np.shape(leaf), config_of_adapter(leaf)) if random else leaf
    return seen


def tolerance(*_):
    """Norms of 64 float32 numbers of at most 1, at most 8."""
    return 64 * 2.0**-24


def property_drawn_from_the_generator(function, base, config, rng):
    """equal generators give equal numbers, others do not, and no two rows of A are equal"""

    def drawn(seed):
        leaves = flatten(function(base, config, np.random.default_rng(seed)))
        return np.concatenate([np.asarray(w)[:, :40] for p, w in leaves.items() if "_A" in p])

    first = drawn(1)
    assert np.array_equal(first, drawn(1)), "the same generator gives other numbers"
    if first.any():
        assert not np.array_equal(first, drawn(2)), "another generator gives the same numbers"
        assert len(np.unique(first, axis=0)) == len(first), "some rows of A are equal"


def property_the_base_at_first(function, base, config, rng):
    """BA is zero"""
    leaves = flatten(function(base, config, rng))
    for path in leaves:
        if path.endswith("lora_A"):
            update = leaves[path.replace("lora_A", "lora_B")] @ leaves[path]
            assert not update.any(), f"{path}: BA is not zero"
