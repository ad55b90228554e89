"""The numbers of the page "Frequently asked questions", and the lines of code in it."""

import re
from pathlib import Path

from models import weightless

import minilora
from minilora import LoraConfig, Model
from minilora.config import ModelConfig
from minilora.evaluation.memory import activation_floats, memory_estimate
from minilora.formats.hf_folder import projection_shapes
from minilora.tree import num_parameters

ROOT = Path(__file__).parents[1]
FAQ = (ROOT / "lessons" / "guide" / "faq.md").read_text("utf-8").replace("\n", " ")
SMOLLM2 = ModelConfig(49152, 576, 1536, 30, 9, 3, 64)
SHAPES = projection_shapes(SMOLLM2)
# LoRA at r = 8 on its q and v; of the base, only the shapes
QV = LoraConfig(r=8, target_modules=("q_proj", "v_proj"))
ADAPTERS, MODEL = minilora.get_peft_model(Model(SMOLLM2, weightless(SMOLLM2)), QV, 0)


def answer(heading):
    """Return the answer to a question of the page."""
    return re.search(rf"### {re.escape(heading)}(.*?)( ## | ### |$)", FAQ)[1]


def test_the_scale_of_mlx():
    (code,) = re.findall(r"`(LoraConfig\(.*?\))`", answer("What is mlx's `scale` in terms of α?"))
    assert eval(code).rank_and_scaling("model.layers.0.self_attn.q_proj") == (8, 20)


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
    n = SMOLLM2.num_hidden_layers * sum(out * width for out, width in SHAPES.values())
    n += SMOLLM2.vocab_size * SMOLLM2.hidden_size  # the head
    share = (2 * n + 3 * num_parameters(ADAPTERS)) / (3 * n)
    said = f"this count is {share:.2f} of"
    assert said in answer("Why is LoRA hardly faster than full fine-tuning?")


def test_memory_and_context():
    text = answer("How does memory grow with the context?")
    per_token = 4 * activation_floats(ADAPTERS, SMOLLM2)
    assert f"{per_token / 1e6:.2f} MB of activations per token" in text
    for tokens in (4 * 128, 4 * 2048):
        assert memory_estimate(ADAPTERS, MODEL, tokens)["activations"] == tokens * per_token
        assert f"{tokens * per_token / 1e6:,.0f} MB" in text
    heads, width = SMOLLM2.num_key_value_heads, SMOLLM2.head_dim
    cached = 4 * 2 * SMOLLM2.num_hidden_layers * heads * width
    assert f"{cached / 1e3:.0f} kB per token" in text
    several = answer("Can I train several adapters at once?")
    assert f"{16 * num_parameters(ADAPTERS) / 1e6:.1f} MB" in several
