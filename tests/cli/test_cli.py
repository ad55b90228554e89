"""The command line: complete runs, and errors."""

import argparse
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sweeps.pretraining import llama, random_params
from toy_models import CONFIG, leaves, tiny

import minilora
from minilora import (
    LoraConfig,
    MethodConfig,
    TrainConfig,
    cli,
    encode_rows,
    get_peft_model,
    load_rows,
)
from minilora.batching import Example, pack_examples
from minilora.cli import run_folder
from minilora.cli.arguments import FLAGS, Parser, flag, parse, parser
from minilora.cli.commands import load_model
from minilora.cli.examples import common_rows
from minilora.cli.loading import (
    LoadedModel,
    load_for_training,
    make_adapter_config,
    refuse_unused,
    unused_settings,
)
from minilora.cli.run import check_memory
from minilora.cli.stored_paths import absolute
from minilora.config import ALL_LINEAR, InputError
from minilora.course.commands import add_commands
from minilora.data.tokenizer import ByteTokenizer
from minilora.evaluation import memory
from minilora.evaluation.plot import curve
from minilora.formats import pretrained
from minilora.formats.checkpoint import load_state, read_metadata, save_adapter, save_state
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.safetensors_file import read_header
from minilora.kernels import fused
from minilora.methods.method import SIZES
from minilora.methods.registry import METHODS
from minilora.methods.replaced import also_train
from minilora.optim import get_lr
from minilora.tree import flatten, unflatten

FEW_STEPS = "--iters 4 --batch-size 2 --save-every 2 --steps-per-eval 2 --learning-rate 0.01"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a random byte-level Llama of two layers."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    config = llama(16, 24, 2, 2, 1)
    save_pretrained(
        folder, config, random_params(config, np.random.default_rng(0)), ByteTokenizer()
    )
    return folder


@pytest.fixture
def data(tmp_path):
    """Twenty rows of prompt and completion."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words):
    """Return the exit status of `minilora` with these arguments (a string is split at spaces)."""
    argv = [str(a) for word in words for a in (word.split() if isinstance(word, str) else [word])]
    return cli.main(argv)


def train(base, data, out, *more):
    return run("train --model", base, "--data", data, "--adapter-path", out, FEW_STEPS, *more)


def files(folder):
    """{name: bytes} of everything below a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights(folder):
    return {name: entry.read() for name, entry in read_header(folder).items()}


def test_a_run_leaves_its_folder_and_every_command_reads_it(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out, "--quantize nf4-dq --target-modules all-linear") == 0
    printed = capsys.readouterr().out
    assert "before: held-out loss" in printed and "after: held-out loss" in printed
    assert {p.name for p in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint.safetensors",
        "curve.png", "metrics.jsonl", "train_config.toml",
    }  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    # the first evaluation is that of the base
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 2, 4]
    assert f"before: held-out loss {rows[0]['eval_loss']:.4f} nats" in printed
    assert {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "seconds",
        "peak_rss_mb",
    } == set(rows[1])
    settings = tomllib.loads((out / "train_config.toml").read_text())
    assert settings["quantize"] == "nf4-dq" and settings["block_size"] == 64

    assert run("evaluate --json --split valid --adapter-path", out) == 0
    score = json.loads(capsys.readouterr().out)
    metrics = {"loss", "perplexity", "tokens", "exact_match", "ece", "brier"}
    rows_scored = {"rows", "data", "left_out", "cut", "max_seq_length", "trained_on"}
    rows_scored |= {"held_out_by_the_run", "loss_of", "exact_match_of", "answers_cut_off"}
    rows_scored |= {"model", "quantize"}
    assert set(score) == metrics | rows_scored
    assert score["rows"] == 2 and score["data"] == f"valid split of {data}"
    assert score["left_out"] == {} and score["cut"] == score["trained_on"] == 0
    assert score["held_out_by_the_run"] == 2 and score["max_seq_length"] == 256
    assert score["loss_of"] == "all tokens" and score["exact_match_of"] == "answers"
    assert score["loss"] == pytest.approx(
        rows[-1]["eval_loss"], rel=1e-6
    )  # the same base, as stored

    assert run("generate --prompt 1+1= --max-tokens 3 --adapter-path", out) == 0
    answer = capsys.readouterr().out
    merged = tmp_path / "merged"
    assert run("merge --adapter-path", out, "--out", merged) == 0
    capsys.readouterr()
    assert run("generate --prompt 1+1= --max-tokens 3 --model", merged) == 0
    assert capsys.readouterr().out == answer
    assert run("inspect --adapter-path", out, "--data", data) == 0
    assert "trainable params" in capsys.readouterr().out


def test_a_quantized_folder_holds_what_quantizing_on_loading_gives(base, tmp_path, capsys):
    out = tmp_path / "four-bit"
    assert run("quantize --model", base, "--quantize int8 --out", tmp_path / "int8") == 0
    words = "quantize --model", base, "--quantize int8 --block-size=32 --out", out
    assert "--block-size has no effect with --quantize int8" in error_of(capsys, run(*words))
    assert run("quantize --model", base, "--quantize nf4 --block-size 32 --out", out) == 0
    assert "bits per weight" in capsys.readouterr().out
    stored, direct = flatten(load(out)[1]), flatten(load(base, "nf4", 32)[1])
    for path, leaf in direct.items():
        if hasattr(leaf, "codes"):
            assert np.array_equal(stored[path].codes, leaf.codes)
            assert np.array_equal(stored[path].absmax, leaf.absmax)


def test_the_same_seed_gives_the_same_bytes(base, data, tmp_path):
    for name in ("a", "b"):
        assert train(base, data, tmp_path / name, "--lora-dropout 0.3") == 0
    a, b = (tmp_path / n / "adapter_model.safetensors" for n in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_a_killed_run_resumes_to_the_same_bytes(base, data, tmp_path):
    """Kill a run when it has a checkpoint, resume it, and compare with an uninterrupted run."""
    steps = "--iters 40 --batch-size 2 --save-every 1 --lora-dropout 0.2 --learning-rate 0.01"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["train", "--model", str(base), "--data", str(data), *steps.split()]
    assert run(*words, "--adapter-path", whole) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", *words, "--adapter-path", str(broken)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (broken / "checkpoint.safetensors").exists():
        assert process.poll() is None, "the run ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_state(broken / "checkpoint.safetensors")[1]["step"] < 40
    assert run("train --resume --adapter-path", broken) == 0
    for name in ("adapter_model.safetensors", "checkpoint.safetensors"):
        a, b = weights(whole / name), weights(broken / name)
        assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)
    steps = [json.loads(x)["step"] for x in (broken / "metrics.jsonl").read_text().splitlines()]
    # an evaluation before the first step, and one after the last
    assert sorted(set(steps)) == list(range(41)) and len(steps) == 1 + 40 + 1


