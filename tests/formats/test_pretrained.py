"""Read and write Hugging Face folders, and reject malformed ones."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from faults import Faults
from toy_models import CONFIG, Q, assert_same, folder, leaves, tiny

import minilora
from minilora.config import ALL_LINEAR, ATTENTION, InputError, LoraConfig
from minilora.data.tokenizer import ByteTokenizer
from minilora.formats import safetensors_file
from minilora.formats.families import FAMILIES
from minilora.formats.files import new_folder
from minilora.formats.pretrained import load, save_pretrained, shapes
from minilora.formats.quantized_file import save_quantized
from minilora.methods.registry import get_peft_model
from minilora.tree import flatten, get, unflatten

LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def test_a_folder_loads(tmp_path):
    w = leaves()
    config, base, words = load(folder(tmp_path, w))
    assert_same(base, w)
    assert replace(config, rms_norm_eps=CONFIG.rms_norm_eps) == CONFIG
    assert isinstance(words, ByteTokenizer)
    assert get(base, Q).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path, dtype, tied):
    config = replace(
        CONFIG, tie_word_embeddings=tied, rope_theta=5e5, bos_token_id=3, eos_token_id=(255, 7),
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    )  # fmt: skip
    w = leaves(config)
    save_pretrained(tmp_path / "out", config, unflatten(w), dtype=dtype)
    back, base, _ = load(tmp_path / "out")
    name = safetensors_file.FORMAT_NAME[dtype]
    stored = {
        p: safetensors_file.decode(safetensors_file.encode(x, name), name) for p, x in w.items()
    }
    assert back == config
    assert_same(base, stored)
    # float16 keeps 11 significant bits, bfloat16 8: half a unit in the last place
    bound = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    # (numbers below float16's normal range, 2⁻¹⁴, keep fewer)
    normal = {p: np.abs(x) >= 2**-14 for p, x in w.items()}
    error = max(np.max(np.abs(stored[p] / x - 1)[normal[p]]) for p, x in w.items())
    assert error <= bound and (dtype == "float32" or error > bound / 2)


def test_the_tokenizer_travels_with_the_model(tmp_path):
    words = tiny()
    config = replace(CONFIG, vocab_size=words.vocab_size, eos_token_id=(2,))
    save_pretrained(tmp_path / "out", config, unflatten(leaves(config)), words)
    back = load(tmp_path / "out")[2]
    assert back.encode("hel 1<|im_end|>") == words.encode("hel 1<|im_end|>")
    assert back.chat_template == words.chat_template


def test_shards(tmp_path):
    path, w = folder(tmp_path), leaves()
    (path / "model.safetensors").unlink()
    names = sorted(w)
    where = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    for shard in set(where.values()):
        safetensors.numpy.save_file({n: w[n] for n in names if where[n] == shard}, path / shard)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same(load(path)[1], w)

    for weight_map, message in (
        ({**where, names[0]: where[names[1]]}, f"lacks tensor {names[0]}"),
        ({**where, names[0]: "../secret.safetensors"}, "weight_map must map"),
        ({**where, names[0]: "none.safetensors"}, "none.safetensors cannot be read"),
        (["a"], "weight_map must map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=message):
            load(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_config_names_the_dtype_of_the_tensors(tmp_path, dtype):
    """transformers loads a model in the dtype that config.json names."""
    save_pretrained(tmp_path / "out", CONFIG, unflatten(leaves()), dtype=dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    header = safetensors_file.read_header(tmp_path / "out" / "model.safetensors")
    expected = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    assert {entry.dtype for entry in header.values()} == {expected}


def test_the_generation_config_travels_with_the_model(tmp_path):
    """Without it, transformers samples from a merged chat model with other settings."""
    path = folder(tmp_path)
    settings = {"do_sample": True, "eos_token_id": [255, 254], "temperature": 0.6, "top_p": 0.9}
    text = json.dumps(settings, indent=2) + "\n"
    (path / "generation_config.json").write_text(text)
    model = load(path)
    adapters, base = get_peft_model(model.base, LoraConfig())
    save_pretrained(tmp_path / "merged", model.model_config, minilora.merge(adapters, base))
    save_quantized(tmp_path / "quantized", model.model_config, load(path, "nf4").base)
    for out in ("merged", "quantized"):
        assert (tmp_path / out / "generation_config.json").read_text() == text
    save_pretrained(tmp_path / "none", CONFIG, model.base)
    assert not (tmp_path / "none" / "generation_config.json").exists()


def test_biases_are_leaves(tmp_path):
    w = leaves(biased=ALL_LINEAR)
    path = folder(tmp_path, w, attention_bias=True, mlp_bias=True)
    base = load(path)[1]
    assert_same(base, w)
    save_pretrained(tmp_path / "out", CONFIG, base)
    assert_same(load(tmp_path / "out")[1], w)


def test_a_bias_trained_in_one_place_is_zero_in_the_others(tmp_path):
    """In Hugging Face's format, all attention projections of all layers have biases or none."""
    bias = "model.layers.0.self_attn.q_proj.bias"
    w = {**leaves(), bias: np.ones(32, np.float32)}
    save_pretrained(tmp_path / "out", CONFIG, unflatten(w))
    base = flatten(load(tmp_path / "out")[1])
    assert set(base) == set(shapes(CONFIG, ATTENTION))
    assert all(base[p].any() == (p == bias) for p in base if p.endswith("bias"))


