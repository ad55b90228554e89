"""Read and write Hugging Face folders, and reject malformed ones."""

import errno
import json
import os
import shutil
import warnings
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from faults import KILLED, Faults, kill
from outcomes import refused
from safetensors.numpy import save_file
from toy_models import (
    CONFIG,
    LLAMA3,
    Q,
    assert_same,
    change_json,
    folder,
    in_shards,
    leaves,
    read_json,
    tiny,
    toy_model,
)

from minilora import lora
from minilora.config import ALL_LINEAR, InputError, LoraConfig
from minilora.data.tokenizer import ByteTokenizer
from minilora.formats.checkpoint import save_adapter
from minilora.formats.families import FAMILIES
from minilora.formats.files import append, errors_in, new_folder, write_errors
from minilora.formats.hf_folder import read_config
from minilora.formats.pretrained import files, load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.layers import dense
from minilora.lessons.helpers.pretraining import RECIPES
from minilora.model import lm_head
from minilora.quant.schemes import quantize
from minilora.tree import flatten


def test_a_folder_loads(tmp_path):
    """Also one with tensors that old folders have: rotary frequencies, a copy of a tied head."""
    w = leaves(biased=ALL_LINEAR)
    needless = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "lm_head.weight": w["model.embed_tokens.weight"],
    }
    path = folder(tmp_path, w | needless, attention_bias=True, mlp_bias=True)
    change_json(path / "config.json", head_dim=None)  # as in published files
    model, words = load(path)
    assert_same(model.base, w)
    order = list(flatten(model.base))
    assert order == list(w), "the order of the tree does not depend on the file"
    assert replace(model.config, rms_norm_eps=CONFIG.rms_norm_eps) == CONFIG
    assert isinstance(words, ByteTokenizer)


def test_the_files_of_a_model_are_all_that_are_read(tmp_path):
    """The digest of a model is theirs."""
    names = {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
        "added_tokens.json", "additional_chat_templates/default.jinja",
        "additional_chat_templates/tool_use.jinja",
    }  # fmt: skip
    (tmp_path / "additional_chat_templates").mkdir()
    for name in names | {"README.md"}:
        (tmp_path / name).touch()
    assert {*files(tmp_path)} == {tmp_path / name for name in names}


def test_a_vocabulary_of_256_in_another_tokenizer_is_not_that_of_bytes(tmp_path):
    path = folder(tmp_path)
    for name in (
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "tokenizer.model",
        "tekken.json",
    ):
        (path / name).touch()
        with refused(r"has no tokenizer\.json: write one with transformers"):
            load(path)
        (path / name).unlink()


def test_a_head_that_differs_from_the_embedding_is_not_tied(tmp_path):
    """Whatever config.json says, as in transformers 5; also with one bit of difference."""
    w = {path: x.astype(np.float16) for path, x in leaves().items()}
    head = w["model.embed_tokens.weight"].copy()
    head[3, 4] = np.nextafter(head[3, 4], np.float16(9))
    model, _ = load(folder(tmp_path, w | {"lm_head.weight": head}), low_precision=True)
    np.testing.assert_array_equal(dense(lm_head(model.base)), head.astype(np.float32))
    assert not model.config.tie_word_embeddings


def test_warnings_point_to_the_call(tmp_path, monkeypatch):
    """Python shows a line of the user's program, and none of the package."""
    words, path = tiny(), tmp_path / "model"
    config = replace(CONFIG, vocab_size=words.vocab_size, tie_word_embeddings=False)
    head = {"lm_head.weight": np.zeros((words.vocab_size, 32), "f4")}  # the last, is not rounded
    save_pretrained(path, toy_model(config, head), words)
    change_json(path / "config.json", logits_scaling=8.0)
    change_json(path / "tokenizer_config.json", auto_map="a", tokenizer_class="GPTNeoXTokenizer")
    (path / "adapter_config.json").write_text("{}")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "micro").mkdir()
    with warnings.catch_warnings(record=True, action="always") as said:
        assert load(path, compute_dtype="bfloat16").model.source.compute_dtype == "bfloat16"
        assert len(said) == 6
        load("micro")
        save_quantized(tmp_path / "q", quantize(toy_model(), "nf4", 16))
    assert [warning.filename for warning in said] == [__file__] * 8
    texts = [str(warning.message) for warning in said]
    assert f"{path} also has an adapter, which is not loaded with the base: load it" in texts[1]
    assert texts[5] == f"the dense weights of {path} are rounded to bfloat16"
    assert "micro is the model of this name: write ./micro for" in texts[6]


def test_shards(tmp_path):
    path, w = folder(tmp_path), leaves()
    index = in_shards(path, w)
    assert_same(load(path).model.base, w)
    assert len(files(path)) == 4
    one = path / "model.safetensors"  # which transformers reads first
    save_file(leaves(seed=1), one)
    assert_same(load(path).model.base, leaves(seed=1))
    one.unlink()

    change_json(index, weight_map=dict.fromkeys(w, "model-0.safetensors"))
    with refused("is missing"):
        load(path)
    change_json(index, weight_map={Q: "../secret.safetensors"})
    with refused("weight_map must map"):
        load(path)


