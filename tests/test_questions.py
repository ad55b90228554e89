"""The numbers of the page "Frequently asked questions", and the lines of code in it."""

import re
from pathlib import Path

import numpy as np

import minilora
from minilora import LoraConfig, Model, TrainConfig, data, layers, nf4
from minilora.batching import collate
from minilora.config import ModelConfig
from minilora.evaluation.memory import activation_floats, memory_estimate
from minilora.formats.hf_folder import projection_shapes
from minilora.tree import num_parameters, set_leaf

ROOT = Path(__file__).parents[1]
FAQ = (ROOT / "lessons" / "guide" / "faq.md").read_text("utf-8").replace("\n", " ")
SMOLLM2 = ModelConfig(49152, 576, 1536, 30, 9, 3, 64)
SHAPES = projection_shapes(SMOLLM2)
QV = ("q_proj", "v_proj")


def answer(heading):
    """Return the answer to a question of the page."""
    return re.search(rf"### {re.escape(heading)}(.*?)( ## | ### |$)", FAQ)[1]


def smollm2_adapter():
    """A model with the shapes of SmolLM2's projections, and LoRA at r = 8 on its q and v."""
    base: dict = {}
    for layer in range(SMOLLM2.num_hidden_layers):
        for name, shape in SHAPES.items():
            part = "self_attn" if name[0] in "qkv" or name == "o_proj" else "mlp"
            weight = np.broadcast_to(np.float32(0), shape)  # no memory
            set_leaf(base, f"model.layers.{layer}.{part}.{name}.weight", weight)
    return minilora.get_peft_model(Model(SMOLLM2, base), LoraConfig(r=8, target_modules=QV), 0)


def test_the_scale_of_mlx():
    (code,) = re.findall(r"`(LoraConfig\(.*?\))`", answer("What is mlx's `scale` in terms of α?"))
    assert eval(code).rank_and_scaling("model.layers.0.self_attn.q_proj") == (8, 20)


def test_an_embedding_that_starts_with_A_zero_changes_only_the_tokens_of_the_batch():
    rng = np.random.default_rng(0)
    random, zero = rng.standard_normal((2, 5)), np.zeros((2, 5))  # (r, vocabulary)
    grad = rng.standard_normal((3, 4))  # of the embeddings of three tokens: (T, d)
    tokens, others = [0, 2, 2], [1, 3, 4]
    for A, B in ((zero, rng.standard_normal((4, 2))), (random, np.zeros((4, 2)))):
        grad_A = np.zeros_like(A)
        np.add.at(grad_A.T, tokens, grad @ B)
        grad_B = grad.T @ A.T[tokens]
        change = (B - grad_B) @ (A - grad_A) - B @ A  # (d, vocabulary), after a step of SGD
        assert change[:, tokens].any()
        assert change[:, others].any() == (A is random)


def test_the_numbers_of_a_vocabulary():
    text = answer("How do I add new tokens?")
    d, whole = SMOLLM2.hidden_size, SMOLLM2.hidden_size * SMOLLM2.vocab_size
    assert f"{d} numbers per token" in text and f"{whole:,} numbers" in text


def test_the_cost_of_dora_is_that_of_the_table():
    page = (ROOT / "lessons" / "guide" / "methods.md").read_text("utf-8")
    times = dict(re.findall(r"^\| (lora|dora)[^|]*\|[^|]*\|[^|]*\|[^|]*\| (\d+) \|", page, re.M))
    said = f"took {times['dora']} ms, and one of LoRA {times['lora']} ms"
    assert said in answer("What does DoRA cost?")


def test_the_count_of_multiplications():
    adapters, _ = smollm2_adapter()
    n = SMOLLM2.num_hidden_layers * sum(out * width for out, width in SHAPES.values())
    n += SMOLLM2.vocab_size * SMOLLM2.hidden_size  # the head
    share = (2 * n + 3 * num_parameters(adapters)) / (3 * n)
    assert f"this count is {share:.2f} of" in answer(
        "Why is LoRA hardly faster than full fine-tuning?"
    )


def test_a_code_of_nf4_has_no_sign_bit():
    assert nf4.NF4[7] == 0 and (nf4.NF4[:7] < 0).all() and (nf4.NF4[8:] > 0).all()
    assert set(nf4.NF4) & set(-nf4.NF4) == {-1, 0, 1}
    np.testing.assert_array_equal(nf4.FP4[8:], -nf4.FP4[:8])


def test_a_product_with_a_quantized_weight_is_that_with_the_dequantized_one():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 64), np.float32), rng.standard_normal((16, 64), np.float32)
    weight = nf4.quantize(w, double_quant=True)
    expected = x @ weight.dequantize().T
    np.testing.assert_allclose(layers.linear(x, {"weight": weight}), expected, rtol=1e-5, atol=1e-5)


def test_padding_is_known_by_its_position_and_the_end_is_a_target():
    _, tokenizer = minilora.load("micro")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "longer"}]
    examples, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))
    batch = collate([[example] for example in examples])
    ends = batch["targets"] == tokenizer.eos_token_id
    assert (ends & (batch["mask"] == 1)).sum() == 2 and batch["mask"][0].sum() == 2


def test_memory_and_context():
    adapters, model = smollm2_adapter()
    text = answer("How does memory grow with the context?")
    per_token = 4 * activation_floats(adapters, SMOLLM2)
    assert f"{per_token / 1e6:.2f} MB of activations per token" in text
    for tokens in (4 * 128, 4 * 2048):
        assert memory_estimate(adapters, model, tokens)["activations"] == tokens * per_token
        assert f"{tokens * per_token / 1e6:,.0f} MB" in text
    heads, width = SMOLLM2.num_key_value_heads, SMOLLM2.head_dim
    cached = 4 * 2 * SMOLLM2.num_hidden_layers * heads * width
    assert f"{cached / 1e3:.0f} kB per token" in text
    bytes_ = 16 * num_parameters(adapters)
    assert f"{bytes_ / 1e6:.1f} MB" in answer("Can I train several adapters at once?")