def test_a_folder_of_two_splits_and_the_settings_file(base, data, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text('{"text": "ab ab ab"}\n')
    toml = tmp_path / "settings.toml"
    toml.write_text('lora-r = 3\nuse_rslora = true\ntarget_modules = ["v_proj"]\niters = 9\n')
    out = tmp_path / "out"
    assert train(base, folder, out, "-c", toml) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 3 and config["use_rslora"] is True
    settings = tomllib.loads((out / "train_config.toml").read_text())
    assert settings["iters"] == 4  # the command line wins


def test_also_train_starts_from_an_adapter_and_in_bfloat16(base, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(base, data, first, "--lora-r 5") == 0
    more = "--also-train norm head --adapter-dtype bfloat16 --learning-rate 1e-9"
    assert train(base, data, second, "--init-adapter", first, more) == 0
    config = json.loads((second / "adapter_config.json").read_text())
    assert config["r"] == 5
    entries = read_header(second / "adapter_model.safetensors")
    assert {entry.dtype for entry in entries.values()} == {"BF16"}


@pytest.mark.parametrize("start", [True, "pissa"])
def test_the_base_of_an_adapter_is_stored_as_the_settings_say(start, base, tmp_path):
    """For a new adapter, for the adapter of --init-adapter, and for the adapter of a run."""
    dense, config = load(base)[1], LoraConfig(init_lora_weights=start)
    save_adapter(tmp_path, *get_peft_model(dense, config), config, str(base))
    words = ["train", "--model", str(base), "--quantize", "fp4", "--block-size", "32"]
    start_flag = ["--init-lora-weights", start] if start == "pissa" else []
    settings = {"model": str(base), "quantize": "fp4", "block_size": 32}
    (tmp_path / "train_config.toml").write_text(run_folder.as_toml(settings))
    for loaded in (
        load_for_training(parse([*words, *start_flag])),
        load_for_training(parse([*words, "--init-adapter", str(tmp_path)])),
        load_model(parse(["evaluate"]), tmp_path),
    ):
        leaves = flatten(loaded.base).items()
        stored = [w for path, w in leaves if path.endswith("_proj.weight")]
        assert {(w.quant_type, w.block_size) for w in stored} == {("fp4", 32)}


def error_of(capsys, status):
    """Return the single line on standard error of a command that failed."""
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("minilora:")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


BAD_FLAGS = {
    "--target-modules w_proj": "w_proj",
    "--lora-r 0": "r must be",
    "--rank 8": "unrecognized arguments: --rank 8 (see minilora train --help)",
    "--lora-dropout 1.0": "dropout",
    "--learning-rate -1": "--learning-rate",
    "--learning-rate nan": "--learning-rate",
    "--max-grad-norm 0": "--max-grad-norm",
    "--iters 0": "--iters",
    "--save-every 0": "--save-every",
    "--layers-to-transform 7": "--layers-to-transform has 7",
    "--block-size 48": "--block-size: a block size of 48 is not a power of two",
    "--chat-date tomorrow": "--chat-date: must be a date such as 2026-01-31",
    "--model nowhere": "nowhere",
    "--data nowhere.jsonl": "nowhere.jsonl",
    "--init-adapter nowhere": "nowhere",
    "--quantize nf5": "--quantize",
    "--max-seq-length 1": "--max-seq-length",
    "--resume --overwrite": "not allowed with",
    "--lora-r eight": "--lora-r",
    "--no-such-flag": "--no-such-flag",
    "-c nowhere.toml": "nowhere.toml",
    "--lerning-rate=1": "; did you mean --learning-rate? (see minilora train --help)",
    "--learning_rate 1": "; did you mean --learning-rate?",
    "--lr 1": "unrecognized arguments: --lr 1 (see",  # and not --lora-r
    "--method lroa": "); did you mean lora? (see",
    "--quantize nf4dq": "); did you mean nf4-dq? (see",
    "--model tinny": "or a .gguf file; did you mean tiny?",
    "--data qestions": "valid.jsonl; did you mean questions?",
}


EMPTY = (
    "generate --prompt a --adapter-path=", "generate --prompt a --model=", "evaluate --data=",
    "evaluate --adapter-path=", "merge --adapter-path a --out=", "quantize --out=",
    "train --adapter-path=", "train --init-adapter=", "train --config=", "fetch smollm2 --source=",
    "learn list --dir=", "teach grade x --user=", "chat --adapter-path=",
)  # fmt: skip


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_value_is_refused(words, capsys):
    """It may be an unset variable of the shell; the command would use its default."""
    name = words.split()[-1].removesuffix("=")
    line = error_of(capsys, run(words))
    assert name in line and "the value is empty" in line


TYPOS = {
    "generate --promt a": "required: --prompt; there is no flag --promt; did you mean --prompt? (",
    "generate --text a": "required: --prompt; there is no flag --text (see minilora generate",
    "generate --prompt a --sed 3": "arguments: --sed 3; did you mean --seed? (see minilora gen",
    "trian --model tiny": "); did you mean train? (see minilora --help)",
    "--verison": "there is no flag --verison; did you mean --version?",
    "fetch smollm": "; did you mean smollm2?",
    "learn inti": "); did you mean init? (see minilora learn --help)",
    "learn list --dri x": "; did you mean --dir? (see minilora learn list --help)",
    "learn hint x 4": "(choose from 1, 2, 3) (see",
}


@pytest.mark.parametrize("words", TYPOS)
def test_a_mistyped_word_gets_a_suggestion(words, capsys):
    assert TYPOS[words] in error_of(capsys, run(words))


def parsers(top):
    """Yield a parser and those of its commands."""
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def test_every_flag_of_every_command_has_a_text_and_its_default():
    course = Parser(prog="minilora")
    add_commands(course)
    every = [*parsers(parser()), *parsers(course)]
    assert len(every) > 20
    for sub in every:
        for action in sub._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            where = sub.prog, action.dest
            assert action.help and action.help[0].isalnum() and action.help[-1] != ".", where
            text = sub._get_formatter()._expand_help(action)
            needs_none = action.required or action.default is argparse.SUPPRESS
            assert text.count("default: ") == (not needs_none), (where, text)
            assert sub.format_help()
    quantize = {
        action.dest: action for action in every[0]._actions[-1].choices["quantize"]._actions
    }
    assert quantize["quantize"].default == "nf4-dq" and quantize["block_size"].default == 64


BAD_NUMBERS = (
    "generate --prompt a --seed -1", "generate --prompt a --block-size 0",
    "generate --prompt a --max-tokens 1000000000000", "evaluate --max-seq-length 0",
    "inspect --tokens -5", "train --lora-r 1000000000000", "train --batch-size 1000000000",
    "train --block-size 1099511627776", "train --max-seq-length -1", "train --seed -1",
)  # fmt: skip


@pytest.mark.parametrize("words", BAD_NUMBERS)
def test_a_number_out_of_range_is_one_line(words, tmp_path, capsys):
    more = ["--adapter-path", tmp_path / "out"] if words.startswith("train") else []
    error_of(capsys, run(words, "--model micro", *more))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_very_many_steps_ends(tmp_path, capsys):
    words = "train --model micro --dry-run --iters 1000000000000000000 --adapter-path"
    assert run(words, tmp_path / "out") == 0


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_a_bad_flag_is_one_line_and_writes_nothing(flags, base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert BAD_FLAGS[flags] in error_of(capsys, train(base, data, out, flags))
    assert not out.exists()


BAD_ROWS = {
    "": "empty",
    '{"text": "a"}\n{"text": ': "line 2",
    '{"words": "a"}': "line 1: the keys are ['words']: a row needs text, or prompt and",
    '{"text": "a", "prompt": "b", "completion": "c"}': "line 1",
    '{"text": 3}': "line 1",
    '{"messages": []}': "line 1",
    '{"messages": [{"role": "user", "content": "a"}]}': "line 1",
    '["text"]': "row 1",
    '{"text": "a"}\n\n{"prompt": "b"}': "line 3",
}


@pytest.mark.parametrize("text", BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(text, base, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    line = error_of(capsys, train(base, path, tmp_path / "out"))
    assert str(path) in line and BAD_ROWS[text] in line


def test_bytes_that_are_no_utf8_are_named_by_line(base, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert "line 2: not UTF-8" in error_of(capsys, train(base, path, tmp_path / "out"))


def test_rows_of_alpaca_train_and_inspect_marks_the_targets(base, tmp_path, capsys):
    path = tmp_path / "alpaca.jsonl"
    rows = [{"instruction": "Add", "input": f"{n}+1", "output": str(n + 1)} for n in range(20)]
    rows[3]["output"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(base, path, tmp_path / "run") == 0
    printed, said = capsys.readouterr()
    assert f"{path}: 19 rows, 18 for training" in printed
    assert said.splitlines()[:2] == [
        f"{path}: read as Alpaca",
        "warning: rows that are skipped because they have an empty answer: 1, "
        f"the first is {path}, line 4",
    ]
    assert run("inspect --model", base, "--data", path, "--mask-prompt") == 0
    lines = capsys.readouterr().out.split("counts the tokens with *:\n")[1].splitlines()
    marked = [(line[0], line.split(maxsplit=1 + (line[0] == "*"))[-1]) for line in lines]
    assert "".join(eval(text) for _, text in marked) == "Add\n0+1\n1"
    assert [text for mark, text in marked if mark == "*"] == ["'1'", "''"]  # and the end token


BAD_TOML = {
    "lora-r = 3\nlora_r = 4": "one setting in two spellings",
    "target-modules = []": "expected at least one argument",
    "lora-r = ": "TOML",
    "lora-q = 3": "unknown setting 'lora_q'; did you mean lora_r?",
    "[lora]\nr = 3": "lora",
    "lora-r = 'x'": "x",
    "iters = 0x" + "f" * 5000: "bad.toml is not TOML",
    "iters = " + "9" * 5000: "bad.toml is not TOML",
    "iters = " + "[" * 5000 + "]" * 5000: "bad.toml is not TOML",
    r'adapter-path = "a\u0000b"': "NUL",
    '"a\\nb" = 3': r"'a\nb'",
}


@pytest.mark.parametrize("text", BAD_TOML)
def test_a_bad_settings_file_is_one_line(text, base, data, tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert BAD_TOML[text] in error_of(capsys, train(base, data, tmp_path / "out", "-c", path))


def test_settings_of_another_version_are_one_line(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    path = out / "train_config.toml"
    first, *rest = path.read_text().splitlines(keepends=True)
    assert first == "format_version = 2\n"
    for line, found in (
        ("", "1"),
        ("format_version = 3\n", "3"),
        ("format_version = '2'\n", "'2'"),
    ):
        path.write_text(line + "".join(rest))
        error = error_of(capsys, run("evaluate", "--adapter-path", out))
        assert f"{path} has format_version {found}, but this version reads 2: train again" in error


@pytest.mark.parametrize(
    "line",
    ['block_size = "x"', "block_size = 1.5", "model = [1]", 'quantize = "x"', "data = [1, 2]",
     'max_seq_length = "x"', 'mask_prompt = "x"', "iters = 1979-05-27"],
)  # fmt: skip
def test_a_changed_train_config_is_one_line(line, base, data, tmp_path, capsys):
    """The settings in the folder of a run are checked like flags, and errors name the file."""
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    path = out / "train_config.toml"
    name = line.split()[0]
    kept = [x for x in path.read_text().splitlines() if not x.startswith(name + " ")]
    path.write_text("\n".join([*kept, line]))
    for command in ("evaluate", "generate --prompt a"):
        error = error_of(capsys, run(command, "--adapter-path", out))
        assert str(path) in error and name.replace("_", "-") in error.replace("_", "-")


BAD_METRICS = {
    b"\xff\n": "line 1",
    b'{"step": 1, "loss": 2.0}\n[1]\n{"step": 2, "loss": 2.0}\n': "line 2",
    b'{"loss": 2.0}\n{"step": 2, "loss": 2.0}\n': "line 1",
    b'{"step": "1", "loss": 2.0}\n{"step": 2, "loss": 2.0}\n': "line 1",
    b'{"step": 1, "loss": "x"}\n{"step": 2, "loss": 2.0}\n': "line 1",
    b'{"step": 1, "eval_loss": 2.0}\n{"step": 2, "loss": 2.0}\n': "line 1",
    b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo': "line 2",  # only whole files are ever written
    b"[" * 5000 + b'\n{"step": 2, "loss": 2.0}\n': "line 1",
}


@pytest.mark.parametrize("content", BAD_METRICS)
def test_damaged_metrics_are_named_by_line(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=rf"metrics\.jsonl, {BAD_METRICS[content]}: "):
        run_folder.read_metrics(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [{}, {"settings": 5}, {"settings": {}}, {"settings": {}, "digests": []},
     {"settings": [["a", 1]], "digests": {}}],
)  # fmt: skip
def test_a_checkpoint_whose_facts_are_not_a_runs(facts, base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    path = out / "checkpoint.safetensors"
    adapters, state, _ = load_state(path)
    save_state(path, adapters, state, facts)
    capsys.readouterr()
    line = error_of(capsys, train(base, data, out, "--resume"))
    assert f"{path} is not a checkpoint of a run" in line


def test_a_run_or_a_strangers_folder_is_never_overwritten(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    before = files(out)
    assert "--overwrite" in error_of(capsys, train(base, data, out))
    assert "--lora-r" in error_of(capsys, train(base, data, out, "--resume --lora-r 2"))
    assert files(out) == before
    (out / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in error_of(capsys, train(base, data, out, "--overwrite"))
    (out / "thesis.tex").unlink()
    (out / "checkpoint.safetensors.123.tmp").write_text("cut off by a kill")
    assert train(base, data, out, "--overwrite --seed 3") == 0
    assert files(out).keys() == before.keys() and files(out) != before
    assert "exists" in error_of(capsys, run("merge --adapter-path", out, "--out", out))


def test_overwriting_touches_nothing_before_the_first_checkpoint(base, data, tmp_path, capsys):
    """Neither an error before the first step nor an interrupt in it changes the folder."""
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    before = files(out)

    def interrupted(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.cli.run.train", interrupted)
        assert train(base, data, out, "--overwrite --seed 4") == 130
        assert files(out) == before
        assert train(base, data, tmp_path / "new") == 130
    assert not (tmp_path / "new").exists()
    assert capsys.readouterr().err.endswith("start the same command again\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(base, data, tmp_path, number, status):
    out = tmp_path / "run"
    words = ["train", "--model", str(base), "--data", str(data), "--adapter-path", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", *words, "--iters", "100000", "--save-every", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # a job in the background of a shell would ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (out / "adapter_model.safetensors").exists():
        time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.splitlines()[-1].endswith(f"minilora train --resume --adapter-path {out}`")
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\udcff", "a\tb"])
def test_a_message_stays_one_line_whatever_a_name_holds(tmp_path, capsys, name):
    line = error_of(capsys, run("evaluate --model micro --adapter-path", tmp_path / name))
    assert line.isprintable() and "is not the folder of an adapter" in line


def test_short_texts_train(base, tmp_path):
    """A held-out text of two letters leaves no prompt to show."""
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "ab"}\n' * 20)
    assert train(base, path, tmp_path / "run") == 0


def test_resuming_notices_other_data_and_another_base(base, data, tmp_path, capsys):
    out, own = tmp_path / "run", tmp_path / "base"
    shutil.copytree(base, own)
    assert train(own, data, out) == 0
    capsys.readouterr()
    text = data.read_text()
    data.write_text(text.replace("+1=", "+2="))
    assert f"the files of --data {data} have changed" in error_of(
        capsys, run("train --resume --adapter-path", out)
    )
    data.write_text(text)
    weights_file = own / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"\1")
    assert f"the files of --model {own} have changed" in error_of(
        capsys, run("train --resume --adapter-path", out)
    )


def test_resuming_reads_only_its_own_files(base, tmp_path, capsys):
    """Other files may come into the folders of data and base; each file that is read counts."""
    rows, own = tmp_path / "rows", shutil.copytree(base, tmp_path / "base")
    rows.mkdir()
    for split in ("train", "valid"):
        (rows / f"{split}.jsonl").write_text('{"text": "ab ab ab"}\n')
    args = parse(["train", "--model", str(own), "--data", str(rows)])
    before = run_folder.metadata(args)["digests"]
    for folder in (rows, own):
        for name in ("notes.txt", "test.jsonl", "model-00002-of-00002.safetensors"):
            (folder / name).write_text("{}")
    assert run_folder.metadata(args)["digests"] == before
    for path, setting in (
        (rows / "train.jsonl", "data"), (rows / "valid.jsonl", "data"),
        (own / "config.json", "model"), (own / "model.safetensors", "model"),
        (own / "generation_config.json", "model"), (own / "tokenizer.json", "model"),
        (own / "tokenizer_config.json", "model"), (own / "chat_template.jinja", "model"),
    ):  # fmt: skip
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(b"other")
        changed = run_folder.metadata(args)["digests"]
        assert [name for name in before if changed[name] != before[name]] == [setting], path
        path.unlink() if kept is None else path.write_bytes(kept)
    assert run_folder.metadata(args)["digests"] == before


def test_the_files_of_a_base_in_several_files(base, tmp_path):
    own = shutil.copytree(base, tmp_path / "base")
    (own / "model.safetensors").rename(own / "a.safetensors")
    (own / "other.safetensors").write_text("not in the index")
    index = {"weight_map": dict.fromkeys(read_header(own / "a.safetensors"), "a.safetensors")}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    names = [path.name for path in pretrained.files(str(own))]
    assert names == ["a.safetensors", "config.json", "model.safetensors.index.json"]


@pytest.fixture
def project(base, data, tmp_path, monkeypatch, capsys):
    """A folder with a base, rows and a run that was given relative paths; the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(base, folder / "base")
    data.rename(folder / "rows.jsonl")
    monkeypatch.chdir(folder)
    assert train("base", "rows.jsonl", "run", "--method ia3") == 0
    capsys.readouterr()
    return folder


def other_project(folder):
    """Write another base and other rows under the names of `project`."""
    folder.mkdir()
    config = llama(16, 24, 2, 2, 1)
    params = random_params(config, np.random.default_rng(1))
    save_pretrained(folder / "base", config, params, ByteTokenizer())
    (folder / "rows.jsonl").write_text('{"text": "other"}\n' * 20)


def score_of(folder, capsys, warnings=0):
    """Return what `evaluate` prints for the run in a folder, without the paths of its inputs."""
    capsys.readouterr()
    assert run("evaluate --json --adapter-path", folder) == 0
    printed, said = capsys.readouterr()
    assert said.count("\n") == said.count("its contents are not those of the run") == warnings
    return {k: v for k, v in json.loads(printed).items() if k not in ("data", "model")}


def test_the_paths_of_a_run_mean_the_same_from_every_folder(project, tmp_path, monkeypatch, capsys):
    score, before = score_of("run", capsys), files(project / "run")
    assert run("merge --adapter-path run --out", tmp_path / "here") == 0
    other_project(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert score_of(project / "run", capsys) == score
    assert run("merge --adapter-path", project / "run", "--out", tmp_path / "there") == 0
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert run("train --resume --adapter-path", project / "run") == 0
    assert files(project / "run") == before
    config = json.loads((project / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(project / "base")
    settings = tomllib.loads((project / "run" / "train_config.toml").read_text())
    names = {"model": "base", "data": "rows.jsonl", "adapter_path": "run"}
    assert {k: settings[k] for k in names} == {k: str(project / v) for k, v in names.items()}


@pytest.mark.parametrize("left", ["nothing", "another project", "a copy"])
def test_a_project_that_was_moved_as_a_whole_still_works(
    left, project, tmp_path, monkeypatch, capsys
):
    score = score_of("run", capsys)
    moved = project.rename(tmp_path / "moved")
    if left == "another project":
        other_project(project)
    if left == "a copy":
        shutil.copytree(moved, project)
    monkeypatch.chdir(tmp_path)
    assert score_of("moved/run", capsys) == score
    assert run("train --resume --iters 6 --adapter-path moved/run") == 0
    settings = tomllib.loads((moved / "run" / "train_config.toml").read_text())
    names = {"model": "base", "data": "rows.jsonl", "adapter_path": "run"}
    assert {k: settings[k] for k in names} == {k: str(moved / v) for k, v in names.items()}
    shutil.rmtree(project, ignore_errors=True)
    assert run("evaluate --adapter-path moved/run") == 0


def test_a_run_that_was_moved_alone_keeps_its_base_and_rows(project, tmp_path, capsys):
    """Next to the new place, there are another base and other rows of the same names."""
    score = score_of("run", capsys)
    other_project(tmp_path / "elsewhere")
    (project / "run").rename(tmp_path / "elsewhere" / "run")
    assert score_of(tmp_path / "elsewhere" / "run", capsys, warnings=2) == score


def test_built_in_names_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "questions", "smollm2"):
        (tmp_path / name).mkdir()
    for model in ("tiny", "micro", "smollm2"):
        assert absolute("model", model) == model
    for name in ("questions", "notes"):
        assert absolute("data", name) == name
    assert absolute("data", "tiny") == str(tmp_path / "tiny")
    assert absolute("model", "./tiny") == str(tmp_path / "tiny")
    assert absolute("init_adapter", "tiny") == str(tmp_path / "tiny")
    assert absolute("method", "lora") == "lora" and absolute("seed", 3) == 3


def test_weights_that_were_replaced_in_place_are_noticed(project, tmp_path, capsys):
    """Each command that reads the base for an adapter compares its digest with the checkpoint's."""
    other_project(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere" / "base", "base", dirs_exist_ok=True)
    warning = "are not those of the base that run was trained on: an adapter can lose all"
    commands = {
        "evaluate": "", "inspect": "", "generate": "--prompt 1+1= --max-tokens 1",
        "merge": "--out merged", "evaluate --model base": "",
    }  # fmt: skip
    for command, flags in commands.items():
        assert run(command, "--adapter-path run", flags) == 0
        name = "base" if "--model" in command else project / "base"
        assert f"warning: the files of {name} {warning}" in capsys.readouterr().err, command
    more = "--method ia3 --init-adapter run --adapter-path second --model base --data rows.jsonl"
    assert run("train", more, FEW_STEPS) == 0
    assert warning in capsys.readouterr().err
    (project / "run" / "checkpoint.safetensors").unlink()
    assert run("evaluate --adapter-path run") == 0
    assert capsys.readouterr().err == ""  # without a checkpoint, there is no digest


def test_two_runs_in_one_folder(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    with run_folder.lock(out):
        line = error_of(capsys, train(base, data, out))
    assert f"in use by process {os.getpid()}" in line
    assert train(base, data, out) == 0


@pytest.mark.parametrize("what", ["fsync", "mkdir"])
def test_a_full_disk_says_what_to_do_first(what, base, data, tmp_path, capsys, monkeypatch):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(os, what, full)
    error = error_of(capsys, train(base, data, tmp_path / "run"))
    first = "cannot be written: No space left on device: free space on its disk, or choose another"
    assert first in error
    assert what == "mkdir" or error.endswith("folder; then start the same command again")


CARDS = {  # flags: the lines of the base and of the command that writes it
    "": ("tiny, stored as nf4-dq, blocks of 64.", "--quantize nf4-dq --block-size 64 --out"),
    "--quantize fp4 --block-size 32": ("stored as fp4, blocks of 32.", "fp4 --block-size 32 --out"),
    "--quantize int8": ("tiny, stored as int8.", "--quantize int8 --out base"),
    "--quantize none": ("tiny, stored as none.", None),
    "--init-lora-weights pissa": ("tiny, stored as nf4-dq, blocks of 64.", None),
    "--method ia3 --quantize nf4": ("tiny, stored as nf4, blocks of 64.", None),
}


@pytest.mark.parametrize("flags", CARDS)
def test_the_model_card_says_how_the_base_is_stored(flags):
    args = parse(["train", *flags.split()])
    text = run_folder.model_card(
        args, make_adapter_config(args), {"step": 200}, {"eval_loss": 0.5}, 3
    )
    stored, command = CARDS[flags]
    assert f"{stored} On another base" in text and "questions, 200 steps" in text
    assert ("minilora quantize" in text) == (command is not None)
    assert command is None or command in text
    assert ("rounds the activations" in text) == ("int8" in flags)


FRONT_MATTERS = {
    "--model tiny": ["library_name: peft", "- lora", "- minilora"],
    "--model smollm2 --method dora": [
        "library_name: peft", "base_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "- base_model:adapter:HuggingFaceTB/SmolLM2-135M-Instruct", "- dora", "- lora",
        "- minilora",
    ],
    "--method ia3": ["library_name: peft", "- ia3", "- minilora"],
    "--method bitfit": ["library_name: minilora", "- bitfit", "- minilora"],
    "--init-lora-weights loftq": ["library_name: minilora", "- lora", "- minilora"],
}  # fmt: skip


@pytest.mark.parametrize("flags", FRONT_MATTERS)
def test_the_model_card_begins_with_the_metadata_of_the_hub(flags):
    """The fields are those that PEFT writes; a base has a name on the hub or is left out."""
    args = parse(["train", *flags.split()])
    card = run_folder.model_card(args, make_adapter_config(args), {"step": 200}, None, 0)
    before, metadata, text = card.split("---\n")
    assert before == "" and text.startswith("# An adapter for")
    lines = metadata.splitlines()
    fields = [line for line in lines if line not in ("tags:", "pipeline_tag: text-generation")]
    assert fields == FRONT_MATTERS[flags] and len(fields) == len(lines) - 2


def test_resuming_needs_a_checkpoint(base, data, tmp_path, capsys):
    error = error_of(capsys, run("train --resume --adapter-path", tmp_path))
    assert f"there is no run to resume in {tmp_path}" in error


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    for words in ("evaluate --adapter-path", "generate --prompt a --adapter-path"):
        error = error_of(capsys, run(words, tmp_path / "nowhere"))
        assert f"{tmp_path / 'nowhere'} is not the folder of an adapter" in error


def test_a_model_and_an_adapter_in_each_others_place(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    capsys.readouterr()
    error = error_of(capsys, run("generate --prompt a --model", out))
    assert f"{out} is the folder of an adapter: give it to --adapter-path" in error
    error = error_of(capsys, run("generate --prompt a --adapter-path", base))
    assert f"{base} is the folder of a model: give it to --model" in error


def test_a_quantized_base_is_not_quantized_again(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("quantize --model micro --quantize nf4 --out", one) == 0
    capsys.readouterr()
    error = error_of(capsys, run("quantize --quantize fp4 --model", one, "--out", two))
    assert f"{one} is quantized already: give the folder of the dense model" in error
    assert not two.exists()


def test_a_run_without_held_out_rows_prints_its_loss(base, tmp_path, capsys):
    rows = tmp_path / "few.jsonl"
    rows.write_text('{"text": "Ada keeps a red ball."}\n' * 3)
    words = "train --model", base, "--data", rows, "--iters 4", *at(tmp_path / "run")
    assert run(*words) == 0
    history = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = history[0]["loss"], history[-1]["loss"]
    line = f"training loss: {first:.4f} in the first step, {last:.4f} in the last\n"
    assert line in capsys.readouterr().out


def test_a_finished_run_that_is_resumed_keeps_its_weights(base, data, tmp_path):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    before = files(out)
    assert run("train --resume --adapter-path", out) == 0
    after = files(out)
    assert before == after


def test_a_finished_run_is_lengthened(base, data, tmp_path, capsys):
    """The definition: the state at the end of the first run, then steps of the longer run."""
    out = tmp_path / "run"
    assert train(base, data, out, "--lora-dropout 0.2") == 0
    assert f"--iters 3: {out / 'checkpoint.safetensors'} is at step 4 already" in error_of(
        capsys, run("train --resume --iters 3", *at(out))
    )
    checkpoint = (out / "checkpoint.safetensors").read_bytes()
    assert run("train --resume --iters 9", *at(out)) == 0
    assert (
        "from step 5 on, the learning rate is that of a run of 9 steps" in capsys.readouterr().out
    )

    config, params, tokenizer = load(base, "nf4-dq", low_precision=True)
    lora_config = LoraConfig(lora_dropout=0.2)
    start, _ = get_peft_model(params, lora_config, 0)
    settings = TrainConfig(
        iters=9, batch_size=2, learning_rate=0.01, steps_per_eval=2, val_batches=8
    )
    examples, _ = encode_rows(load_rows(str(data), "train"), tokenizer, settings)
    valid, _ = encode_rows(load_rows(str(data), "valid"), tokenizer, settings)
    (tmp_path / "first").write_bytes(checkpoint)
    first, state, _ = load_state(tmp_path / "first", start)
    state |= {"best_loss": np.inf, "worse": 0}
    longer, history = minilora.train(first, params, examples, config, settings, valid, state)
    save_adapter(tmp_path / "expected", longer, params, lora_config, str(base))
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 10))
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[3:] == [get_lr(3, replace(settings, iters=4))] + [
        row["learning_rate"] for row in history if "loss" in row
    ]
    assert tomllib.loads((out / "train_config.toml").read_text())["iters"] == 9
    assert "9 steps" in (out / "README.md").read_text()
    assert run("train --resume", *at(out)) == 0  # the settings of the checkpoint are the new ones


def at(folder):
    return "--adapter-path", folder


def stored_run(folder, words=""):
    """Write only the checkpoint of a run of ia3 on `micro` at step 4; return its folder."""
    folder.mkdir()
    words = f"train --model micro --method ia3 --quantize none --iters 4 {words}"
    facts = run_folder.metadata(parse([*words.split(), "--adapter-path", str(folder)]))
    adapters = {"a": np.ones(1, "f4")}
    state = {"m": adapters, "v": adapters, "best_loss": np.inf, "worse": 0, "step": 4}
    save_state(folder / "checkpoint.safetensors", adapters, state, facts | {"threads": 1})
    return folder


def test_defaults_then_recipe_then_checkpoint_then_file_then_flags(tmp_path, monkeypatch):
    """Each place overrides the places before it, and the folder to resume can stand in the file."""
    monkeypatch.chdir(tmp_path)
    words = "--learning-rate 0.1 --also-train norm --save-every 7 --chat-date 2001-02-03"
    stored_run(tmp_path / "other", words)
    stored_run(tmp_path / "adapters")  # the default of --adapter-path
    toml = tmp_path / "settings.toml"
    toml.write_text('adapter-path = "other"\nlearning-rate = 0.2\niters = 8\nalso-train = []\n')
    args = parse(["train", "--resume", "-c", "settings.toml", "--iters", "9"])
    assert args.adapter_path == "other" and args.iters == 9 and args.learning_rate == 0.2
    assert args.also_train == []  # an empty list of the file is a value
    assert args.save_every == 7 and args.chat_date == "2001-02-03"  # of the checkpoint
    assert args.mask_prompt is True and args.weight_decay == 0  # of the recipe, and the default
    args = parse(["train", "--resume", "-c", "settings.toml", "--adapter-path", "adapters"])
    assert args.adapter_path == "adapters" and args.save_every == 50 and args.iters == 8


OTHER = {  # another value of each setting that is neither a number nor a switch
    "method": "prefix", "quantize": "int8", "init_lora_weights": "pissa", "lr_schedule": "linear",
    "adapter_dtype": "float16", "chat_date": "2001-02-03", "also_train": ["norm"],
    "target_modules": ["o_proj"], "layers_to_transform": [1], "data": "notes", "model": "tiny",
    "init_adapter": "elsewhere",
}  # fmt: skip
SETTINGS = vars(parse(["train"])).keys() - {*run_folder.NOT_SETTINGS, "epochs"}


@pytest.mark.parametrize("name", sorted(SETTINGS - {*run_folder.MAY_CHANGE}))
def test_a_resume_takes_no_other_value_of_any_setting(name, tmp_path):
    out = stored_run(tmp_path / "run")
    args = parse(["train", "--resume", *at(str(out))])
    run_folder.check_same_run(out, run_folder.metadata(args))
    value = getattr(args, name)
    other = OTHER.get(name, not value if isinstance(value, bool) else 2 * (value or 1))
    metadata = run_folder.metadata(args)
    metadata["settings"][name] = other
    with pytest.raises(InputError, match=re.escape(f"{flag(name)} is {other}, but the run in")):
        run_folder.check_same_run(out, metadata)


@pytest.mark.parametrize("more", ["", "--dry-run"])
@pytest.mark.parametrize("place", ["file", "flag"])
def test_another_setting_is_refused_wherever_it_stands(place, more, tmp_path, capsys):
    out = stored_run(tmp_path / "run", "--data notes")
    toml = tmp_path / "settings.toml"
    toml.write_text("batch_size = 3\n")
    words = ["-c", toml] if place == "file" else ["--batch-size=3"]
    before = files(out)
    error = error_of(capsys, run("train --resume", *at(out), *words, more))
    assert f"--batch-size is 3, but the run in {out} has 4" in error
    assert files(out) == before


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("--epochs 1", 9), ("--epochs 2.5", 23), ("--epochs 0.1", 1), ("--epochs 1.1", 10),
        ("--epochs 2 --batch-size 3 --grad-accumulation-steps 4", 3),
        ("--epochs 4 --packing --max-seq-length 12 --batch-size 1", 4 * 8),
    ],
)  # fmt: skip
def test_epochs_are_steps(base, data, tmp_path, flags, steps, capsys):
    """18 rows to train on. Packed in sequences of 11 places, rows of 6 to 8 fill 8 sequences."""
    out = tmp_path / "run"
    words = ["train --model", base, "--data", data, "--batch-size 2", flags, *at(out)]
    if "packing" in flags:
        rows = load_rows(str(data), "train")
        settings = TrainConfig(max_seq_length=12)
        examples, _ = encode_rows(rows, ByteTokenizer(), settings)
        steps = 4 * len(pack_examples(examples, 12))
    assert run(*words) == 0
    assert f"{steps} steps of" in capsys.readouterr().out
    settings = tomllib.loads((out / "train_config.toml").read_text())
    assert settings["iters"] == steps and "epochs" not in settings
    before = files(out)
    assert run("train --resume", *at(out)) == 0 and files(out) == before
    if flags == "--epochs 1":
        assert run("train --resume --epochs 2", *at(out)) == 0
        assert load_state(out / "checkpoint.safetensors")[1]["step"] == 18
        toml = tmp_path / "longer.toml"
        toml.write_text(run_folder.as_toml({"adapter_path": str(out), "epochs": 3}))
        assert run("train --resume -c", toml) == 0
        assert load_state(out / "checkpoint.safetensors")[1]["step"] == 27


def test_epochs_replace_the_steps_of_a_recipe_but_not_those_of_the_user(tmp_path, capsys):
    toml = tmp_path / "settings.toml"
    toml.write_text("epochs = 1\n")
    words = "train --model micro --dry-run --adapter-path", tmp_path / "run"
    assert run(*words, "-c", toml) == 0
    assert "250 steps of 16 sequences" in capsys.readouterr().out  # 4,000 rows of `questions`
    for more in (["--epochs 1 --iters 3"], ["--iters=3 --epochs=1"], ["--iters 3 -c", toml]):
        line = error_of(capsys, run(*words, *more))
        assert "--iters and --epochs both set the number of steps: give one of them" in line
    for value in ("0", "-1", "nan", "inf"):
        assert "--epochs must be" in error_of(capsys, run(*words, f"--epochs={value}"))


def test_the_curve_is_drawn_at_every_evaluation(base, data, tmp_path, monkeypatch):
    drawn = []

    def draw(path, history, title, kept):
        assert kept is None and (path.parent / "checkpoint.safetensors").exists()
        drawn.append([row["step"] for row in history if "eval_loss" in row])

    monkeypatch.setattr("minilora.cli.run.curve", draw)
    out = tmp_path / "run"
    # the first evaluation comes before the first checkpoint that --save-every asks for
    assert train(base, data, out, "--iters 6 --save-every 5") == 0
    assert drawn == [[0, 2], [0, 2, 4], [0, 2, 4, 6], [0, 2, 4, 6]]


# ------------------------------------------------- the best step, checkpoints, held-out rows


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations whose losses are these, one per evaluation after a step; the curve is not drawn.

    Returns the list of the steps that the curves marked as kept.
    """
    kept = []

    def start(*losses):
        remaining = iter(losses)
        monkeypatch.setattr(
            "minilora.evaluation.callbacks.evaluate",
            lambda *_: {"loss": next(remaining), "exact_match": 0.5, "tokens": 9},
        )

    def draw(path, history, title, step):
        kept.append(step)
        path.write_text("a figure")

    monkeypatch.setattr("minilora.cli.run.curve", draw)
    start.kept = kept
    return start


STOPPING = "--iters 8 --early-stopping-patience 2 --keep-checkpoints"


def test_a_run_that_early_stopping_has_ended_says_so(base, data, tmp_path, scripted, capsys):
    out = tmp_path / "run"
    scripted(1.0, 2.0, 3.0)
    assert train(base, data, out, STOPPING) == 0
    printed = capsys.readouterr().out
    why = "the last 2 evaluations did not lower the held-out loss"
    assert f"early stopping at step 6 of 8: {why}\n" in printed
    assert "kept: step 2, the trained step with the lowest held-out loss, 1.0000\n" in printed
    assert "after: held-out loss 1.0000 nats per token, exact match 50.0 %\n" in printed
    card = (out / "README.md").read_text()
    assert (
        f"{data.name}, 6 of 8 steps, because early stopping ended the run. The adapter is" in card
    )
    assert "The adapter is that of step 2, whose held-out loss is the lowest.\n" in card
    assert "- Held-out rows: 2: loss 1, exact_match 0.5, tokens 9\n" in card
    # the last file that the run writes has the best adapter, and not the last
    name = "adapter_model.safetensors"
    best, last = ((out / f"checkpoint-{step}" / name).read_bytes() for step in (2, 6))
    assert (out / name).read_bytes() == best != last
    assert scripted.kept[-2:] == [2, 2]

    before = files(out)
    assert run("train --resume", *at(out)) == 0
    said = capsys.readouterr().out
    assert "resumed at step 6 of 8\n" in said
    assert f"early stopping has ended the run in {out} at step 6, so no step is left: to" in said
    assert files(out) == before
    error = error_of(capsys, run("train --resume --iters 12", *at(out)))
    assert f"early stopping has ended the run in {out} at step 6, so --iters 12 would" in error
    assert error.endswith("to continue it, give a larger --early-stopping-patience, or 0")
    assert files(out) == before


@pytest.mark.parametrize("patience", [0, 3])
def test_another_patience_gives_the_bytes_of_a_run_that_had_it_from_the_start(
    patience, base, data, tmp_path, scripted, capsys
):
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    flag = f"--early-stopping-patience {patience}"
    scripted(1.0, 2.0, 3.0, 0.5)
    assert train(base, data, whole, STOPPING, flag) == 0
    scripted(1.0, 2.0, 3.0, 0.5)
    assert train(base, data, longer, STOPPING) == 0
    assert load_state(longer / "checkpoint.safetensors")[1]["step"] == 6
    assert run("train --resume", flag, *at(longer)) == 0
    (_, a, facts), (_, b, resumed) = (
        load_state(x / "checkpoint.safetensors") for x in (whole, longer)
    )
    warning = "warning: without early stopping, step 2 is no longer kept as best\n"
    assert (warning in capsys.readouterr().err) is (patience == 0)
    assert repr(flatten(a)) == repr(flatten(b)) and a["step"] == 8
    assert facts["settings"] | at_path(longer) == resumed["settings"]
    for file in (
        "adapter_model.safetensors",
        "README.md",
        "checkpoint-6/adapter_model.safetensors",
    ):
        assert (whole / file).read_bytes() == (longer / file).read_bytes()


def at_path(folder):
    return {"adapter_path": str(folder)}


def test_keep_best_keeps_the_best_step_of_a_whole_run(base, data, tmp_path, scripted, capsys):
    out = tmp_path / "run"
    scripted(1.0, 2.0)
    assert train(base, data, out, "--keep-best --keep-checkpoints") == 0
    assert "4 steps. The adapter is that of step 2, whose" in (out / "README.md").read_text()
    name = "adapter_model.safetensors"
    best, last = ((out / f"checkpoint-{step}" / name).read_bytes() for step in (2, 4))
    assert (out / name).read_bytes() == best != last
    capsys.readouterr()
    for needs in ("--keep-best", "--early-stopping-patience 1"):
        few = tmp_path / "few.jsonl"
        few.write_text('{"text": "Ada keeps a red ball."}\n' * 3)
        line = error_of(capsys, train(base, few, tmp_path / "none", needs))
        assert f"{needs.split()[0]} needs held-out rows, but there are none" in line
        assert not (tmp_path / "none").exists()


def test_an_interrupted_run_has_the_best_adapter(base, data, tmp_path, scripted, monkeypatch):
    """The interrupt comes after the last step, before the end of the run."""
    out, name = tmp_path / "run", "adapter_model.safetensors"
    scripted(1.0, 2.0)

    def draw(path, history, title, kept):
        if history[-1]["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("minilora.cli.run.curve", draw)
    assert train(base, data, out, "--keep-best --keep-checkpoints") == 130
    best, last = ((out / f"checkpoint-{step}" / name).read_bytes() for step in (2, 4))
    assert (out / name).read_bytes() == best != last


def test_the_curve_marks_the_step_that_is_kept(tmp_path):
    history = [{"step": step, "loss": 1.0} for step in range(1, 5)]
    history += [{"step": step, "eval_loss": 1.0, "eval_exact_match": 0.5} for step in (2, 4)]
    for kept in (None, 2, 4):
        curve(tmp_path / f"{kept}.png", history, "a run", kept)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


def test_kept_checkpoints_are_read_replaced_and_not_mistaken(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out, "--keep-checkpoints --save-every 3 --iters 7") == 0
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["checkpoint-3", "checkpoint-6"]
    part = out / "checkpoint-6"
    for words in ("evaluate --split valid", "generate --prompt 1+1= --max-tokens 1", "inspect"):
        assert run(words, *at(part)) == 0
    assert run("merge", *at(part), "--out", tmp_path / "merged") == 0
    assert train(base, data, tmp_path / "second", "--init-adapter", part) == 0
    # not from a part of the run that is replaced: --resume would not find it any more
    capsys.readouterr()
    line = error_of(capsys, train(base, data, out, "--overwrite --init-adapter", part))
    assert f"--init-adapter {part} is part of the run that --overwrite replaces" in line
    (part / "optimizer.pt").write_text("of another program")
    before = files(out)
    assert "checkpoint-6" in error_of(capsys, train(base, data, out, "--overwrite"))
    assert files(out) == before
    (part / "optimizer.pt").unlink()
    assert train(base, data, out, "--overwrite") == 0
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_a_kept_checkpoint_that_a_kill_prevented_is_written_when_resuming(base, data, tmp_path):
    """The kill came after checkpoint.safetensors, and before or within checkpoint-4."""
    out = tmp_path / "run"
    assert train(base, data, out, "--keep-checkpoints") == 0
    before = files(out)
    shutil.rmtree(out / "checkpoint-4")
    assert run("train --resume", *at(out)) == 0 and files(out) == before
    (out / "checkpoint-4" / "train_config.toml").unlink()
    (out / "checkpoint-4" / "train_config.toml.77.tmp").write_text("half a file")
    assert run("train --resume", *at(out)) == 0 and files(out) == before


def test_every_evaluation_has_the_rows_of_val_batches_and_none_is_made_twice(
    base, data, tmp_path, monkeypatch, capsys
):
    folder, counts = tmp_path / "splits", []
    folder.mkdir()
    rows = data.read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(rows[:10]))
    (folder / "valid.jsonl").write_text("".join(rows[10:19]))

    def counting(adapters, base, examples, *more):
        counts.append(len(examples))
        return minilora.evaluate(adapters, base, examples, *more)

    for place in ("minilora.cli.run.evaluate", "minilora.evaluation.callbacks.evaluate"):
        monkeypatch.setattr(place, counting)
    out = tmp_path / "run"
    words = "--iters 2 --val-batches 2 --batch-size 3"
    assert train(base, folder, out, words) == 0
    assert counts == [6, 6]  # before the first step, and after the last
    printed = capsys.readouterr().out
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for when, row in (("before", history[0]), ("after", history[-1])):
        line = re.search(f"^{when}: .*$", printed, re.MULTILINE)[0]
        assert f" {row['eval_loss']:.4f} nats" in line
        assert line.endswith(", on 6 of 9 held-out rows")
    assert (
        f"- Held-out rows: 6: loss {history[-1]['eval_loss']:.6g}, perplexity"
        in (out / "README.md").read_text()
    )
    # the scores of the run are those of `evaluate`, row by row of the curve
    few = tmp_path / "few.jsonl"
    few.write_text("".join(rows[10:16]))
    assert run("evaluate --json --data", few, *at(out)) == 0
    score = json.loads(capsys.readouterr().out)
    assert {f"eval_{k}" for k in score} > history[-1].keys() - {"step"}  # and facts of the rows
    assert score["loss"] == pytest.approx(history[-1]["eval_loss"], rel=1e-6)


def test_quiet_prints_the_last_line_only(base, data, tmp_path, monkeypatch, capsys):
    def forbidden(*args, **kwargs):
        raise AssertionError("a sample")

    monkeypatch.setattr("minilora.cli.run.generate", forbidden)
    monkeypatch.setattr("minilora.evaluation.progress.SECONDS_BETWEEN_LINES", -1)
    out = tmp_path / "run"
    for more in ("", "--resume"):
        assert train(base, data, out, "--quiet --keep-best", more) == 0
        printed, errors = capsys.readouterr()
        assert errors == ""
        assert printed == f"written to {out}: try `minilora evaluate --adapter-path {out}`\n"
    assert "quiet" not in tomllib.loads((out / "train_config.toml").read_text())
    assert "--overwrite" in error_of(capsys, train(base, data, out, "--quiet"))


@pytest.mark.parametrize(
    ("train_config", "method", "tokens"),
    [
        (TrainConfig(batch_size=4), LoraConfig(), 4 * 8),
        (TrainConfig(batch_size=4, grad_accumulation_steps=9), LoraConfig(), 4 * 8),
        # the rows of 8 and 2 input tokens fill a sequence of 10, the other row is alone
        (TrainConfig(batch_size=4, packing=True, max_seq_length=11), LoraConfig(), 4 * 10),
        (TrainConfig(batch_size=4), MethodConfig("prompt", num_virtual_tokens=5), 4 * 13),
        (TrainConfig(batch_size=4), MethodConfig("p-tuning", num_virtual_tokens=5), 4 * 13),
    ],
)
def test_the_memory_check_is_of_the_longest_row(
    base, train_config, method, tokens, monkeypatch, capsys
):
    config, params, tokenizer = load(base)
    loaded = LoadedModel(config, params, tokenizer)
    adapters, _ = get_peft_model(params, method, 0)
    loaded = loaded._replace(adapters=adapters)
    examples = [Example([1] * n, [1] * n) for n in (3, 9, 7)]
    check_memory(loaded, examples, train_config)
    assert capsys.readouterr().out.startswith(f"a step over {tokens} tokens:\n")
    monkeypatch.setattr("minilora.cli.run.physical_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"a step needs .* lower --batch-size"):
        check_memory(loaded, examples, train_config)


def test_a_diverged_run_names_the_step_and_keeps_the_checkpoint_before(
    base, data, tmp_path, capsys
):
    out = tmp_path / "run"
    with np.errstate(all="ignore"):
        status = train(base, data, out, "--target-modules all-linear --learning-rate 1e30")
    assert "at step" in error_of(capsys, status)
    adapters, state, _ = load_state(out / "checkpoint.safetensors")
    assert 1 <= state["step"] < 4
    assert all(np.isfinite(leaf).all() for leaf in flatten(adapters).values())


def test_a_dry_run_writes_nothing(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(base, data, out, "--dry-run") == 0
    assert "trainable params" in capsys.readouterr().out and not out.exists()


def test_a_bare_peft_folder_does_not_say_its_base(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    (out / "train_config.toml").unlink()
    capsys.readouterr()
    assert "--model" in error_of(capsys, run("evaluate --adapter-path", out))


def test_evaluate_scores_every_row_of_a_file(base, data, tmp_path, capsys):
    for n in (1, 5, 20):
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(data.read_text().splitlines(keepends=True)[:n]))
        assert run("evaluate --json --model", base, "--data", path) == 0
        score = json.loads(capsys.readouterr().out)
        assert (score["rows"], score["data"]) == (n, f"all rows of {path}")
        answers = sum(len(str(i + 1)) + 1 for i in range(n))  # and the end of the sequence
        assert score["tokens"] == answers
        assert run("evaluate --model", base, "--data", path) == 0
        rows = "1 row" if n == 1 else f"{n} rows"
        assert f"{rows}, all rows of {path}" in capsys.readouterr().out


def test_evaluate_warns_of_rows_that_the_adapter_was_trained_on(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    assert "20 rows, 18 for training; every tenth row is held out" in capsys.readouterr().out
    assert run("evaluate --adapter-path", out) == 0  # the split that the run made itself
    printed, said = capsys.readouterr()
    # the file has no test rows, so these are its validation rows
    assert f"2 rows, valid split of {data}, which the run used for its curve\n" in printed
    assert said == ""
    where = "among the rows that the adapter was trained on"
    assert run("evaluate --adapter-path", out, "--data", data) == 0
    printed, said = capsys.readouterr()
    assert f"20 rows, all rows of {data}, 2 of which the run used for its curve\n" in printed
    assert f"warning: 18 of 20 rows are {where}: " in said

    # what counts is what the rows say: in another file, form and order, with other keys
    other = tmp_path / "other.jsonl"
    turns = [{"role": "user", "content": "3+1="}, {"role": "assistant", "content": "4"}]
    alpaca = {"instruction": "5+1=", "output": "6", "id": 7}
    unseen = {"prompt": "30+1=", "completion": "31"}
    held_out = {"completion": "20", "prompt": "19+1="}
    rows = [unseen, alpaca, {"prompt": "8+1=", "completion": "9", "id": 1}, held_out]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("evaluate --json --adapter-path", out, "--data", other) == 0
    printed, said = capsys.readouterr()
    assert f"warning: 2 of 4 rows are {where}: " in said
    score = json.loads(printed)
    assert score["trained_on"] == 2 and score["held_out_by_the_run"] == 1
    spaced = {"prompt": " 3+1=\n", "completion": "4 "}  # white space does not make another row
    assert common_rows([{"messages": turns}, unseen], [spaced]) == 1

    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[10:] + lines[:5]))
    assert run("evaluate --adapter-path", out, "--data", other) == 0
    changed = f"warning: {data} has changed since the run: it may lack rows that the adapter"
    assert changed in capsys.readouterr().err
    data.unlink()
    assert run("evaluate --adapter-path", out, "--data", other) == 0
    assert "the adapter may have been trained on these rows; its data" in capsys.readouterr().err


def test_evaluate_says_that_early_stopping_used_the_rows(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out, "--early-stopping-patience 9") == 0
    capsys.readouterr()
    assert run("evaluate --adapter-path", out) == 0
    words = f"valid split of {data}, which the run used for its curve and for early stopping\n"
    assert words in capsys.readouterr().out


def test_training_warns_of_held_out_rows_that_it_trains_on(base, data, tmp_path, capsys):
    lines = data.read_text().splitlines(keepends=True)
    lines[19] = lines[0]  # the second of two held-out rows
    data.write_text("".join(lines))
    assert train(base, data, tmp_path / "run", "--dry-run") == 0
    assert "warning: 1 of 2 held-out rows are among the rows to" in capsys.readouterr().err


@pytest.fixture
def long_and_short(tmp_path):
    """Ten rows whose prompts have 1, 8, 1, 8, … letters; the answers have 3, and an end token.

    Of the answers after 8 letters, a length of 8 leaves nothing, and a length of 10 leaves 2.
    """
    path = tmp_path / "long_and_short.jsonl"
    rows = [{"prompt": "aaaaaaaa"[: 1 + 7 * (n % 2)], "completion": "bcd"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": ""}]))
    return path


def test_evaluate_counts_rows_that_are_left_out_and_cut(base, long_and_short, capsys):
    words = "evaluate --model", base, "--data", long_and_short
    no_target = "no target token within --max-seq-length 8"
    assert run(*words, "--max-seq-length 8") == 0
    printed, said = capsys.readouterr()
    first = f"5 rows, all rows of {long_and_short}; 1 left out (an empty answer)"
    assert printed.startswith(f"{first}; 5 left out ({no_target})\n")
    assert f"warning: 5 of 10 rows are left out: they have {no_target}\n" in said
    assert run(*words, "--max-seq-length 10") == 0
    assert "10 rows, all" in (printed := capsys.readouterr().out)
    assert printed.splitlines()[0].endswith("; 5 cut to --max-seq-length 10")
    for length, rows, left_out, cut in (
        (8, 5, {"an empty answer": 1, no_target: 5}, 0),
        (10, 10, {"an empty answer": 1}, 5),
        (100, 10, {"an empty answer": 1}, 0),
    ):
        assert run(*words, "--json --max-seq-length", str(length)) == 0
        score = json.loads(capsys.readouterr().out)
        assert (score["rows"], score["left_out"], score["cut"]) == (rows, left_out, cut)
        assert score["answers_cut_off"] == 0
    assert run("inspect --max-seq-length 8 --model", base, "--data", long_and_short) == 0
    printed = capsys.readouterr().out
    assert f"\n{first}; 5 left out ({no_target})\nthe first of these rows" in printed
    # if the loss counts the prompts, rows without their answer are kept
    assert run(*words, "--no-mask-prompt --max-seq-length 8") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith("; 5 cut to --max-seq-length 8, 5 of them without any of the answer")


def test_training_counts_the_rows_of_both_splits(base, long_and_short, tmp_path, capsys):
    words = "--mask-prompt --dry-run --max-seq-length"
    assert train(base, long_and_short, tmp_path / "run", words, "10") == 0
    printed = capsys.readouterr().out
    skipped = "1 left out (an empty answer)"
    assert f"\n9 rows to train on; {skipped}; 4 cut to --max-seq-length 10\n" in printed
    assert "\n1 row held out; 1 cut to --max-seq-length 10\n" in printed
    error = error_of_last_line(capsys, train(base, long_and_short, tmp_path / "r", words, "8"))
    # the only held-out row is a long one
    where = f"valid rows of {long_and_short}: no row has a target token within"
    assert where in error and not (tmp_path / "r").exists()


def error_of_last_line(capsys, status):
    """Return the last line on standard error of a command that failed after warnings."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and line.startswith("error: ")
    return line


def test_evaluate_cuts_rows_as_the_run_did(base, long_and_short, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, long_and_short, out, "--max-seq-length 9") == 0
    for flags, length, tokens in (("", 9, 8), ("--max-seq-length 7", 7, 6)):
        capsys.readouterr()
        assert run("evaluate --json --adapter-path", out, flags) == 0
        score = json.loads(capsys.readouterr().out)
        # the held-out row has 12 tokens; the first one is no target
        assert (score["max_seq_length"], score["tokens"], score["cut"]) == (length, tokens, 1)


def test_evaluate_stores_the_base_as_the_run_did(base, data, tmp_path, capsys):
    """Another scheme or block size would change the base by more than a rounding."""
    out = tmp_path / "run"
    assert train(base, data, out, "--quantize nf4 --block-size 16") == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for flags, same in (("", True), ("--block-size 64", False), ("--quantize none", False)):
        capsys.readouterr()
        assert run("evaluate --json --split valid --adapter-path", out, flags) == 0
        score = json.loads(capsys.readouterr().out)
        assert (score["loss"] == pytest.approx(rows[-1]["eval_loss"], rel=1e-6)) is same
        scheme = "none" if "none" in flags else "nf4"
        assert score["model"] == str(base) and score["quantize"] == scheme
    assert run("evaluate --split valid --adapter-path", out) == 0
    assert f"base: {base}, stored as nf4\n" in capsys.readouterr().out


def test_exact_match_of_texts_says_that_all_tokens_count(base, data, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n}+1={n + 1}"}) + "\n" for n in range(10)))
    assert train(base, texts, tmp_path / "texts") == 0
    words = "exact match 0.0 % of whole texts (all tokens of a text must be right)\n"
    assert capsys.readouterr().out.count(words) == 2  # before and after
    assert run("evaluate --model", base, "--data", texts) == 0
    note = "whole texts (all tokens of a text must be right)\n"
    assert f"loss of whole texts, exact match of {note}" in capsys.readouterr().out
    texts.write_text(texts.read_text() + data.read_text())
    assert run("evaluate --no-mask-prompt --model", base, "--data", texts) == 0
    assert f"loss of all tokens, exact match of answers and {note}" in capsys.readouterr().out


def test_rows_longer_than_the_positions_of_the_model_are_named(tmp_path, capsys):
    """micro was trained on texts of 512 tokens."""
    rows = tmp_path / "rows.jsonl"
    texts = [{"text": "a" * n} for n in (511, 512, 513, 600)]  # and the end token
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    says = "have up to 601 tokens, but the model was trained on texts of at most 512: give --max-"
    words = "--model micro --data", rows
    assert run("evaluate", *words) == 0
    assert f"warning: 2 of 4 rows {says}" in capsys.readouterr().err
    more = "--dry-run --max-seq-length 1000 --adapter-path", tmp_path / "run"
    assert run("train", *words, *more) == 0
    assert f"warning: 2 of 4 rows {says}" in capsys.readouterr().err
    assert run("evaluate --max-seq-length 513", *words) == 0
    assert capsys.readouterr().err == ""


def test_columns_are_named_once_and_then_known_to_every_command(base, tmp_path, capsys):
    table = tmp_path / "rows.csv"
    lines = [f'{n},"{n}+1=\nis",{n + 1}' for n in range(20)]
    table.write_text("\r\n".join(["id,question,answer", *lines, ""]))
    columns = "--columns prompt=question completion=answer"
    out = tmp_path / "run"
    error = error_of(capsys, train(base, table, out))
    assert f"{table}, line 2: the keys are ['answer', 'id', 'question']" in error
    assert "--columns prompt=KEY completion=KEY" in error
    assert train(base, table, out, columns) == 0
    printed = capsys.readouterr().out
    assert f"{table}: 20 rows, 18 for training" in printed and "asked: '9+1=\\nis'" in printed
    settings = tomllib.loads((out / "train_config.toml").read_text())
    assert settings["columns"] == ["prompt=question", "completion=answer"]
    assert run("train --resume --iters 5", *at(out)) == 0
    capsys.readouterr()

    assert run("evaluate --json", *at(out)) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["data"] == f"valid split of {table}" and score["held_out_by_the_run"] == 2
    assert run("inspect --data", table, *at(out)) == 0
    marked = capsys.readouterr().out.split("counts the tokens with *:\n")[1].splitlines()
    assert "".join(eval(line[9:]) for line in marked) == "0+1=\nis1"
    # other data: the columns of the run, unless others are given; built-in data have their keys
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "40+1=", "answer": "41", "text": "not read"}\n')
    assert run("evaluate --data", other, *at(out)) == 0
    other.write_text('{"prompt": "40+1=", "completion": "41"}\n')
    error = error_of_last_line(capsys, run("evaluate --data", other, *at(out)))
    assert "line 1: no column 'question', only prompt, completion: correct --columns" in error
    given = "--columns prompt=prompt completion=completion"
    assert run("evaluate", given, "--data", other, *at(out)) == 0
    assert run("evaluate --data questions --split valid", *at(out)) == 0
    for flags, says in (
        ("--columns question=prompt", "--columns: must be KEY=COLUMN, where KEY is text, prompt"),
        ("--columns prompt", "--columns: must be KEY=COLUMN"),
        ("--columns prompt=a prompt=b", "a key occurs twice"),
        ("--data questions --columns prompt=a", "--columns is for files: the rows of questions"),
    ):
        capsys.readouterr()
        assert says in error_of_last_line(capsys, train(base, table, tmp_path / "no", flags))


def test_an_adapter_on_another_base_than_its_own(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out, "--quantize nf4-dq") == 0
    capsys.readouterr()
    commands = {
        "evaluate": "", "generate": "--prompt 1+1= --max-tokens 1", "inspect": "",
        "merge": f"--out {tmp_path / 'm'}",
    }  # fmt: skip
    for command, flags in commands.items():
        assert run(command, "--adapter-path", out, flags) == 0
        assert capsys.readouterr().err == ""
    for command, flags in commands.items():
        flags = flags.replace("/m", "/n")
        assert run(command, "--adapter-path", out, flags, "--quantize none") == 0
        warning = f"warning: {out} was trained on a base stored as nf4-dq, block size 64, not none"
        assert warning in capsys.readouterr().err
    more = ["--init-adapter", out, "--adapter-path", tmp_path / "second", FEW_STEPS]
    words = ["train --model", base, "--data", data]
    assert run(*words, *more, "--quantize nf4-dq") == 0
    assert "warning" not in capsys.readouterr().err
    assert run(*words, *more, "--quantize int8 --overwrite") == 0
    assert "was trained on a base stored as nf4-dq" in capsys.readouterr().err
    # a folder that PEFT wrote has the name of its base only
    (out / "train_config.toml").unlink()
    for name, warns in ((f"elsewhere/{base.name}", False), ("Org/another", True)):
        config = json.loads((out / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = name
        (out / "adapter_config.json").write_text(json.dumps(config))
        assert run("inspect --model", base, "--adapter-path", out) == 0
        assert (f"names the base {name}, not {base}: " in capsys.readouterr().err) is warns


def test_init_adapter_brings_its_base(base, data, tmp_path):
    out, second = tmp_path / "run", tmp_path / "second"
    assert train(base, data, out) == 0
    words = ["train --init-adapter", out, "--data", data, "--adapter-path", second]
    assert run(*words, FEW_STEPS) == 0
    settings = tomllib.loads((second / "train_config.toml").read_text())
    assert settings["model"] == str(base)


def test_flags_that_reach_only_one_function(base, data, tmp_path, monkeypatch, capsys):
    """--block-size, inspect --tokens, fetch --source: each could be ignored unseen."""
    for tokens in (100, 200):
        assert run("inspect --model", base, "--tokens", tokens) == 0
        config, params, _ = load(base, low_precision=True)
        parts = memory.memory_estimate({}, params, config, tokens)
        printed = capsys.readouterr().out
        assert printed.endswith(f"over {tokens} tokens:\n{memory.format_estimate(parts)}\n")
    out = tmp_path / "run"
    assert train(base, data, out, "--quantize nf4") == 0
    asked = []

    def refuse(*args):
        asked.append(args)
        raise InputError("refused")

    monkeypatch.setattr("minilora.cli.commands.load", refuse)
    monkeypatch.setattr("minilora.formats.fetch.fetch", refuse)
    words = "generate --prompt a --block-size 32"
    assert run(words, "--quantize nf4-dq --model somewhere") == 2
    assert run(words, *at(out)) == 2
    assert run("fetch smollm2 --source a.whl") == 2
    somewhere, here, fetched = asked
    assert somewhere == ("somewhere", "nf4-dq", 32, True) and here[:3] == (str(base), "nf4", 32)
    assert fetched == ("smollm2", "a.whl")


def test_several_prompts_are_one_batch_each_with_its_adapter(base, data, tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    for out, rank in ((a, "2"), (b, "3")):
        assert train(base, data, out, "--target-modules all-linear --lora-r", rank) == 0
    more = "--max-tokens 4 --quantize nf4-dq"
    prompts = {"1+1=": a, "12+1=": "none", "7+1=": b, "3+1=": a}
    alone = {}
    for prompt, path in prompts.items():
        capsys.readouterr()
        of_base = ["--model", base] if path == "none" else ["--adapter-path", path]
        assert run("generate --prompt", prompt, *of_base, more) == 0
        alone[prompt] = capsys.readouterr().out
    assert run("generate --prompt", *prompts, "--adapter-path", *prompts.values(), more) == 0
    expected = "".join(
        f"--- {prompt!r}, adapter {path}\n{alone[prompt]}" for prompt, path in prompts.items()
    )
    assert capsys.readouterr().out == expected
    # one adapter for all; and none
    assert run("generate --prompt 1+1= 3+1= --adapter-path", a, more) == 0
    assert f"--- '3+1=', adapter {a}\n{alone['3+1=']}" in capsys.readouterr().out
    assert run("generate --prompt 12+1= 1+1= --model", base, more) == 0
    assert capsys.readouterr().out.startswith(f"--- '12+1='\n{alone['12+1=']}--- '1+1='\n")

    words = "generate --prompt x y z --adapter-path", a, b
    says = "3 prompts need one --adapter-path or 3, got 2: write `none`"
    assert says in error_of(capsys, run(*words))
    assert train(base, data, tmp_path / "c", "--quantize none") == 0
    capsys.readouterr()
    words = "generate --prompt x y --adapter-path", a, tmp_path / "c"
    assert "different bases" in error_of(capsys, run(*words))


def test_generate_refuses_what_it_cannot_do(base, chat_base, capsys):
    for flags in ("--temp -1", "--top-p 0", "--max-tokens 0"):
        assert flags.split()[0] in error_of(capsys, run("generate --prompt x --model", base, flags))
    for model in (base, chat_base):
        assert "empty" in error_of(capsys, run("generate --model", model, "--prompt="))


@pytest.mark.parametrize("prompts", [["1+1="], ["1+1=", "23+1=", "7"]], ids=["one", "batch"])
def test_the_sampling_flags_of_generate_reach_the_sampling(prompts, base, capsys):
    """Each flag has another result, and it is that of the same options in Python."""
    config, params, tokenizer = load(base, low_precision=True)
    ids = [tokenizer.encode(prompt) for prompt in prompts]

    def expected(max_tokens=9, temp=2.0, top_p=1.0, seed=5):
        options = {"max_tokens": max_tokens, "temp": temp, "top_p": top_p}
        options["rng"] = np.random.default_rng(seed)
        if len(prompts) == 1:
            return [list(minilora.generate({}, params, ids[0], config, **options))]
        return minilora.generate_batch([{}] * len(ids), params, ids, config, **options)

    seen = set()
    flags = {"max_tokens": 4, "temp": 0.3, "top_p": 0.05, "seed": 6}
    for changed in ({}, *({name: value} for name, value in flags.items())):
        given = {"max_tokens": 9, "temp": 2.0, "seed": 5} | changed
        words = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
        assert run("generate --model", base, "--prompt", *prompts, *words) == 0
        printed = capsys.readouterr().out
        answers = [tokenizer.decode(answer) + "\n" for answer in expected(**changed)]
        titles = [f"--- {prompt!r}\n" for prompt in prompts] if len(prompts) > 1 else [""]
        assert printed == "".join(title + text for title, text in zip(titles, answers)), changed
        seen.add(printed)
    assert len(seen) == 5


# -------------------------------------------------------------------------------- conversations

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = TEMPLATE.replace("messages %}", "messages if m.role != 'system' %}")


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory):
    """A folder with a random Llama, a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "base"
    config = replace(CONFIG, vocab_size=261, eos_token_id=(2,))
    tokenizer = replace(tiny(), chat_template=TEMPLATE)
    save_pretrained(folder, config, unflatten(leaves(config)), tokenizer)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """[(prompt as text, options)] of each answer; the answers are `yes 1`, `yes 2`, …"""
    calls, tokenizer = [], tiny()

    def generate(adapters, base, prompt, config, ops, **options):
        calls.append((tokenizer.decode(prompt), options))
        yield from tokenizer.encode(f"yes {len(calls)}")

    monkeypatch.setattr("minilora.generation.generate", generate)
    return calls


def test_a_chat_keeps_the_conversation(chat_base, asked, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n\n  \nand then?\n exit \nnever\n"))
    flags = ["--max-tokens 7 --temp 0.5 --top-p 0.9 --seed 3 --system-prompt", "Be brief"]
    assert cli.main(["chat", "--model", str(chat_base), *flags[0].split(), flags[1]]) == 0
    printed = capsys.readouterr()
    assert printed.out == "yes 1\nyes 2\n" and printed.err == ""
    first = "[system]Be brief[user]Hi[assistant]"
    assert [prompt for prompt, _ in asked] == [first, f"{first}yes 1[user]and then?[assistant]"]
    (_, one), (_, two) = asked
    assert (one["max_tokens"], one["temp"], one["top_p"]) == (7, 0.5, 0.9)
    assert one["rng"] is two["rng"]  # the second answer continues the random numbers
    assert one["rng"].random() == np.random.default_rng(3).random()


def test_a_chat_without_a_template_continues_each_line(base, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+1=\n23+1="))  # no line break at the end
    more = "--max-tokens 5 --temp 0.8 --seed 4"
    assert run("chat --model", base, more) == 0
    printed = capsys.readouterr()
    assert printed.err == "this model has no chat template: each line is a prompt of its own\n"
    config, params, tokenizer = load(base, low_precision=True)
    rng = np.random.default_rng(4)
    options = {"max_tokens": 5, "temp": 0.8, "rng": rng}
    for line in ("1+1=", "23+1="):
        ids = minilora.generate({}, params, tokenizer.encode(line), config, **options)
        answer = tokenizer.decode(list(ids)) + "\n"
        assert printed.out.startswith(answer)
        printed = printed._replace(out=printed.out.removeprefix(answer))
    assert printed.out == ""


def test_a_chat_uses_the_adapter(base, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert train(base, data, out, "--target-modules all-linear --learning-rate 0.1") == 0
    capsys.readouterr()
    answers = []
    for command in ("generate --prompt -", "chat"):
        monkeypatch.setattr("sys.stdin", io.StringIO("1+1=\n"))
        assert run(command, "--max-tokens 9", *at(out)) == 0
        answers.append(capsys.readouterr().out)
    assert run("generate --prompt 1+1= --max-tokens 9 --quantize nf4-dq --model", base) == 0
    assert answers[0] == answers[1] != capsys.readouterr().out


class Interrupting(io.StringIO):
    """Standard input that sends a signal to this process instead of the second line."""

    def readline(self, *args):
        if self.tell():
            os.kill(os.getpid(), self.number)
        return super().readline(*args)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_chat_ends_with_ctrl_c(number, status, base, monkeypatch, capsys):
    stdin = Interrupting("1+1=\nnever\n")
    stdin.number = number
    monkeypatch.setattr("sys.stdin", stdin)
    # a job in the background of a shell ignores SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("chat --max-tokens 1 --model", base) == status
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().out.endswith("\n\n")  # the shell's prompt begins a new line


def test_the_prompt_of_generate(chat_base, asked, monkeypatch, capsys):
    for words, prompt in (
        (["Hi"], "[user]Hi[assistant]"),
        (["Hi", "--raw"], "Hi"),
        (["Hi", "--system-prompt", ""], "[system][user]Hi[assistant]"),
        (["-", "--raw"], "from\na file"),
        (["-", "--system-prompt", "S"], "[system]S[user]from\na file[assistant]"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("from\na file\n"))
        assert cli.main(["generate", "--model", str(chat_base), "--prompt", *words]) == 0
        assert asked.pop()[0] == prompt
        assert capsys.readouterr().out == "yes 1\n"


def test_a_system_prompt_that_the_model_would_not_see_is_refused(
    base, chat_base, tmp_path, monkeypatch, capsys
):
    says = "--system-prompt needs a chat template, and none is used here: put its text into"
    for command in ("generate --prompt a", "chat"):
        assert says in error_of(capsys, run(command, "--system-prompt S --model", base))
    words = "generate --prompt a --raw --system-prompt S --model", chat_base
    assert says in error_of(capsys, run(*words))
    hiding = tmp_path / "hiding"
    shutil.copytree(chat_base, hiding)
    (hiding / "chat_template.jinja").write_text(NO_SYSTEM)
    for command in ("generate --prompt a", "chat"):
        error = error_of(capsys, run(command, "--system-prompt S --model", hiding))
        assert "chat template of this model does not show --system-prompt" in error


def test_a_standard_input_that_is_no_text(base, monkeypatch, capsys):
    for raw, says in ((b"\xff", "standard input is not utf-8"), (None, "standard input is closed")):
        for command in ("generate --prompt -", "chat"):
            stdin = raw and io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
            monkeypatch.setattr("sys.stdin", stdin)
            status = run(command, "--model", base)
            assert status == 2 and says in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "the prompt is empty" in error_of(capsys, run("generate --prompt - --model", base))


def test_top_p_without_a_temperature_gets_a_warning(base, asked, capsys):
    for flags, warned in (("--top-p 0.9", True), ("--top-p 0.9 --temp 0.1", False), ("", False)):
        assert run("generate --prompt a --model", base, flags) == 0
        assert ("--top-p has no effect with --temp 0" in capsys.readouterr().err) == warned


def test_a_text_longer_than_the_model_is_made_for_gets_a_warning(base, asked, capsys):
    """The base has 512 positions."""
    for n, warned in ((506, False), (507, True)):
        assert run("generate --max-tokens 6 --model", base, "--prompt", "a" * n) == 0
        says = f"warning: the prompt ({n} tokens) and --max-tokens 6 exceed the 512 tokens"
        assert capsys.readouterr().err.startswith(says) == warned


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merge_writes_the_type_that_is_asked_for(dtype, base, data, tmp_path):
    """The weights are those of the merge in float32, rounded once."""
    run_, out = tmp_path / "run", tmp_path / "merged"
    assert train(base, data, run_) == 0
    assert run("merge", *at(run_), "--out", out, "--dtype", dtype) == 0
    _, params, _ = load(base, "nf4-dq", low_precision=True)
    adapters, _, _ = minilora.load_adapter(run_, params)
    entries = read_header(out / "model.safetensors")
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    assert {entry.dtype for entry in entries.values()} == {names[dtype]}
    # half a unit in the last place of 24, 11 and 8 bits; the smallest float16 is 2⁻²⁴
    bound = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for path, w in flatten(minilora.merge(adapters, params)).items():
        np.testing.assert_allclose(entries[path].read(), w, rtol=bound, atol=bound * 2.0**-14)


def test_plain_and_fused_runs_agree(base, data, tmp_path):
    first = []
    for name in ("--plain", "--no-plain"):
        out = tmp_path / name
        words = ["train", "--model", str(base), "--data", str(data), "--iters", "3"]
        subprocess.run(
            [sys.executable, "-m", "minilora", *words, name, "--adapter-path", str(out)],
            check=True, capture_output=True,
        )  # fmt: skip
        first.append(
            [json.loads(x)["loss"] for x in (out / "metrics.jsonl").open() if '"loss"' in x]
        )
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_plain_runs_none_of_the_optimized_operations(base, data, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("an optimized operation")

    for name in set(fused.__all__) - {"ENTRIES"}:
        monkeypatch.setattr(fused, name, forbidden)
    words = f"train --model {base} --data {data} --iters 2 --adapter-path {tmp_path / 'run'}"
    assert run(f"{words} --plain") == 0
    with pytest.raises(AssertionError, match="an optimized operation"):
        run(f"{words} --overwrite")


# -------------------------------------------------------------------------------- the methods

TARGETS = "--target-modules q_proj down_proj"
OF_METHOD = {
    **{name: f"--method {name}" for name in METHODS},
    "lora": TARGETS,
    "dora": f"--method dora {TARGETS}",
    "full": "--method full --quantize none --layer-lr-decay 0.8",
    "p-tuning": "--method p-tuning --num-virtual-tokens 3",
    "prefix": "--method prefix --num-virtual-tokens 3 --packing",
    "pissa": f"--init-lora-weights pissa {TARGETS}",
    "loftq": f"--method dora --init-lora-weights loftq --lora-r 4 {TARGETS}",
    "lora+": f"--loraplus-lr-ratio 16 {TARGETS}",
    "muon": f"--optimizer muon --weight-decay 0.1 --early-stopping-patience 9 {TARGETS}",
    "muon and AdamW": f"--optimizer muon --also-train norm head {TARGETS}",
}
NO_MERGE = ("prompt", "p-tuning", "prefix", "bottleneck")


@pytest.mark.parametrize("name", OF_METHOD)
def test_every_method_trains_evaluates_generates_and_merges(name, base, data, tmp_path, capsys):
    """Evaluating the written files gives exactly the numbers of the last evaluation."""
    out, merged = tmp_path / "run", tmp_path / "merged"
    assert train(base, data, out, "--quantize nf4", OF_METHOD[name]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["grad_norm"] > 0
    capsys.readouterr()
    assert run("evaluate --json --split valid --adapter-path", out) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["loss"] == pytest.approx(rows[-1]["eval_loss"], rel=1e-6)
    assert run("generate --prompt 1+1= --max-tokens 3 --adapter-path", out) == 0
    answer = capsys.readouterr().out
    assert run("inspect --adapter-path", out) == 0
    status = run("merge --adapter-path", out, "--out", merged)
    if name in NO_MERGE:
        assert "cannot be merged" in error_of(capsys, status)
        return
    assert status == 0
    capsys.readouterr()
    assert run("generate --prompt 1+1= --max-tokens 3 --model", merged) == 0
    assert capsys.readouterr().out == answer


@pytest.mark.parametrize(
    "name", ["p-tuning", "prefix", "pissa", "loftq", "vera", "muon", "muon and AdamW"]
)
def test_a_method_resumes_to_the_same_bytes(name, base, data, tmp_path):
    """Resume from step 2 of 4: the checkpoint has the encoder; the base is initialized again."""
    flags = "--quantize nf4", OF_METHOD[name]
    short = tmp_path / "short"
    assert (
        train(base, data, short, *flags, "--iters 2 --lr-schedule constant --warmup-ratio 0") == 0
    )
    long = tmp_path / "long"
    assert train(base, data, long, *flags, "--lr-schedule constant --warmup-ratio 0") == 0
    _, facts = read_metadata(long / "checkpoint.safetensors")
    optimizer = facts["settings"]["optimizer"]
    adapters, state, _ = load_state(short / "checkpoint.safetensors", optimizer=optimizer)
    shutil.copytree(long, tmp_path / "resumed")
    save_state(
        tmp_path / "resumed" / "checkpoint.safetensors", adapters, state,
        facts | {"adapter_path": str(tmp_path / "resumed")},
    )  # fmt: skip
    assert run("train --resume --adapter-path", tmp_path / "resumed") == 0
    for file in ("adapter_model.safetensors", "checkpoint.safetensors"):
        a, b = weights(long / file), weights(tmp_path / "resumed" / file)
        assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_an_adapter_of_any_method_is_gone_on_from(base, data, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(base, data, first, "--method p-tuning --num-virtual-tokens 3") == 0
    again = "--method p-tuning --learning-rate 1e-12 --init-adapter"
    assert train(base, data, second, again, first) == 0
    a, b = (weights(folder / "adapter_model.safetensors") for folder in (first, second))
    np.testing.assert_allclose(a["prompt_embeddings"], b["prompt_embeddings"], atol=1e-9)
    status = train(base, data, tmp_path / "third", "--method ia3 --init-adapter", first)
    assert "has the method p-tuning" in error_of(capsys, status)


NOT_TOGETHER = {
    "--method full": "set --quantize to none",
    "--method full --quantize int8": "set --quantize to none",
    "--method prompt --packing": "--packing",
    "--method p-tuning --packing": "--packing",
    "--method prompt --num-virtual-tokens 0": "--num-virtual-tokens",
    "--method bottleneck --bottleneck-size 0": "--bottleneck-size",
    "--method vera --vera-r 0": "--vera-r",
    "--optimizer sgd": "--optimizer",
    "--method ia3 --also-train norm": "--also-train",
    "--method dora --also-train bias": "--also-train bias",
    "--method ia3 --init-lora-weights pissa": "--init-lora-weights",
    "--init-lora-weights loftq --quantize none": "--quantize",
    "--loraplus-lr-ratio 0": "--loraplus-lr-ratio",
    "--method ia3 --lora-r 64": "--lora-r has no effect with --method ia3: leave it out",
    "--early-stopping-patience 2 --data {few}": "needs held-out rows, but there are none",
    "--mask-prompt --data {few}": "--mask-prompt has no effect on rows without a prompt",
    "--layer-lr-decay -1": "--layer-lr-decay",
    "--method prayer": "--method",
}


@pytest.mark.parametrize("flags", NOT_TOGETHER)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(
    flags, base, data, tmp_path, capsys
):
    out, few = tmp_path / "out", tmp_path / "few.jsonl"
    few.write_text('{"text": "Ada keeps a red ball."}\n' * 3)
    words = "train --model", base, "--data", data, *at(out), flags.format(few=few)
    assert NOT_TOGETHER[flags] in error_of(capsys, run(*words))
    assert not out.exists()


NO_EFFECT = {  # flags: the part of them that has no effect
    "--method head --target-modules q_proj": "--target-modules",
    "--method prompt --lora-alpha 3": "--lora-alpha",
    "--method prefix --lora-dropout 0.1": "--lora-dropout",
    "--method bitfit --layers-to-transform 0": "--layers-to-transform",
    "--method norm --no-use-rslora": "--use-rslora",
    "--method ia3 --init-lora-weights loftq": "--init-lora-weights",
    "--num-virtual-tokens 3": "--num-virtual-tokens",
    "--method bottleneck --num-virtual-tokens 3": "--num-virtual-tokens",
    "--bottleneck-size 3": "--bottleneck-size", "--method ia3 --vera-r 3": "--vera-r",
    "--method prompt --bottleneck-size 3": "--bottleneck-size",
    "--quantize none --block-size 32": "--block-size",
    "--quantize int8 --block-size 64": "--block-size",
    "--also-train-lr-scale 0.1": "--also-train-lr-scale",
    "--method ia3 --loraplus-lr-ratio 16": "--loraplus-lr-ratio",
    "--method prompt --layer-lr-decay 0.5": "--layer-lr-decay",
    "--layers-to-transform 1 --layer-lr-decay 0.5": "--layer-lr-decay",
    "--optimizer muon --adam-beta1 0.8": "--adam-beta1",
    "--steps-per-eval 2": "--steps-per-eval", "--val-batches 2": "--val-batches",
    "--early-stopping-patience 2": "--early-stopping-patience",
    "--mask-prompt": "--mask-prompt", "--chat-date 2001-02-03": "--chat-date",
}  # fmt: skip
EFFECT = (  # some of the same flags, where they have one
    "--method dora --lora-r 3 --target-modules q_proj", "--method prefix --num-virtual-tokens 3",
    "--method bottleneck --bottleneck-size 3", "--quantize fp4 --block-size 32",
    "--method vera --vera-r 3",
    "--also-train norm --also-train-lr-scale 0.5", "--method dora --loraplus-lr-ratio 16",
    "--method norm --layer-lr-decay 0.5", "--no-mask-prompt",
    "--optimizer muon --also-train norm --adam-beta1 0.8",
)  # fmt: skip


@pytest.mark.parametrize("flags", [*NO_EFFECT, *EFFECT])
def test_a_flag_without_effect_is_refused_and_not_stored(flags, base):
    """The rows are two texts for training, and none is held out."""
    args = parse(["train", "--model", str(base), *flags.split()])
    loaded, examples = load_for_training(args), [Example([1, 2], [1, 1])] * 2
    config = TrainConfig(mask_prompt=args.mask_prompt, optimizer=args.optimizer)
    unused = unused_settings(args, loaded, config, examples, [])
    stored = run_folder.metadata(args, unused)["settings"]
    if flags in EFFECT:
        refuse_unused(args.given, unused)
        names = [word[2:].replace("-", "_") for word in flags.split() if word[:2] == "--"]
        assert {name.removeprefix("no_") for name in names} <= stored.keys()
        return
    with pytest.raises(InputError, match=f"{NO_EFFECT[flags]} has no effect .*: leave it out"):
        refuse_unused(args.given, unused)
    assert NO_EFFECT[flags][2:].replace("-", "_") not in stored


def test_every_setting_of_a_full_run_counts(base):
    """With held-out rows, prompts and a date in the chat template, nothing is left out."""
    args = parse(["train", "--model", str(base), "--also-train", "norm"])
    loaded, masked = load_for_training(args), [Example([1, 2], [0, 1])]
    loaded = loaded._replace(tokenizer=SimpleNamespace(chat_template="{{ strftime_now('%Y') }}"))
    unused = unused_settings(args, loaded, TrainConfig(mask_prompt=True), masked, masked)
    assert unused.keys() == {*SIZES}


OF_ADAPTER = {  # flags for the adapter of rank 5 below: what is wrong with them
    "": None, "--lora-r 5 --lora-alpha 3 --use-rslora": None, "--target-modules all-linear": None,
    "--lora-r 16": "--lora-r 16 has no effect: the adapter in {folder} has 5; leave --lora-r out",
    "--target-modules q_proj": r"--target-modules \['q_proj'\] has no effect",
    "--no-use-rslora": "--use-rslora False has no effect",
    "--init-lora-weights pissa": "--init-lora-weights pissa has no effect",
    "--layers-to-transform 1 0": r"--layers-to-transform \[1, 0\] has no effect",
    "--lora-dropout 0.5": "--lora-dropout 0.5 has no effect",
}  # fmt: skip


@pytest.mark.parametrize("flags", OF_ADAPTER)
def test_an_adapter_to_start_from_has_its_own_settings(flags, base, tmp_path):
    dense = load(base)[1]
    config = LoraConfig(r=5, lora_alpha=3, target_modules="all-linear", use_rslora=True)
    adapters, _ = get_peft_model(dense, config)
    adapters = also_train(adapters, dense, ["norm"])
    save_adapter(tmp_path, adapters, dense, config, str(base))
    words = ["train", "--model", str(base), "--also-train", "head", "--init-adapter"]
    args = parse([*words, str(tmp_path), *flags.split()])
    if OF_ADAPTER[flags]:
        with pytest.raises(InputError, match=OF_ADAPTER[flags].format(folder=tmp_path)):
            load_for_training(args)
        return
    loaded = load_for_training(args)
    settings = run_folder.metadata(args)["settings"]
    assert (settings["lora_r"], settings["lora_alpha"], settings["use_rslora"]) == (5, 3, True)
    assert set(settings["target_modules"]) == set(ALL_LINEAR)
    assert settings["also_train"] == ["head", "norm"]  # the adapter trains the norms already
    assert {"lm_head.weight", "model.norm.weight"} <= flatten(loaded.adapters).keys()
    assert not {"layers_to_transform", "init_lora_weights"} & settings.keys()


def test_the_settings_of_a_run_start_the_same_run(base, data, tmp_path):
    """No value in train_config.toml is one that the run would refuse as a flag."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(base, data, first, "--method p-tuning --num-virtual-tokens 3 --quantize int8") == 0
    settings = tomllib.loads((first / "train_config.toml").read_text())
    assert not {"lora_r", "bottleneck_size", "block_size", "chat_date"} & settings.keys()
    assert run("train -c", first / "train_config.toml", *at(second)) == 0
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    third = "train", "-c", second / "train_config.toml", *at(tmp_path / "third")
    assert run(*third, "--init-adapter", first) == 0
    settings = tomllib.loads((tmp_path / "third" / "train_config.toml").read_text())
    assert settings["num_virtual_tokens"] == 3


@pytest.mark.parametrize(
    "words",
    ["evaluate --quantize int8 --block-size 32", "generate --prompt a --block-size 32",
     "quantize --quantize int8 --block-size 32 --out never", "inspect --block-size 32",
     "inspect --max-seq-length 3", "inspect --mask-prompt"],
)  # fmt: skip
def test_another_command_refuses_a_flag_without_effect(words, capsys):
    error = error_of(capsys, run(words, "--model micro"))
    assert "--block-size has no effect with --quantize" in error or "give --data, too" in error


def test_an_error_on_the_command_line_names_the_flag_of_a_field(capsys):
    """In Python, the message names the field."""
    actions = (action for sub in parsers(parser()) for action in sub._actions)
    flags = {option for action in actions for option in action.option_strings}
    assert set(FLAGS.values()) <= flags
    assert cli.report_error(InputError("`learning_rate` and `r`: `none`, `train it`")) == 2
    assert capsys.readouterr().err == "error: --learning-rate and --lora-r: `none`, `train it`\n"
