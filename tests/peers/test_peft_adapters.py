"""Adapter folders: PEFT's here, ours in PEFT."""

import json
import re

import numpy as np
import pytest
from peft_models import (
    ALL,
    in_peft,
    llama_of,
    our_adapter,
    peft,
    peft_folder,
    quietly,
    random_peft,
    their_logits,
    torch,
)
from safetensors.torch import load_file

import minilora
from minilora.cli import main
from minilora.config import ALL_LINEAR, InputError, LoraConfig
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.formats.peft_format import LORA_NEUTRAL
from minilora.formats.pretrained import load
from minilora.lora import target_paths

PEFT_HERE, OURS_THERE = ("PEFT's adapters read here", "PEFT"), ("our adapters in PEFT", "PEFT")
PEFT_CONFIGS = {
    "defaults": {},
    "r, alpha, dropout": {"r": 3, "lora_alpha": 5, "lora_dropout": 0.1},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "all-linear": {"target_modules": "all-linear", "r": 2},
    "one projection": {"target_modules": ["down_proj"]},
    "a whole path": {"target_modules": ["model.layers.1.mlp.up_proj", "k_proj"]},
    "a regular expression": {"target_modules": r".*layers\.[02]\.(self_attn|mlp)\.(k|up)_proj"},
    "layers": {"target_modules": ALL, "layers_to_transform": [0, 2]},
    "one layer": {"target_modules": ["o_proj"], "layers_to_transform": 1},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 5, "self_attn.v_proj": 1},
        "alpha_pattern": {"mlp.down_proj": 3, "q_proj": 1},
    },
    "regular expressions": {
        "target_modules": ALL,
        "rank_pattern": {r"^model\.layers\.0\..*": 2, r"layers.[12].self_attn.(q|k)_proj": 3},
        "alpha_pattern": {r".*\.mlp\..*": 2},
        "use_rslora": True,
    },
    "gaussian": {"init_lora_weights": "gaussian"},
    "dora": {"use_dora": True, "target_modules": ALL, "lora_dropout": 0.1, "lora_alpha": 20},
    "head": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["norm"], "target_modules": ALL},
    "one norm": {"modules_to_save": ["model.norm", "1.input_layernorm"]},
    "biases": {"lora_bias": True, "target_modules": ALL, "lora_alpha": 24},
    "embedding": {"modules_to_save": ["embed_tokens"], "target_modules": ALL},
    "embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["v_proj", "1.mlp.up_proj"]},
    "excluded, a parent": {"target_modules": ALL, "exclude_modules": ["lm_head", "mlp"]},
    "excluded, an expression": {"target_modules": ALL, "exclude_modules": r".*[01]\..*(q|up)_proj"},
    "excluded, nothing": {"target_modules": ALL, "exclude_modules": "v_proj"},
    "excluded in layers": {
        "target_modules": ALL, "exclude_modules": ["v_proj"], "layers_to_transform": [0, 2],
    },
    "biases that the base lacks": {"bias": "lora_only"},
    "all biases that the base lacks": {"bias": "all"},
    "layers pattern": {
        "target_modules": ALL, "layers_to_transform": [1], "layers_pattern": ["h", "layers"],
    },
    "everything": {
        "lora_bias": True, "target_modules": "all-linear", "use_rslora": True, "lora_alpha": 12,
        "modules_to_save": ["lm_head", "input_layernorm", "post_attention_layernorm", "norm"],
    },
}  # fmt: skip


# --- PEFT's folders here


