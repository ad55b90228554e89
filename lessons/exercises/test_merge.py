"""test-merge: test merging; right merges must pass, and usual mistakes must fail.

`minilora.load("micro")` gives (model, tokenizer); `minilora.get_peft_model(model, LoraConfig(…),
0)` gives (adapters, model), where `lora.adapted_paths(adapters)` has the paths of the adapted
projections. The weights of `model` are the tree `model.base`. `minilora.forward(adapters, model,
tokens)` computes logits; {} is an empty adapter. A trained norm, {"model": {"norm": {"weight": …}}}
in `adapters`, replaces the norm of the base.
"""

import numpy as np

import minilora
from minilora import LoraConfig, lora
from minilora.tree import get, set_leaf


def check(merge):
    """Raise an error if `merge(adapters, model)`, which returns a model, is wrong.

    `merge` is `minilora.lora.merge` or a copy of it with a mistake. Use the model `micro`. The
    update of a new adapter is zero, so change its numbers. Check what the merged model computes,
    and what merging must not change.
    """
    rng = np.random.default_rng(0)
    model, _ = minilora.load("micro")
    adapters, model = minilora.get_peft_model(model, LoraConfig(r=4, lora_alpha=12), rng)
    base = model.base
    for path in lora.adapted_paths(adapters):
        b = get(adapters, path)["lora_B"]
        set_leaf(adapters, f"{path}.lora_B", rng.normal(0, 0.05, b.shape).astype("f4"))
    set_leaf(adapters, "model.norm.weight", get(base, "model.norm.weight") + 1)
    before = {path: get(base, path)["weight"].copy() for path in lora.adapted_paths(adapters)}
    tokens = rng.integers(0, model.config.vocab_size, (1, 12))
    apart = minilora.forward(adapters, model, tokens)
    together = minilora.forward({}, merge(adapters, model), tokens)
    # 21 products of at most 128 terms each, float32
    assert np.abs(apart - together).max() < 21 * 128 * 2**-24 * np.abs(apart).max()
    for path, weight in before.items():
        assert np.array_equal(get(base, path)["weight"], weight), "the base was written to"
