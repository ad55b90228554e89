"""Adapter folders: PEFT's here, ours in PEFT."""

import json
import re
from itertools import product

import pytest
from comparisons import relative
from outcomes import run
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
from test_methods import CONFIGS as METHODS
from test_methods import LORA, TASK

import minilora
from minilora.config import InputError, LoraConfig
from minilora.formats.checkpoint import load_adapter, save_adapter
from minilora.formats.peft_format import LORA_NEUTRAL
from minilora.formats.pretrained import load
from minilora.tree import without

GROUPS = {"lm_head": "head", "norm": "norm"}  # {name in modules_to_save: of `also_train`}
CONFIGS = {  # fields of both LoraConfigs; `lora_bias` and `modules_to_save` are of PEFT's alone
    "defaults": {},
    "all-linear": {"target_modules": "all-linear", "r": 2, "modules_to_save": ["lm_head"]},
    "a whole path": {"target_modules": ["model.layers.1.mlp.up_proj", "k_proj"]},
    "a regular expression": {"target_modules": r".*layers\.[02]\.(self_attn|mlp)\.(k|up)_proj"},
    "layers": {"target_modules": ALL, "layers_to_transform": [0, 2]},
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
    "dora": {"use_dora": True, "target_modules": ALL, "lora_dropout": 0.1, "lora_alpha": 20},
    "biases": {"lora_bias": True, "target_modules": ALL, "lora_alpha": 24},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["v_proj", "1.mlp.up_proj"]},
    "excluded, an expression": {"target_modules": ALL, "exclude_modules": r".*[01]\..*(q|up)_proj"},
    "everything": {
        "lora_bias": True, "target_modules": "all-linear", "use_rslora": True, "lora_alpha": 12,
        "modules_to_save": ["lm_head", "norm"],
    },
}  # fmt: skip
ONLY_PEFT = {  # what has no counterpart among the fields of our LoraConfig
    "gaussian": {"init_lora_weights": "gaussian"},
    "one norm": {"modules_to_save": ["model.norm", "1.input_layernorm"]},
    "embedding": {"modules_to_save": ["embed_tokens"], "target_modules": ALL},
    "embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "excluded, nothing": {"target_modules": ALL, "exclude_modules": "v_proj"},
    "biases that the base lacks": {"bias": "lora_only"},
    "all biases that the base lacks": {"bias": "all"},
    "layers pattern": {
        "target_modules": ALL, "layers_to_transform": [1], "layers_pattern": ["h", "layers"],
    },
}  # fmt: skip


def cases(configs):
    """(name, tied, dtype): also tied if a copy of a weight is trained; two in half precision."""
    copies = [name for name, fields in configs.items() if "modules_to_save" in fields]
    return [
        *product(configs, [False], ["float32"]),
        *product(copies, [True], ["float32"]),
        *product(["all-linear", "everything"], [False], ["bfloat16", "float16"]),
    ]


# --- PEFT's folders here


@pytest.mark.parametrize(("name", "tied", "dtype"), cases(CONFIGS | ONLY_PEFT))
def test_an_adapter_of_peft_here(tiny_llama, tmp_path, tokens, same_logits, name, tied, dtype):
    """PEFT trains copies: with a tied head, the head stays the frozen embedding."""
    biased = name == "biases"
    base_folder = tiny_llama(tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased)
    theirs = random_peft(llama_of(base_folder), **(CONFIGS | ONLY_PEFT)[name])
    peft_folder(tmp_path, theirs, getattr(torch, dtype))
    adapters, model, _ = load_adapter(tmp_path, load(base_folder).model)
    what, expected = "PEFT's adapters read here", their_logits(theirs.float(), tokens)
    same_logits(what, "PEFT", expected, adapters, model, tokens, loss=True)
    # without the adapter the logits are others
    assert relative(minilora.forward({}, model, tokens), expected) > 0.01