def test_generation_config_and_tokenizer_travel_with_the_model(tmp_path):
    """Without it, transformers samples from a merged chat model with other settings."""
    words = tiny()
    generation = {"do_sample": True, "eos_token_id": [253, 254], "rms_norm_eps": 0.5}
    config = replace(
        CONFIG, vocab_size=words.vocab_size, eos_token_id=(254, 253), generation_config=generation
    )
    save_pretrained(tmp_path / "out", toy_model(config), words)
    model, back = load(tmp_path / "out", "nf4")
    ends = [253, 254, words.eos_token_id]  # training ends a row with the tokenizer's token
    assert model.config.eos_token_id == back.eos_token_ids == (*ends,)
    assert model.config.rms_norm_eps == config.rms_norm_eps  # of config.json
    assert back.chat_template == words.chat_template
    save_quantized(tmp_path / "quantized", model, back)
    for name, expected in (("out", [253, 254]), ("quantized", ends)):
        written = read_json(tmp_path / name / "generation_config.json")
        # transformers' generate stops at these only
        assert written == generation | {"eos_token_id": expected}
    save_pretrained(tmp_path / "none", toy_model(replace(CONFIG, eos_token_id=())))
    assert not (tmp_path / "none" / "generation_config.json").exists()
    assert read_json(tmp_path / "none" / "config.json")["eos_token_id"] is None


@pytest.mark.parametrize("ends, first", [([], (5,)), (0, (0,)), ([7, 9], (7, 9))])
def test_the_ends_of_config_json_if_the_other_file_names_none(tmp_path, ends, first):
    path = folder(tmp_path, eos_token_id=5, bos_token_id=5)
    other = path / "generation_config.json"
    other.write_text(json.dumps({"eos_token_id": ends, "bos_token_id": ends}))
    config, _ = read_config(path)
    assert (config.eos_token_id, config.bos_token_id) == (first, first[0])
    other.write_text('{"eos_token_id": "</s>"}')
    with refused("generation_config.json: `eos_token_id` must be"):
        load(path)


LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "bert"}, f"model_type 'bert' .*; {', '.join(FAMILIES)} are"),
        ({"is_causal": False}, "`is_causal` must be true, got False"),
        ({"hidden_act": None}, "hidden_act None is not implemented; only silu is"),  # no default
        ({"rms_norm_eps": 10**400}, "`rms_norm_eps` must be a positive number"),
        ({"rope_parameters": LINEAR | {"factor": 0}}, "`factor` must be a positive number"),
        ({"eos_token_id": 256}, "has the token 256, but the embedding has 256 rows"),
        (
            {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}},
            "low_freq_factor 1.0 .* below high_freq_factor",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not implemented"),
        ({"rope_parameters": []}, r"config.json: `rope_parameters` must be an object .*, got \[\]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"mlp_bias": 1}, "`mlp_bias` must be true or false"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` must be true or false"),
        ({"quantization_config": {"load_in_4bit": True}}, "model: config.json has a quantization_"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not supported"),
        # the header says one thing, the configuration another
        ({"intermediate_size": 48}, r"proj.weight has the shape \(\d+, \d+\), not"),
        ({"num_hidden_layers": 10**12}, "must be a whole number from 1 to 4,096"),
        ({"num_hidden_layers": 1}, r"tensor \S+ does not belong here \(one of 9\)$"),
        ({"attention_bias": True}, r"^.*model: tensor .*q_proj.bias is missing"),
        ({"rope_scaling": LINEAR}, "rope_scaling next to rope_param"),
    ],
)
def test_configurations_that_are_refused(tmp_path, changes, message):
    path = folder(tmp_path)
    change_json(path / "config.json", **changes)
    with refused(message):
        load(path)


WITHOUT_EFFECT = (  # fields of published files
    "initializer_range transformers.js_config pad_token_id cache_implementation "
    "chunk_size_feed_forward id2label is_llama_config label2id max_length "
    "pretraining_tp problem_type return_dict transformers_version unsloth_fixed "
    "unsloth_version use_cache _name_or_path output_attentions"
)


def test_fields_that_are_not_read_are_named(tmp_path):
    off = dict.fromkeys(WITHOUT_EFFECT.split(), 7) | {"scale": 0.0}
    # fields that are read, but not kept: the model can be written in another dtype
    not_kept = {"dtype": "float16", "is_causal": True, "partial_rotary_factor": 1.0}
    unread = {"attention_dropout": 0.1, "hidden_activation": "gelu", "logits\n_scaling": 8.0}
    path = folder(tmp_path, **off, **not_kept)
    with warnings.catch_warnings(action="error"):
        load(path)
    change_json(path / "config.json", **unread)
    with pytest.warns(UserWarning, match=r"not read: (\w+, ){2}logits\\n_scaling\."):
        model, _ = load(path)
    save_pretrained(tmp_path / "out", model)
    written = read_json(tmp_path / "out" / "config.json")
    assert written.items() >= (off | unread).items()
    assert written.keys().isdisjoint([*not_kept, "rope_parameters"])