@pytest.mark.parametrize(
    ("name", "tied"),
    [(name, False) for name in PEFT_CONFIGS]
    + [(name, True) for name, fields in PEFT_CONFIGS.items() if "modules_to_save" in fields],
)
def test_an_adapter_of_peft_here(tiny_llama, tmp_path, tokens, same_logits, name, tied):
    """PEFT trains copies: with a tied head, the head stays the frozen embedding."""
    fields = PEFT_CONFIGS[name]
    biased = name == "biases"
    base_folder = tiny_llama(tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased)
    theirs = random_peft(llama_of(base_folder), **fields)
    peft_folder(tmp_path, theirs)
    adapters, model, _ = load_adapter(tmp_path, load(base_folder).model)
    expected = their_logits(theirs, tokens)
    same_logits(*PEFT_HERE, expected, adapters, model, tokens, loss=True)
    # without the adapter the logits are others
    bare = minilora.forward({}, model, tokens)
    assert np.abs(bare - expected).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(
    "targets", ["q_proj", "self_attn.q_proj", r".*(q_proj|self_attn)", r".*mlp.*", ".*"]
)
def test_a_string_of_targets_that_peft_refuses_is_refused(tiny_llama, targets):
    with pytest.raises(ValueError, match=r"not found|not supported"):
        random_peft(llama_of(tiny_llama()), target_modules=targets)
    with pytest.raises(InputError, match=r"matches nothing here|is not a projection"):
        target_paths(load(tiny_llama()).model.base, LoraConfig(target_modules=targets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adapters_of_peft_here(tiny_llama, tmp_path, tokens, same_logits, dtype):
    fields = {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}
    peft_folder(tmp_path, random_peft(llama_of(tiny_llama()), **fields), dtype)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {w.dtype for w in stored.values()} == {dtype}
    adapters, model, _ = load_adapter(tmp_path, load(tiny_llama()).model)
    with quietly():
        theirs = peft.PeftModel.from_pretrained(llama_of(tiny_llama()), tmp_path)
    # PEFT computes with low-rank factors in float32, but keeps a head as it was stored
    head = theirs.base_model.model.lm_head
    head.modules_to_save["default"].float()
    expected = their_logits(theirs, tokens)
    same_logits(*PEFT_HERE, expected, adapters, model, tokens, loss=True)


def lora(**fields):
    return peft.LoraConfig(task_type="CAUSAL_LM", **fields)


def vera(**fields):
    return peft.VeraConfig(task_type="CAUSAL_LM", r=2, **fields)


TIED_EMBEDDING = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
NORMS = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"])
# Other fields are drawn: see `test_a_drawn_config_computes_what_peft_computes_or_is_refused`.
REFUSED = {  # a config of PEFT, and what the message names
    "trained biases": (lora(bias="lora_only"), "bias"),
    "a saved projection": (lora(modules_to_save=["k_proj"]), "modules_to_save"),
    "a tied embedding": (lora(**TIED_EMBEDDING), "ensure_weight_tying"),
    "an adapted head": (lora(target_modules=["q_proj", "lm_head"]), "lm_head"),
    "olora": (lora(init_lora_weights="olora"), "init_lora_weights"),
    "norms": (NORMS, "'LN_TUNING' is not implemented; LORA, VERA"),
    "vera, no A": (vera(save_projection=False), "save_projection = False is not implemented"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(tiny_llama, tmp_path, what):
    config, named = REFUSED[what]
    base_folder = tiny_llama(attention_bias=True, mlp_bias=True)
    with quietly():
        peft.get_peft_model(llama_of(base_folder), config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=named):
        load_adapter(tmp_path, load(base_folder).model)


KINDS = {
    "lora": lora(r=3, lora_alpha=5),
    "dora": lora(r=3, lora_alpha=5, use_dora=True),
    "lora, more fields": lora(
        r=4, use_rslora=True, rank_pattern={"q_proj": 2}, exclude_modules=["v_proj"],
        target_modules=["q_proj", "k_proj", "v_proj"], modules_to_save=["norm"],
    ),
    "ia3": peft.IA3Config(task_type="CAUSAL_LM"),
    "vera": vera(),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}  # fmt: skip
ODD = (None, "missing", True, 0, 1, 2.5, -1, "x", [1], ["q_proj"], {"q_proj": 2})
# PEFT refuses some values of these; a finished adapter computes the same without them
UNREAD = {
    "bias", "eva_config", "layers_pattern", "init_lora_weights", "d_initial", "vera_dropout",
    "projection_prng_key", "token_dim", "num_layers", "tokenizer_kwargs", "prompt_tuning_init_text",
}  # fmt: skip
OTHER = {"auto_mapping", "peft_type", "peft_version", "base_model_name_or_path", "revision"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_config_computes_what_peft_computes_or_is_refused(
    tiny_llama, tmp_path, tokens, rng, tries, kind
):
    """One or two fields of PEFT's own file have another value, null, another type, or are gone."""
    peft_folder(tmp_path, random_peft(llama_of(tiny_llama()), KINDS[kind]))
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text())
    model, _ = load(tiny_llama())
    for _ in range(tries(40, 600)):
        changes = {name: rng.choice(ODD) for name in rng.sample(sorted({*raw} - OTHER), 2)}
        if rng.random() < 0.7:
            changes.popitem()
        changed = {n: v for n, v in (raw | changes).items() if v != "missing"}
        path.write_text(json.dumps(changed))
        try:
            adapters, adapted, _ = load_adapter(tmp_path, model)
        except InputError as error:
            assert re.search("|".join([*changes, "tensor"]), str(error)), (changes, error)
            continue
        try:
            with quietly():
                theirs = peft.PeftModel.from_pretrained(llama_of(tiny_llama()), tmp_path).eval()
        except Exception:
            assert any(name in UNREAD or not value for name, value in changes.items()), changes
            continue
        expected = their_logits(theirs, tokens)
        ours = minilora.forward(adapters, adapted, tokens)
        # `same_logits` has the same bound
        assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max(), changes


# --- our folders in PEFT

HALF = ("bfloat16", "float16")
OUR_CONFIGS = {
    "defaults": (LoraConfig(), ()),
    "all seven": (LoraConfig(target_modules=("all-linear",), r=2, lora_alpha=5.0), ()),
    "rslora": (LoraConfig(use_rslora=True, lora_dropout=0.1), ()),
    "layers": (LoraConfig(layers_to_transform=(0, 2), target_modules=("up_proj",)), ()),
    "a whole path": (LoraConfig(target_modules=("model.layers.1.mlp.up_proj",)), ()),
    "patterns": (
        LoraConfig(
            target_modules=ALL_LINEAR,
            rank_pattern={"q_proj": 2, "model.layers.1.mlp.up_proj": 5, "self_attn.v_proj": 1},
            alpha_pattern={"mlp.down_proj": 3, "q_proj": 1},
        ),
        (),
    ),
    "dora": (LoraConfig(target_modules=ALL_LINEAR, use_dora=True, lora_alpha=20), ()),
    "an expression": (LoraConfig(target_modules=r".*\.(q|up)_proj"), ()),
    "excluded": (
        LoraConfig(target_modules=ALL_LINEAR, exclude_modules=["lm_head", "0.mlp.up_proj"]), (),
    ),
    "excluded, an expression": (
        LoraConfig(target_modules="all-linear", exclude_modules=r".*mlp.*"), (),
    ),
    "norms": (LoraConfig(), ("norm",)),
    "head": (LoraConfig(), ("head",)),
    "biases": (LoraConfig(target_modules=ALL_LINEAR, lora_alpha=24), ("bias",)),
    "everything": (LoraConfig(target_modules=ALL_LINEAR), ("norm", "bias", "head")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tied", "dtype"),
    [(name, False, "float32") for name in OUR_CONFIGS]
    + [(name, True, "float32") for name, (_, groups) in OUR_CONFIGS.items() if groups]
    + [(name, False, dtype) for name in ("all seven", "everything") for dtype in HALF],
)
def test_our_adapter_in_peft(tiny_llama, tmp_path, tokens, same_logits, name, tied, dtype):
    base_folder, (lora_config, groups) = tiny_llama(tie_word_embeddings=tied), OUR_CONFIGS[name]
    model, _ = load(base_folder)
    adapters = our_adapter(model, lora_config, groups)
    save_adapter(tmp_path / "ours", adapters, model, lora_config, dtype)
    theirs = in_peft(llama_of(base_folder), tmp_path / "ours")
    stored, model, _ = load_adapter(tmp_path / "ours", model)
    if dtype == "float32" or not groups:  # otherwise PEFT computes with modules_to_save in `dtype`
        expected = their_logits(theirs, tokens)
        same_logits(*OURS_THERE, expected, stored, model, tokens, loss=True)
    with quietly():
        theirs.save_pretrained(tmp_path / "theirs")
    assert_same_config(tmp_path / "ours", tmp_path / "theirs")
    a, b = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert a.keys() == b.keys()
    for key, w in a.items():
        assert torch.equal(w.float(), b[key].float()), key


def assert_same_config(ours, theirs):
    """What PEFT makes of our adapter_config.json, written out again by itself, is the same."""
    ours, theirs = (
        json.loads((path / "adapter_config.json").read_text()) for path in (ours, theirs)
    )
    assert ours.keys() <= theirs.keys()
    for key in ours.keys() & theirs.keys() - {"peft_version"}:
        a, b = (v[key] for v in (ours, theirs))
        assert a == b or sorted(a) == sorted(b), key
    neutral = {"peft_version", *LORA_NEUTRAL}
    for key in theirs.keys() - ours.keys() - neutral:
        assert not theirs[key], f"a new field of PEFT is on: {key}"


def test_a_trained_bias_cannot_be_merged_there_and_can_here(
    tiny_llama, tmp_path, tokens, same_logits
):
    """PEFT computes with lora_bias on a base without biases; it has no place to merge it into."""
    model, _ = load(tiny_llama())
    lora_config = LoraConfig()
    adapters = our_adapter(model, lora_config, ("bias",))
    save_adapter(tmp_path, adapters, model, lora_config)
    with quietly():
        theirs = peft.PeftModel.from_pretrained(llama_of(tiny_llama()), tmp_path)
        with pytest.raises(RuntimeError, match="Impossible to merge"):
            theirs.merge_and_unload()
        theirs = peft.PeftModel.from_pretrained(llama_of(tiny_llama()), tmp_path).eval()
    merged, expected = minilora.merge(adapters, model), their_logits(theirs, tokens)
    same_logits(*OURS_THERE, expected, {}, merged, tokens, loss=True)


@pytest.mark.parametrize("scheme", ["none", "nf4-dq", "int8"])
def test_the_merged_folder_in_transformers(tiny_llama, tmp_path, tokens, same_logits, scheme):
    """What `minilora merge` writes computes there what base and adapter compute here."""
    (lora_config, groups), base_folder = OUR_CONFIGS["everything"], tiny_llama()
    model, _ = load(base_folder, scheme)
    adapters = our_adapter(model, lora_config, groups)
    save_adapter(tmp_path / "adapter", adapters, model, lora_config)
    merge = ["merge", "--model", base_folder, "--adapter-path", tmp_path / "adapter"]
    merged = tmp_path / "merged"
    main([*map(str, merge), "--quantize", scheme, "--out", str(merged)])
    same_file = ((p / "generation_config.json").read_bytes() for p in (base_folder, merged))
    assert len({*same_file}) == 1
    theirs = their_logits(llama_of(merged), tokens)
    what = "minilora merge, all schemes", "transformers"
    same_logits(*what, theirs, adapters, model, tokens, loss=True)
