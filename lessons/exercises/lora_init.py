"""lora-init: an adapter that changes nothing and can learn."""

import numpy as np

from minilora.config import LoraConfig
from minilora.tree import flatten

CASES = {
    "layers": (1, 2),
    "r": (2, 4),
    "alpha": [3.0, 16.0],
    "everything": [False, True],
}


def arguments(rng, layers, r, alpha, everything):
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
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=names)
    return base, config, np.random.default_rng(int(rng.integers(1000)))


def observe(result, base, config, rng):
    """Of random numbers, whether they are all zero and fill the range of 1/√in: at least two rows
    of 48 stay below half the bound once in 2⁹⁶."""
    adapters, frozen = result
    seen = {}
    for path, leaf in flatten(adapters).items():
        leaf = np.asarray(leaf)
        bound = 1 / np.sqrt(leaf.shape[-1])
        largest = np.abs(leaf).max()
        kind = "zero" if largest == 0 else "filled" if bound / 2 < largest <= bound else "otherwise"
        seen[path] = (leaf.shape, str(leaf.dtype), kind)
    fixed = {p: v for p, v in flatten(frozen).items() if p.endswith(("_scaling", "_dropout"))}
    return {"trained": seen, "beside the weights": fixed}


def property_the_base_at_first(function, base, config, rng):
    """BA is zero, and the frozen weights are the base's own arrays"""
    adapters, frozen = function(base, config, rng)
    trained, weights = flatten(adapters), flatten(base)
    for path in trained:
        if path.endswith("lora_A"):
            update = trained[path.replace("lora_A", "lora_B")] @ trained[path]
            assert not update.any(), f"{path}: BA is not zero"
    frozen = flatten(frozen)
    assert all(np.array_equal(frozen[path], w) for path, w in weights.items())