def test_a_tensor_of_whole_numbers_is_refused(tmp_path):
    with refused("q_proj.weight holds int8"):
        load(folder(tmp_path, {**leaves(), Q: np.ones((32, 32), np.int8)}))


def test_a_pickle_is_never_opened(tmp_path):
    path = folder(tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with refused(r"model.safetensors is missing: save .*, no pickle"):
        load(path)


def test_models_that_do_not_exist(tmp_path):
    with refused("there is no model"):
        load("")
    with refused("config.json cannot be read: No such file"):
        load(tmp_path)
    with refused("none.gguf cannot be read"):
        load(tmp_path / "none.gguf")
    (tmp_path / "adapter_config.json").write_text("{}")
    with refused("is the folder of an adapter: give it to --adapter-path"):
        load(tmp_path)


def test_nothing_of_a_users_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    save_pretrained(".", toy_model())  # an empty folder is fine
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "file", "link"):
        with refused("exists already"):
            save_pretrained(tmp_path / name, toy_model(seed=1))
    assert_same(load(tmp_path / "out").model.base, leaves())


def test_a_failed_save_leaves_nothing(tmp_path):
    model = toy_model(changed={Q: np.full((32, 32), 1e38, "f4")})
    with refused("q_proj.weight has a number .* too large"):
        save_pretrained(tmp_path / "out", model, dtype="float16")
    assert not os.listdir(tmp_path)


def save(out):
    save_pretrained(out, toy_model())


def test_what_a_killed_save_left_is_removed_by_the_next_one(tmp_path):
    """A child process is killed at each file operation in turn."""
    out = tmp_path / "out"
    with Faults(tmp_path) as faults:
        save(out)
    for at in range(1, len(faults.seen) + 1):
        shutil.rmtree(out, ignore_errors=True)
        assert kill(tmp_path, at, save, out) == KILLED, faults.seen[at - 1]
        if not out.exists():
            save(out)
            assert os.listdir(tmp_path) == ["out"], faults.seen[at - 1]
        assert_same(load(out).model.base, leaves())


def test_a_save_leaves_other_files_alone(tmp_path):
    """Those of a process that still writes, and those of a user."""
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "notes.txt").write_text("mine")
    with new_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        again = new_folder(tmp_path / "out")
        with refused(r"another process is writing .*out\.tmp: wait"), again:
            raise AssertionError
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert (tmp_path / ".out.tmp" / "notes.txt").read_text() == "mine"
    (tmp_path / "out").rename(tmp_path / "first")
    save(tmp_path / "out")  # the same process can write again, because its lock has ended


def test_a_file_system_without_locks_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    save(tmp_path)
    assert_same(load(tmp_path).model.base, leaves())


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path):
    """Otherwise, a loss of power could leave the name without the contents."""
    model, config = toy_model(), LoraConfig()
    (tmp_path / "log").write_text("a line\nhalf of")
    first_free = os.dup(0)
    os.close(first_free)
    with Faults(tmp_path) as faults:
        for seed in range(2):  # in a new folder, and in place of another one
            save_adapter(tmp_path / "a", lora.init(model.base, config, seed), model, config)
            # with the same config, the old weights stay until the new ones replace them
            assert faults.seen.count(("unlink", "adapter_model.safetensors")) == 1
        save(tmp_path / "out")
        append(tmp_path / "log", len("a line\n"), "é\n")
    buffered, cached = set(), set()  # files with contents in the process, in the system
    for operation, name in faults.seen:
        if operation == "write":
            buffered.add(name)
        elif operation in ("flush", "close"):
            cached |= buffered & {name}
            buffered.discard(name)
        elif operation == "fsync":
            cached.discard(name)
        elif operation in ("replace", "rename") or name == "adapter_model.safetensors":
            assert not buffered | cached, (operation, name)
    assert not buffered | cached
    assert {("fsync", "a"), ("fsync", tmp_path.name)} <= {*faults.seen}
    assert (tmp_path / "log").read_text("utf-8") == "a line\né\n"
    assert os.dup(0) == first_free  # no file is left open
    os.close(first_free)


def test_an_error_while_a_file_is_used_names_the_file():
    kinds = ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
    says = {kind("b"): f"a is malformed: {kind.__name__}: b" for kind in kinds}
    says |= dict.fromkeys((OSError("b"), OSError(1, "b")), "a cannot be read: b")
    for error, text in {**says, InputError("b"): "a: b"}.items():
        with refused(f"^{text}$"), errors_in("a"):
            raise error
    with refused("^a cannot be written: b: check the permission"), write_errors("a"):
        raise OSError("b")


def test_a_folder_that_is_gone_while_it_is_written_is_said(tmp_path):
    out = tmp_path / "folder" / "out"
    message = rf"{out} cannot be written: No such file .*: its folder was moved or deleted$"
    with refused(message), new_folder(out):
        shutil.rmtree(tmp_path / "folder")


def test_the_embedded_bases_have_the_settings_of_the_recipes():
    for name, recipe in RECIPES.items():
        assert load(name).model.config == recipe.config