def test_a_new_head_unties_the_embedding(tmp_path):
    w = leaves(replace(CONFIG, tie_word_embeddings=False))
    save_pretrained(tmp_path / "out", CONFIG, unflatten(w))
    config, base, _ = load(tmp_path / "out")
    assert not config.tie_word_embeddings
    assert_same(base, w)


def test_needless_tensors_are_left_out(tmp_path):
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    tied = {"lm_head.weight": leaves()["model.embed_tokens.weight"]}
    assert_same(load(folder(tmp_path, {**leaves(), **old, **tied}))[1], leaves())


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_parameters": None}, 1e4, None),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, 5e5, LLAMA3),
        ({"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, LLAMA3),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}},
            1e4,
            {"rope_type": "linear", "factor": 4.0},
        ),
    ],
)
def test_rope_fields_of_both_generations(tmp_path, fields, theta, scaling):
    config = load(folder(tmp_path, **fields))[0]
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_as_many_key_value_heads_as_heads_by_default(tmp_path):
    expected = replace(CONFIG, num_key_value_heads=4)
    config = load(folder(tmp_path, leaves(expected), num_key_value_heads=None))[0]
    assert config.num_key_value_heads == 4


def test_end_tokens_and_defaults(tmp_path):
    path = folder(
        tmp_path, eos_token_id=[255, 7], head_dim=None, tie_word_embeddings=None, rms_norm_eps=None,
        tensors=leaves(replace(CONFIG, tie_word_embeddings=False)),
    )  # fmt: skip
    config = load(path)[0]
    assert config.eos_token_id == (255, 7)
    assert config.head_dim == 8
    assert config.rms_norm_eps == 1e-6
    assert not config.tie_word_embeddings, "Hugging Face's default for a Llama"
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert load(path)[0].eos_token_id == (1, 2), "what generation uses wins, as in transformers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "phi3"},
            f"model_type 'phi3' .*; {', '.join(FAMILIES)} are",
        ),
        ({"model_type": None}, "model_type None is not implemented"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": None}, "config.json: hidden_size must be a whole number from 1, got None"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number from 1"),
        ({"num_key_value_heads": 3}, "config.json: num_attention_heads 4 is not a multiple"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a positive number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a positive number"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps must be a positive number"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"eos_token_id": 256}, "256 is outside the vocabulary of 256 tokens"),
        ({"eos_token_id": [255, 10**30]}, "outside the vocabulary of 256 tokens"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": "false"}, "attention_bias must be true or false"),
        (
            {"rope_parameters": {"rope_theta": 5e5, **LLAMA3, "high_freq_factor": 1.0}},
            "low_freq_factor 1.0 .* below high_freq_factor",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not implemented"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor must be a positive number"),
        ({"rope_parameters": [1]}, "rope parameters must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        # the header says one thing, the configuration another
        ({"intermediate_size": 48}, r"gate_proj.weight has the shape \(64, 32\), but the config"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 10**12}, "input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "tensor model.layers.1.[a-z_.]+ is not part of a llama"),
        ({"attention_bias": True}, "self_attn.q_proj.bias is missing"),
        ({"vocab_size": 512}, "has no tokenizer.json"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
    ],
)
def test_configurations_that_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path, **changes))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((32, 32), np.nan, np.float32), "q_proj.weight has a NaN"),
        (np.full((32, 32), -np.inf, np.float16), "q_proj.weight has a NaN or an infinite"),
        (np.ones((16, 32), np.float32), r"q_proj.weight has the shape \(16, 32\)"),
        (np.ones((32, 32), np.int8), "q_proj.weight holds int8"),
        (None, "q_proj.weight is missing from .*model.safetensors"),
    ],
)
def test_tensors_that_are_refused(tmp_path, value, message):
    w = {**leaves(), Q: value}
    path = folder(tmp_path, {p: x for p, x in w.items() if x is not None})
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_truncated_model(tmp_path):
    file = folder(tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model.safetensors.*(truncated|is empty)"):
            load(file.parent)


def test_more_layers_than_tensors(tmp_path):
    """A single tensor with a large layer number does not make a model with so many layers."""
    last = {f"model.layers.{10**9 - 1}.input_layernorm.weight": np.ones(32, np.float32)}
    with pytest.raises(InputError, match=r"num_hidden_layers is 1000000000, .* has 21 tensors"):
        load(folder(tmp_path, {**leaves(), **last}, num_hidden_layers=10**9))


def test_a_name_with_control_characters_stays_on_one_line(tmp_path):
    name = "model.layers.0\n\x1b[2J"
    path = folder(tmp_path)
    index = {"weight_map": {name: "model-1.safetensors"}}
    (path / "model.safetensors").rename(path / "model-1.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"layers.0\\n\\x1b\[2J") as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_a_long_value_is_cut_in_the_message(tmp_path):
    with pytest.raises(InputError, match=r"hidden_size must be .* … ") as caught:
        load(folder(tmp_path, hidden_size="x" * 10**6))
    assert len(str(caught.value)) < 2000


def test_a_pickle_is_never_opened(tmp_path):
    path = folder(tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin, a pickle, which can run any program"):
        load(path)


def test_models_that_do_not_exist(tmp_path):
    for name in ("tinny", str(tmp_path / "none"), ""):
        with pytest.raises(InputError, match="there is no model"):
            load(name)
    for name, meant in (("tinny", "tiny"), ("Micro", "micro"), ("smollm-2", "smollm2")):
        with pytest.raises(InputError, match=f"there is no model '{name}'.*; did you mean {meant}"):
            load(name)
    with pytest.raises(InputError, match=r"config.json is missing"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"none.gguf cannot be read"):
        load(tmp_path / "none.gguf")


def test_nothing_of_a_users_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    save_pretrained(tmp_path / "out", CONFIG, unflatten(leaves()))  # an empty folder is fine
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="exists already"):
        save_pretrained(tmp_path / "out", CONFIG, unflatten(leaves(seed=1)))
    assert sorted((tmp_path / "out").iterdir()) == before
    assert_same(load(tmp_path / "out")[1], leaves())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        save_pretrained(tmp_path / "file", CONFIG, unflatten(leaves()))


def test_a_failed_save_leaves_nothing(tmp_path):
    w = {**leaves(), Q: np.full((32, 32), 1e38, np.float32)}
    with pytest.raises(InputError, match=r"q_proj.weight has a number that F16 cannot hold"):
        save_pretrained(tmp_path / "out", CONFIG, unflatten(w), dtype="float16")
    assert list(tmp_path.iterdir()) == []
    for path, x, message in (
        (Q, w[Q][:5], "has the shape"),
        ("model.layers.0.self_attn.q_proj.lora_A", w[Q], "is not part of a llama"),
    ):
        with pytest.raises(InputError, match=message):
            save_pretrained(tmp_path / "out", CONFIG, unflatten({**leaves(), path: x}))
    with pytest.raises(InputError, match="`dtype` must be one of"):
        save_pretrained(tmp_path / "out", CONFIG, unflatten(leaves()), dtype="int4")


def test_what_a_killed_save_left_is_removed_by_the_next_one(tmp_path):
    """A child process is killed at each file operation in turn; only empty folders may remain."""
    w = unflatten(leaves())
    with Faults(tmp_path) as faults:
        save_pretrained(tmp_path / "out", CONFIG, w)
    for at in range(1, len(faults.seen) + 1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        child = os.fork()
        if child == 0:
            with Faults(tmp_path, at, lambda path: os._exit(9)):
                save_pretrained(tmp_path / "out", CONFIG, w)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, faults.seen[at - 1]
        if not (tmp_path / "out").exists():
            save_pretrained(tmp_path / "out", CONFIG, w)
        assert_same(load(tmp_path / "out")[1], leaves())
        assert not list(tmp_path.glob(".out.*/*")), faults.seen[at - 1]


def test_a_save_leaves_other_folders_alone(tmp_path):
    """Those of a process that still writes, also of this one, and those of a user."""
    mine = {".out.1.tmp": "notes.txt", ".out.2.tmp": "minilora.new", ".outer.3.tmp": "a"}
    for name, file in mine.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("mine")
    (tmp_path / ".out.4.tmp").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(InputError, match="out cannot be written: Directory not empty"),
        new_folder(tmp_path / "out") as first,
    ):
        (first / "a").write_text("first")
        with new_folder(tmp_path / "out") as second:
            (second / "a").write_text("second")
        assert (first / "a").read_text() == "first"
    assert (tmp_path / "out" / "a").read_text() == "second"
    shutil.rmtree(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_embedded_bases(name):
    config, base, words = load(name)
    assert set(flatten(base)) == set(shapes(config))
    assert isinstance(words, ByteTokenizer) and config.eos_token_id == (255,)


def test_a_tokenizer_with_ids_beyond_the_embedding(tmp_path):
    """The largest id may be a token of the vocabulary or one that the post-processor adds."""
    words = tiny()
    config = replace(CONFIG, vocab_size=words.vocab_size, eos_token_id=(2,))
    save_pretrained(tmp_path / "out", config, unflatten(leaves(config)), words)
    path = tmp_path / "out" / "tokenizer.json"
    raw = json.loads(path.read_text())
    model = raw["model"] | {"vocab": raw["model"]["vocab"] | {"far": 261}}
    first = {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {
            "far": {"id": "far", "ids": [300], "tokens": ["far"]}},
        "single": [{"SpecialToken": {"id": "far", "type_id": 0}}],
    }  # fmt: skip
    for parts, n in (({"model": model}, 262), ({"post_processor": first}, 301)):
        path.write_text(json.dumps(raw | parts))
        with pytest.raises(InputError, match=f"has {n} tokens, but the embedding only 261"):
            load(tmp_path / "out")
