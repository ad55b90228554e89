"""Training through the merge: lessons/helpers/through_merge.py."""

import numpy as np
from autograd import numpy as anp
from autograd import value_and_grad
from autograd.extend import defvjp, primitive

import minilora
from lessons.helpers import through_merge
from minilora import LoraConfig, TrainConfig, nf4
from minilora.tree import flatten


def test_the_gradients_are_those_of_an_explicit_straight_through_estimator():
    rng = np.random.default_rng(0)
    x, w, a, b, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((2, 3, 64), (5, 64), (2, 64), (5, 2), (2, 3, 5))
    )

    @primitive
    def quantized(w):
        return nf4.quantize(w, double_quant=True).dequantize()

    defvjp(quantized, lambda y, w: lambda g: g)

    def with_matrix(leaves):
        x, a, b = leaves
        return anp.sum(g * (x @ quantized(w + 2 * (b @ a)).T))

    def through(leaves):
        x, a, b = leaves
        node = {"weight": w, "lora_A": a, "lora_B": b, "lora_scaling": 2.0, "lora_dropout": 0.0}
        return anp.sum(g * through_merge.linear("nf4-dq", x, node))

    value, expected = value_and_grad(with_matrix)((x, a, b))
    found_value, found = value_and_grad(through)((x, a, b))
    np.testing.assert_allclose(found_value, value, rtol=1e-4)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_merged_model_has_the_bits_of_the_trained_one():
    config, base, tokenizer = minilora.load("micro")
    lora = LoraConfig(target_modules=("all-linear",))
    adapters, base = minilora.get_peft_model(base, lora, rng=0)
    settings = TrainConfig(iters=3, learning_rate=1e-2, warmup_ratio=0.0)
    examples, _ = minilora.encode_rows(
        minilora.load_rows("questions", "valid"), tokenizer, settings
    )
    ops = through_merge.operations("nf4-dq")
    adapters, _ = minilora.train(
        adapters, base, examples[:8], config, settings, ops=ops, quiet=True
    )
    merged = minilora.quantize(minilora.merge(adapters, base), "nf4-dq")
    scores = [
        minilora.evaluate(*model, examples[:8], config, how, quiet=True)
        for model, how in (((adapters, base), ops), (({}, merged), None))
    ]
    assert scores[0] == scores[1]
    start = flatten(minilora.quantize(base, "nf4-dq"))
    changed = [
        p
        for p, q in flatten(merged).items()
        if p.endswith("_proj.weight") and (q.codes != start[p].codes).any()
    ]
    assert changed, "training must change codes"
