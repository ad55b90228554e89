"""Quantized folders between here and transformers with bitsandbytes, both ways, on the CPU."""

import numpy as np
import pytest
from peft_models import llama_of, their_logits, torch, transformers

from minilora.cli import main
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.quant.schemes import quantize_leaf
from minilora.tree import flatten

bnb = pytest.importorskip("bitsandbytes", reason="the peers group is not installed")

FOUR_BIT = {
    "nf4-dq": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
}
EACH = pytest.mark.parametrize("scheme", [*FOUR_BIT, "int8"])
PEERS = "transformers + bitsandbytes"
READ = "quantized folders read here: each weight", PEERS
WRITTEN = "quantized folders written here: each weight", PEERS
FOUR_BITS = "random Llamas in NF4 or FP4", PEERS


@pytest.fixture(scope="module")
def dense(random_model):
    """A folder with a dense Llama whose rows are whole blocks of 64 and of 128."""
    return random_model(hidden_size=128, intermediate_size=384)


def by_transformers(folder, scheme, dtype=torch.float32, **others):
    if scheme == "int8":
        settings = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = transformers.BitsAndBytesConfig(load_in_4bit=True, **FOUR_BIT[scheme], **others)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=dtype, device_map="cpu"
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
    found = {f"{name}.weight": m for name, m in llama.named_modules() if isinstance(m, kinds)}
    assert len(found) == 7 * llama.config.num_hidden_layers
    return found


@EACH
def test_a_folder_of_transformers_here(dense, tmp_path, equal, scheme):
    llama = by_transformers(dense, scheme)
    llama.save_pretrained(tmp_path)
    ours = flatten(load(tmp_path, scheme).model.base)
    original = flatten(load(dense).model.base)
    for path, module in projections(llama).items():
        w = ours[path].dequantize()
        equal(*READ, (w, dequantized(module)), case=path)
        if scheme != "int8":  # the 8-bit codes are made of a float16 copy of the weight
            own = quantize_leaf(path, original[path], scheme).dequantize()
            np.testing.assert_array_equal(w, own, err_msg=f"{path}, quantized here")


@EACH
def test_our_folder_in_transformers(dense, tmp_path, equal, tokens, same_logits, scheme):
    main(["quantize", "--model", str(dense), "--quantize", scheme, "--out", str(tmp_path / "q")])
    model, _ = load(dense, scheme)
    llama, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "q", output_loading_info=True
    )
    assert not any(info.values()), "no tensor missing, unexpected or misshapen"
    theirs, ours = projections(llama), flatten(model.base)
    for path, module in theirs.items():
        equal(*WRITTEN, (ours[path].dequantize(), dequantized(module)), case=path)
    llama.train()  # in evaluation, processors with bfloat16 products get weights of that precision
    if scheme != "int8":  # bitsandbytes' 8-bit product quantizes its input as well
        same_logits(*FOUR_BITS, their_logits(llama, tokens), {}, model, tokens)


def test_other_block_sizes_in_transformers(dense, tmp_path, equal):
    model, words = load(dense, "nf4-dq", 128)
    save_quantized(tmp_path / "q", model, words)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    for path, module in projections(llama).items():
        equal(*WRITTEN, (flatten(model.base)[path].dequantize(), dequantized(module)), case=path)


def test_a_half_precision_folder_of_transformers_here(dense, tmp_path):
    """A 16-bit run stores the same codes; bitsandbytes rounds what it dequantizes to 16 bits.

    Here it stays float32, so the two differ by that rounding: half a unit in the last of
    bfloat16's eight significant bits.
    """
    llama = by_transformers(dense, "nf4", torch.bfloat16)
    llama.save_pretrained(tmp_path)
    ours = flatten(load(tmp_path).model.base)
    for path, module in projections(llama).items():
        w, theirs = ours[path].dequantize(), dequantized(module)
        assert theirs.dtype == torch.bfloat16
        assert np.all(np.abs(w - theirs.float().numpy()) <= 2.0**-8 * np.abs(w))


def test_skipped_modules_stay_dense(dense, tmp_path):
    llama = by_transformers(dense, "nf4-dq", llm_int8_skip_modules=["q_proj", "lm_head"])
    llama.save_pretrained(tmp_path)
    model, _ = load(tmp_path, "nf4-dq")
    path = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(flatten(model.base)[path], llama.state_dict()[path])
    assert model.source[1:3] == ("nf4-dq", 64)


def test_biases_stay_dense(random_model, tmp_path):
    dense = random_model(attention_bias=True)
    by_transformers(dense, "nf4").save_pretrained(tmp_path / "q")
    bias = "model.layers.1.self_attn.k_proj.bias"
    expected = llama_of(dense).state_dict()[bias]
    model, words = load(tmp_path / "q")
    np.testing.assert_array_equal(flatten(model.base)[bias], expected)
    save_quantized(tmp_path / "again", model, words)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(back.state_dict()[bias], expected)


def test_the_dense_folder_of_a_quantized_base(dense, tmp_path, tokens, same_logits):
    """What `merge` does without an adapter: codes out, the same function in transformers."""
    model, words = load(dense, "nf4-dq")
    save_pretrained(tmp_path / "d", model, words)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "d")
    same_logits(*FOUR_BITS, their_logits(llama, tokens), {}, model, tokens)
