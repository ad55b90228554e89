"""Quantized folders between here and transformers with bitsandbytes, both ways, on the CPU."""

import bitsandbytes as bnb
import numpy as np
import pytest
from models import fingerprint
from peft_models import llama_of, their_logits, torch, transformers

from minilora.cli import main
from minilora.formats.pretrained import load
from minilora.tree import flatten

SETTINGS = {  # of transformers
    "nf4-dq": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    },
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}  # fmt: skip
PEERS = "transformers + bitsandbytes"
READ = "quantized folders read here: each weight", PEERS
WRITTEN = "quantized folders written here: each weight", PEERS
FOUR_BITS = "random Llamas in NF4 or FP4", PEERS


@pytest.fixture(scope="module")
def dense(random_model):
    """A folder with a dense Llama with biases, whose rows are whole blocks of 64 and of 128."""
    return random_model(hidden_size=128, intermediate_size=384, attention_bias=True)


def by_transformers(folder, scheme, skipped=None):
    settings = transformers.BitsAndBytesConfig(**SETTINGS[scheme], llm_int8_skip_modules=skipped)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )


def dequantized(module):
    """The weight that a layer of bitsandbytes computes with, as float32."""
    if isinstance(module, bnb.nn.Linear8bitLt):
        absmax = module.weight.SCB if module.state.SCB is None else module.state.SCB
        return bnb.functional.int8_vectorwise_dequant(module.weight.data, absmax)
    return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)


def projections(llama):
    """{path: module} of bitsandbytes' layers."""
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {f"{name}.weight": m for name, m in llama.named_modules() if isinstance(m, kinds)}


@pytest.fixture
def same_weights(equal):
    """same_weights(row, model, llama, n): n quantized weights, the others dense; bit for bit."""

    def same_weights(row, model, llama, n=7 * 3):
        modules, state = projections(llama), llama.state_dict()
        assert len(modules) == n
        for path, w in flatten(model.base).items():
            if path in modules:
                equal(*row, (w.dequantize(), dequantized(modules[path])), case=path)
            else:
                np.testing.assert_array_equal(w, state[path], err_msg=path)

    return same_weights


@pytest.mark.parametrize("scheme", SETTINGS)
def test_a_folder_of_transformers_here(dense, tmp_path, same_weights, scheme):
    llama = by_transformers(dense, scheme)
    llama.save_pretrained(tmp_path)
    model, _ = load(tmp_path, scheme)
    same_weights(READ, model, llama)
    if scheme != "int8":  # the 8-bit codes are made of a float16 copy of the weight
        assert fingerprint(model.base) == fingerprint(load(dense, scheme).model.base)


@pytest.mark.parametrize(
    ("scheme", "blocks"), [*((scheme, ()) for scheme in SETTINGS), ("nf4-dq", (128,))]
)
def test_our_folder_in_transformers(
    dense, tmp_path, tokens, same_weights, same_logits, scheme, blocks
):
    base = ["--model", str(dense), "--quantize", scheme, *(f"--block-size={n}" for n in blocks)]
    main(["quantize", *base, "--out", str(tmp_path / "q")])
    model, _ = load(dense, scheme, *blocks)
    llama = llama_of(tmp_path / "q")
    same_weights(WRITTEN, model, llama)
    llama.train()  # in evaluation, processors with bfloat16 products get weights of that precision
    if scheme != "int8":  # bitsandbytes' 8-bit product quantizes its input as well
        same_logits(*FOUR_BITS, their_logits(llama, tokens), {}, model, tokens)


def test_skipped_modules_stay_dense(dense, tmp_path, same_weights):
    llama = by_transformers(dense, "nf4-dq", skipped=["q_proj", "lm_head"])
    llama.save_pretrained(tmp_path)
    model, _ = load(tmp_path, "nf4-dq")
    same_weights(READ, model, llama, 6 * 3)
    assert model.source[1:3] == ("nf4-dq", 64)
