"""Folders and GGUF files against transformers and the gguf library: tensors and logits."""

from dataclasses import replace

import numpy as np
import pytest
from peft_models import llama_of, their_logits

from minilora import layers
from minilora.config import ModelConfig
from minilora.formats.hf_folder import shapes
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.safetensors_file import DTYPES, decode
from minilora.generation import sample
from minilora.model import Model
from minilora.tree import flatten, unflatten

torch = pytest.importorskip("torch", reason="the peers group is not installed")
transformers = pytest.importorskip("transformers", reason="the peers group is not installed")
LlamaRotaryEmbedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding

RANDOM, PEER = "random models", "transformers"
WEIGHTS = "weights of folders and GGUF files, both ways"
CONFIG = ModelConfig(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, eos_token_id=(255,),
)  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}


def test_shards_of_transformers_here(random_model, tmp_path, tokens, same_logits):
    llama = llama_of(random_model())
    llama.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, _ = load(tmp_path)
    same_logits(RANDOM, PEER, their_logits(llama, tokens), {}, model, tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folders_here(random_model, tmp_path, equal, dtype):
    """The numbers that torch reads are the numbers read here, bit for bit."""
    llama = llama_of(random_model()).to(dtype)
    llama.save_pretrained(tmp_path)
    base = flatten(load(tmp_path).model.base)
    for name, p in llama.named_parameters():
        equal(WEIGHTS, PEER, (base[name], p.detach().float()), case=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_our_half_precision_folder_in_transformers(tmp_path, equal, dtype):
    """torch rounds the same numbers to the same bits."""
    rng = np.random.default_rng(0)
    w = {p: rng.standard_normal(shape, dtype=np.float32) for p, shape in shapes(CONFIG).items()}
    save_pretrained(tmp_path / "out", Model(CONFIG, unflatten(w)), dtype=dtype)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert llama.dtype == getattr(torch, dtype), "transformers 5 keeps the stored type"
    state = llama.state_dict()
    for path, x in w.items():
        rounded = torch.tensor(x).to(state[path].dtype)
        equal(WEIGHTS, PEER, (rounded.float(), state[path].float()), case=path)


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("scaling", [None, LINEAR])
def test_rotary_frequencies(equal, theta, head_dim, scaling):
    """Bit for bit: an ulp of a frequency is 3e-5 of a cosine near position 1,000."""
    parameters = {"rope_theta": theta, "rope_type": "default", **(scaling or {})}
    their_config = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=parameters)
    theirs = LlamaRotaryEmbedding(their_config)
    config = replace(CONFIG, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    equal("rotary frequencies", "transformers", (layers.rope_frequencies(config), theirs.inv_freq))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_gguf_file_of_the_gguf_library(tmp_path, equal, tokens, same_logits, kind):
    """Written by the library, read here and by transformers: the same numbers in the same rows."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    path = write_gguf(gguf, tmp_path / "m.gguf", kind)
    llama = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    model, _ = load(path)
    state = llama.state_dict()
    for name, x in flatten(model.base).items():
        equal(WEIGHTS, PEER, (x, state[name]), case=name)
    same_logits(RANDOM, PEER, their_logits(llama, tokens), {}, model, tokens)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_dequantizing_equals_the_gguf_library(equal, name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    w = np.random.default_rng(0).standard_normal((6, 96), dtype=np.float32) * 3
    raw = np.ascontiguousarray(gguf.quants.quantize(w, kind)).view(np.uint8)
    theirs = gguf.quants.dequantize(raw, kind).reshape(-1)
    ours = decode(raw.reshape(-1).view(DTYPES[name]), name).reshape(-1)
    equal("blocks of GGUF files: values", "gguf", (ours, theirs), case=name)


def write_gguf(gguf, path, kind):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(256)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*(chr(0x100 + i) for i in range(254)), "\u0100\u0101", "<end>"])
    writer.add_token_types([1] * 256)
    writer.add_token_merges(["\u0100 \u0101"])
    writer.add_eos_token_id(255)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    rng, quantization = np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    for path_, shape in shapes(CONFIG).items():
        w = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
        stored = gguf.GGMLQuantizationType.F32 if w.ndim == 1 else quantization
        raw = gguf.quants.quantize(w, stored)
        writer.add_tensor(names.get_name(path_, try_suffixes=(".weight",)), raw, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.75, 1.0])
def test_top_p_keeps_as_many_tokens_as_transformers_at_an_exact_tie(top_p):
    """Four tokens of probability ¼, which every float type holds exactly."""
    warper = transformers.TopPLogitsWarper(top_p)
    theirs = int(torch.isfinite(warper(None, torch.zeros(1, 4))).sum())
    rng = np.random.default_rng(0)
    ours = {sample(np.zeros(4, np.float32), 1.0, top_p, rng) for _ in range(200)}
    # that one of n ≤ 4 tokens is missing in 200 draws has at most the chance 4·0.75²⁰⁰ = 4e-25
    assert len(ours) == theirs == 4 * top_p