KINDS = {
    "lora": peft.LoraConfig(**LORA),
    "lora, more fields": peft.LoraConfig(
        r=4, use_rslora=True, rank_pattern={"q_proj": 2}, exclude_modules=["v_proj"],
        target_modules=["q_proj", "k_proj", "v_proj"], modules_to_save=["norm"], **TASK,
    ),
    **without(METHODS, "pissa", "p-tuning"),
}  # fmt: skip
ODD = (None, "missing", True, 0, 1, 2.5, -1, "", "x", [], [1], ["q_proj"], {}, {"q_proj": 2})
# PEFT refuses some values of these; a finished adapter computes the same without them
UNREAD = {
    "eva_config", "layers_pattern", "init_lora_weights", "d_initial", "vera_dropout",
    "projection_prng_key", "tokenizer_kwargs", "prompt_tuning_init_text",
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
        names = rng.sample(sorted({*raw} - OTHER), rng.choice((1, 1, 2)))
        changes = {name: rng.choice(ODD) for name in names}
        changed = {n: v for n, v in (raw | changes).items() if v != "missing"}
        path.write_text(json.dumps(changed))
        try:
            adapters, adapted, _ = load_adapter(tmp_path, model)
        except InputError as error:
            assert re.search("|".join([*changes, "tensor", "no targets"]), str(error)), changes
            continue
        try:
            with quietly():
                theirs = peft.PeftModel.from_pretrained(llama_of(tiny_llama()), tmp_path)
        except Exception:
            assert any(name in UNREAD or not value for name, value in changes.items()), changes
            continue
        ours = minilora.forward(adapters, adapted, tokens)
        # `same_logits` has the same bound
        assert relative(ours, their_logits(theirs.eval(), tokens)) <= 1e-5, changes


# --- our folders in PEFT


@pytest.mark.parametrize(("name", "tied", "dtype"), cases(CONFIGS))
def test_our_adapter_in_peft(tiny_llama, tmp_path, tokens, same_logits, name, tied, dtype):
    """PEFT computes with trained biases on a base without."""
    base_folder = tiny_llama(tie_word_embeddings=tied)
    lora_config, groups = ours_of(**CONFIGS[name])
    model, _ = load(base_folder)
    adapters, model = our_adapter(model, lora_config, groups)
    save_adapter(tmp_path / "ours", adapters, model, lora_config, dtype)
    theirs = in_peft(llama_of(base_folder), tmp_path / "ours").float()
    if dtype != "float32":
        adapters = load_adapter(tmp_path / "ours", model).adapters
    what, expected = "our adapters in PEFT", their_logits(theirs, tokens)
    same_logits(what, "PEFT", expected, adapters, model, tokens, loss=True)
    with quietly():
        theirs.save_pretrained(tmp_path / "theirs")
    assert_same_config(tmp_path / "ours", tmp_path / "theirs")


def ours_of(lora_bias=False, modules_to_save=(), **fields):
    """(our LoraConfig, groups of `also_train`) of the fields of a config of PEFT."""
    groups = [GROUPS[name] for name in modules_to_save]
    return LoraConfig(**fields), [*groups, "bias"] if lora_bias else groups


def assert_same_config(*folders):
    """What PEFT makes of our adapter_config.json, written out again by itself, is the same."""
    ours, theirs = (json.loads((path / "adapter_config.json").read_text()) for path in folders)
    for key in ours.keys() - {"peft_version"}:
        assert ours[key] == theirs[key] or sorted(ours[key]) == sorted(theirs[key]), key
    for key in theirs.keys() - ours.keys() - {"peft_version", *LORA_NEUTRAL}:
        assert not theirs[key], f"a new field of PEFT is on: {key}"


@pytest.mark.parametrize("scheme", ["none", "nf4-dq", "int8"])
def test_the_merged_folder_in_transformers(tiny_llama, tmp_path, tokens, same_logits, scheme):
    """What `minilora merge` writes computes there what base and adapter compute here."""
    (lora_config, groups), base_folder = ours_of(**CONFIGS["everything"]), tiny_llama()
    model, _ = load(base_folder, scheme)
    adapters, model = our_adapter(model, lora_config, groups)
    save_adapter(tmp_path / "adapter", adapters, model, lora_config)
    merged = tmp_path / "merged"
    places = "--model", base_folder, "--adapter-path", tmp_path / "adapter", "--out", merged
    run("merge", *places, "--quantize", scheme)
    theirs = their_logits(llama_of(merged), tokens)
    what = "minilora merge, all schemes", "transformers"
    same_logits(*what, theirs, adapters, model, tokens, loss=True)
