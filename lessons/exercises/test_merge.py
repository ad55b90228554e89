"""test-merge: a test that every right merge passes, and no usual mistake.

`minilora.load("micro")` gives (config, base, tokenizer); `lora.init(base, LoraConfig(…), rng)`
gives (adapters, base), where `lora.adapted_paths(adapters)` has the paths of the adapted
projections. `minilora.forward(adapters, base, tokens, config)` computes logits; {} is an adapter
that has nothing. A trained norm, {"model": {"norm": {"weight": …}}} in `adapters`, takes the place
of the base's.
"""

import numpy as np

import minilora
from minilora import LoraConfig, lora
from minilora.tree import get, set_leaf


def check(merge):
    """Assert what is true of every right `merge(adapters, base)`; raise on a wrong one.

    `merge` stands for `minilora.lora.merge` or for that function with a mistake in it. The base
    `micro` is small: `minilora.load("micro")`. An adapter as `lora.init` makes it is zero, so give
    it numbers. Ask what the merged model must compute, and what merging must leave alone.
    """
    rng = np.random.default_rng(0)
    config, base, _ = minilora.load("micro")
    adapters, base = lora.init(base, LoraConfig(r=4, lora_alpha=12), rng)
    for path in lora.adapted_paths(adapters):
        b = get(adapters, path)["lora_B"]
        set_leaf(adapters, f"{path}.lora_B", rng.normal(0, 0.05, b.shape).astype("f4"))
    set_leaf(adapters, "model.norm.weight", get(base, "model.norm.weight") + 1)
    before = {path: get(base, path)["weight"].copy() for path in lora.adapted_paths(adapters)}
    tokens = rng.integers(0, config.vocab_size, (1, 12))
    merged = merge(adapters, base)
    apart, together = (
        minilora.forward(*trees, tokens, config) for trees in ((adapters, base), ({}, merged))
    )
    # 21 products of at most 128 terms each, float32
    assert np.abs(apart - together).max() < 21 * 128 * 2**-24 * np.abs(apart).max()
    for path, weight in before.items():
        assert np.array_equal(get(base, path)["weight"], weight), "the base was written to"
