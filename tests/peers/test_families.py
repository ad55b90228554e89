"""Mistral, Qwen2, Qwen3 and Gemma 3 against transformers, PEFT and bitsandbytes, as the Llamas are.

A window of 6 is much shorter than the sequences, so a window that is too long, too short or not
read changes the logits of most tokens.
"""

import numpy as np
import pytest
from comparisons import relative
from models import moved
from peft_models import (
    ALL,
    four_bit_peft,
    llama_of,
    peft_folder,
    quietly,
    random_batch,
    random_peft,
    their_logits,
)

import minilora
from minilora import layers
from minilora.cli import main
from minilora.config import ALL_LINEAR, LoraConfig
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.formats.pretrained import load
from minilora.formats.quantized_file import save_quantized
from minilora.kernels import fused
from minilora.methods.replaced import also_train
from minilora.quant.schemes import quantize
from minilora.tree import flatten

torch = pytest.importorskip("torch", reason="the peers group is not installed")
transformers = pytest.importorskip("transformers", reason="the peers group is not installed")
peft = pytest.importorskip("peft", reason="the peers group is not installed")

RANDOM = "random models of other families"
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
OTHER = {"head_dim": 16, "rms_norm_eps": 0.1}
SLIDING, MIXED = ["sliding_attention"] * 3, ["sliding_attention", "full_attention"]
GEMMA = {  # a scale of the scores that is not that of head_dim, and a window in layers 0 and 2
    "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 6,
    "layer_types": [*MIXED, "sliding_attention"],
}  # fmt: skip
FAMILIES = {
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral with a window": ("Mistral", {"sliding_window": 6, "head_dim": 32}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2 with a window": ("Qwen2", WINDOW),
    "Qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3 with a window and biases": ("Qwen3", {"attention_bias": True, **OTHER, **WINDOW}),
    "Gemma 3": ("Gemma3Text", GEMMA),
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
ONE_BASE = {
    "full_attention": {"rope_theta": 500.0, **LINEAR},
    "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
}  # fmt: skip
EACH = pytest.mark.parametrize("name", FAMILIES)
SHAPE = {  # rows of whole blocks of 64, which bitsandbytes needs on a CPU
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 255, "bos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """folder_of(name) -> a folder with a random model of this family, float32."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            family, fields = FAMILIES[name]
            config = getattr(transformers, f"{family}Config")(**SHAPE | fields)
            theirs = transformers.AutoModelForCausalLM.from_config(config)
            for path, p in theirs.named_parameters():
                torch.nn.init.normal_(p, mean=1.0 if "norm" in path else 0.0, std=0.15)
            made[name] = tmp_path_factory.mktemp("family")
            theirs.save_pretrained(made[name])
        return made[name]

    return make


@EACH
def test_a_folder_of_transformers_here(folder_of, tokens, same_logits, compared, name):
    """The optimized operations, and the reference."""
    config, base, _ = load(folder_of(name))
    theirs = llama_of(folder_of(name))
    assert set(flatten(base)) <= set(theirs.state_dict())
    expected = their_logits(theirs, tokens)
    same_logits(RANDOM, "transformers", expected, {}, base, tokens, config, loss=True)
    plain = minilora.forward({}, base, tokens, config, layers)
    compared(f"{RANDOM}, --plain: logits", "transformers", relative(plain, expected), 1e-5)


@pytest.mark.parametrize("ops", [layers, fused], ids=["plain", "fused"])
@EACH
def test_gradients_of_every_factor(folder_of, same_gradients, name, ops):
    config, base, _ = load(folder_of(name))
    theirs = random_peft(llama_of(folder_of(name)), target_modules=ALL, modules_to_save=["norm"])
    against, batch = "PyTorch + PEFT", random_batch(256, B=3, T=24)
    same_gradients(f"{RANDOM}", against, theirs, base, config, batch, ops)


@EACH
def test_gradients_through_a_four_bit_base(folder_of, same_gradients, name):
    config, base, _ = load(folder_of(name), "nf4-dq")
    theirs, batch = four_bit_peft(llama_of(folder_of(name))), random_batch(256, B=3, T=24)
    against = "PyTorch + PEFT + bitsandbytes"
    same_gradients(f"{RANDOM} in NF4", against, theirs, base, config, batch)


@EACH
def test_a_four_bit_folder_in_transformers(folder_of, tmp_path, tokens, same_logits, name):
    pytest.importorskip("bitsandbytes", reason="the peers group is not installed")
    config, base, tokenizer = load(folder_of(name), "nf4-dq")
    save_quantized(tmp_path / "q", config, base, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    theirs.train()  # in evaluation, processors with bfloat16 products get weights of that precision
    against = "transformers + bitsandbytes"
    expected = their_logits(theirs, tokens)
    same_logits(f"{RANDOM} in NF4", against, expected, {}, base, tokens, config)


@pytest.mark.parametrize("scheme", ["none", "nf4-dq"])
@EACH
def test_greedy_generation_with_the_cache(folder_of, equal, name, scheme):
    """30 tokens after a prompt of 9: the window of 6 passes over both."""
    config, base, _ = load(folder_of(name))
    if scheme != "none":
        base = quantize(base, scheme)
    adapters = our_adapter(base)
    dense = minilora.merge(adapters, base)
    theirs = llama_of(folder_of(name))
    theirs.load_state_dict({p: torch.tensor(w) for p, w in flatten(dense).items()}, strict=False)
    prompt = np.random.default_rng(1).integers(250, size=9).tolist()
    found = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=30, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    config = minilora.ModelConfig(**vars(config) | {"eos_token_id": ()})
    ours = list(minilora.generate(adapters, base, prompt, config, max_tokens=30))
    what = f"{RANDOM}: greedy tokens, with the cache"
    equal(what, "transformers", (ours, found[0, 9:]), case=name)


def our_adapter(base):
    """An adapter with random factors on every projection, and with trained norms."""
    rng = np.random.default_rng(2)
    adapters, _ = minilora.get_peft_model(base, LoraConfig(target_modules=ALL_LINEAR), rng)
    adapters = also_train(adapters, base, ("norm",))
    return moved(adapters, lambda w: np.float32(w + 0.1 * rng.standard_normal(w.shape)))


@pytest.mark.parametrize(
    "fields",
    [{"target_modules": ["q_proj", "v_proj"]}, {"target_modules": "all-linear", "use_dora": True}],
)
@EACH
def test_an_adapter_of_peft_here(folder_of, tmp_path, tokens, same_logits, name, fields):
    theirs = random_peft(llama_of(folder_of(name)), **fields)
    peft_folder(tmp_path, theirs)
    config, base, _ = load(folder_of(name))
    adapters, base, _ = load_adapter(tmp_path, base)
    what, expected = f"{RANDOM}, PEFT's adapters read here", their_logits(theirs, tokens)
    same_logits(what, "PEFT", expected, adapters, base, tokens, config, loss=True)


@EACH
def test_a_prefix_leaves_the_window(folder_of, tmp_path, tokens, same_logits, name):
    """In PEFT the window counts the keys of a prefix: later tokens do not see it."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    torch.manual_seed(1)
    with quietly():
        theirs = peft.get_peft_model(llama_of(folder_of(name)), config).eval()
    peft_folder(tmp_path, theirs)
    config, base, _ = load(folder_of(name))
    adapters, base, _ = load_adapter(tmp_path, base)
    what, expected = f"{RANDOM}, PEFT's adapters read here", their_logits(theirs, tokens)
    same_logits(what, "PEFT", expected, adapters, base, tokens, config, loss=True)


@EACH
def test_our_adapter_in_peft(folder_of, tmp_path, tokens, same_logits, name):
    config, base, _ = load(folder_of(name))
    adapters = our_adapter(base)
    save_adapter(tmp_path, adapters, base, LoraConfig(target_modules=ALL_LINEAR), folder_of(name))
    with quietly():
        theirs = peft.PeftModel.from_pretrained(llama_of(folder_of(name)), tmp_path).eval()
        result = theirs.load_adapter(tmp_path, "default")
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key] == []
    what, expected = f"{RANDOM}, our adapters in PEFT", their_logits(theirs, tokens)
    same_logits(what, "PEFT", expected, adapters, base, tokens, config, loss=True)


@pytest.mark.parametrize("scheme", ["none", "nf4-dq"])
@EACH
def test_the_merged_folder_in_transformers(folder_of, tmp_path, tokens, same_logits, name, scheme):
    config, base, _ = load(folder_of(name), scheme)
    adapters = our_adapter(base)
    lora_config = LoraConfig(target_modules=ALL_LINEAR)
    save_adapter(tmp_path / "adapter", adapters, base, lora_config, folder_of(name))
    merge = ["merge", "--model", folder_of(name), "--adapter-path", tmp_path / "adapter"]
    main([*map(str, merge), "--quantize", scheme, "--out", str(tmp_path / "merged")])
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(info.values()), "no tensor missing, unexpected or misshapen"
    assert type(theirs) is type(llama_of(folder_of(name)))
    what, expected = f"{RANDOM}, merged folder", their_logits(theirs.eval(), tokens)
    same_logits(what, "transformers", expected, adapters, base, tokens, config, loss=True)


@pytest.mark.parametrize(
    ("family", "fields", "windowed"),
    [
        ("Qwen2", {**WINDOW, "max_window_layers": 3}, False),
        ("Qwen2", {**WINDOW, "use_sliding_window": False}, False),
        ("Qwen3", {**WINDOW, "max_window_layers": 3, "layer_types": SLIDING}, True),
        ("Qwen3", {**WINDOW, "layer_types": ["full_attention"] * 3}, False),
        ("Mistral", {"sliding_window": 6, "layer_types": ["full_attention"] * 3}, True),
        ("Qwen2", {**WINDOW, "max_window_layers": 1}, True),
        ("Qwen3", {**WINDOW, "layer_types": [*MIXED, "sliding_attention"]}, True),
        ("Gemma3Text", {**GEMMA, "layer_types": None, "sliding_window_pattern": 2}, True),
        ("Gemma3Text", {**GEMMA, "rope_scaling": LINEAR, "rope_theta": 500.0}, True),
        ("Gemma3Text", {**GEMMA, "rope_parameters": ONE_BASE, "attention_bias": True}, True),
    ],
)  # fmt: skip
def test_which_layers_have_a_window(tmp_path, tokens, same_logits, family, fields, windowed):
    """Which of several fields of config.json decides is decided by transformers.

    In Gemma 3 it is also decided which layers rotate with which base and scaling.
    """
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | fields)
    with quietly():
        theirs = transformers.AutoModelForCausalLM.from_config(config)
        for p in theirs.parameters():
            torch.nn.init.normal_(p, std=0.15)
        theirs.eval().save_pretrained(tmp_path)
    config, base, _ = load(tmp_path)
    assert config.sliding_window == (6 if windowed else None)
    assert config.model_type == theirs.config.model_type
    expected = their_logits(theirs, tokens)
    same_logits(RANDOM, "transformers", expected, {}, base, tokens, config, loss=True)
