"""The command line: complete runs, and errors."""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from sweeps.pretraining import llama, random_params
from toy_models import CONFIG, leaves, tiny

import minilora
from minilora import LoraConfig, TrainConfig, cli, encode_rows, get_peft_model, load_rows
from minilora.batching import pack_examples
from minilora.cli import run_folder
from minilora.cli.arguments import Parser, parser
from minilora.config import InputError
from minilora.course.commands import add_commands
from minilora.data.tokenizer import ByteTokenizer
from minilora.evaluation import memory
from minilora.formats.checkpoint import load_state, save_adapter, save_state
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.safetensors_file import read_header
from minilora.kernels import fused
from minilora.methods.registry import METHODS
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
    assert set(score) == metrics | {"rows", "data"}
    assert score["rows"] == 2 and score["data"] == f"valid split of {data}"
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
    "--layers-to-transform 7": "--layers-to-transform 7",
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
    '["text"]': "line 1",
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


def test_two_runs_in_one_folder(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    with run_folder.lock(out):
        line = error_of(capsys, train(base, data, out))
    assert f"in use by process {os.getpid()}" in line
    assert train(base, data, out) == 0


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
    assert train(base, rows, tmp_path / "run") == 0
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
    first, state, _ = load_state(out / "checkpoint.safetensors")
    assert run("train --resume --iters 9", *at(out)) == 0
    assert (
        "from step 5 on, the learning rate is that of a run of 9 steps" in capsys.readouterr().out
    )

    config, params, tokenizer = load(base, "nf4-dq", low_precision=True)
    lora_config = LoraConfig(lora_dropout=0.2)
    _, frozen = get_peft_model(params, lora_config, 0)
    settings = TrainConfig(
        iters=9, batch_size=2, learning_rate=0.01, steps_per_eval=2, val_batches=8
    )
    examples, _ = encode_rows(load_rows(str(data), "train"), tokenizer, settings)
    valid, _ = encode_rows(load_rows(str(data), "valid"), tokenizer, settings)
    state |= {"best_loss": np.inf, "worse": 0}
    longer, history = minilora.train(first, frozen, examples, config, settings, valid, state)
    save_adapter(tmp_path / "expected", longer, frozen, lora_config, str(base))
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

    def draw(path, history, title):
        assert (path.parent / "checkpoint.safetensors").exists()
        drawn.append([row["step"] for row in history if "eval_loss" in row])

    monkeypatch.setattr("minilora.cli.run.curve", draw)
    out = tmp_path / "run"
    # the first evaluation comes before the first checkpoint that --save-every asks for
    assert train(base, data, out, "--iters 6 --save-every 5") == 0
    assert drawn == [[0, 2], [0, 2, 4], [0, 2, 4, 6], [0, 2, 4, 6]]


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
        assert f"{n} rows, all rows of {path}" in capsys.readouterr().out


def test_evaluate_warns_of_rows_that_the_adapter_was_trained_on(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(base, data, out) == 0
    assert "20 rows, 18 for training; every tenth row is held out" in capsys.readouterr().out
    assert run("evaluate --adapter-path", out) == 0  # the split that the run made itself
    assert capsys.readouterr().err == ""
    assert run("evaluate --adapter-path", out, "--data", data) == 0
    assert "warning: the adapter was trained on rows of" in capsys.readouterr().err


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
        return minilora.generate_batch([({}, params)] * len(ids), ids, config, **options)

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
    adapters, frozen, _ = minilora.load_adapter(run_, params)
    entries = read_header(out / "model.safetensors")
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    assert {entry.dtype for entry in entries.values()} == {names[dtype]}
    # half a unit in the last place of 24, 11 and 8 bits; the smallest float16 is 2⁻²⁴
    bound = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for path, w in flatten(minilora.merge(adapters, frozen)).items():
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

    for name in fused.__all__:
        monkeypatch.setattr(fused, name, forbidden)
    words = f"train --model {base} --data {data} --iters 2 --adapter-path {tmp_path / 'run'}"
    assert run(f"{words} --plain") == 0
    with pytest.raises(AssertionError, match="an optimized operation"):
        run(f"{words} --overwrite")


# -------------------------------------------------------------------------------- the methods

OF_METHOD = {
    **{name: f"--method {name}" for name in METHODS},
    "full": "--method full --quantize none --layer-lr-decay 0.8",
    "prefix": "--method prefix --num-virtual-tokens 3 --packing",
    "pissa": "--init-lora-weights pissa",
    "loftq": "--method dora --init-lora-weights loftq --lora-r 4",
    "lora+": "--loraplus-lr-ratio 16",
}
NO_MERGE = ("prompt", "p-tuning", "prefix", "bottleneck")


@pytest.mark.parametrize("name", OF_METHOD)
def test_every_method_trains_evaluates_generates_and_merges(name, base, data, tmp_path, capsys):
    """Evaluating the written files gives exactly the numbers of the last evaluation."""
    out, merged = tmp_path / "run", tmp_path / "merged"
    flags = "--target-modules q_proj down_proj", "--quantize nf4", OF_METHOD[name]
    assert train(base, data, out, *flags) == 0
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


@pytest.mark.parametrize("name", ["p-tuning", "prefix", "pissa", "loftq"])
def test_a_method_resumes_to_the_same_bytes(name, base, data, tmp_path):
    """Resume from step 2 of 4: the checkpoint has the encoder; the base is initialized again."""
    flags = "--quantize nf4 --num-virtual-tokens 3", OF_METHOD[name]
    short = tmp_path / "short"
    assert (
        train(base, data, short, *flags, "--iters 2 --lr-schedule constant --warmup-ratio 0") == 0
    )
    long = tmp_path / "long"
    assert train(base, data, long, *flags, "--lr-schedule constant --warmup-ratio 0") == 0
    _, _, facts = load_state(long / "checkpoint.safetensors")
    adapters, state, _ = load_state(short / "checkpoint.safetensors")
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
    "--method full": "--quantize none",
    "--method full --quantize int8": "--quantize none",
    "--method prompt --packing": "--packing",
    "--method p-tuning --packing": "--packing",
    "--method prompt --num-virtual-tokens 0": "--num-virtual-tokens",
    "--method bottleneck --bottleneck-size 0": "--bottleneck-size",
    "--method ia3 --also-train norm": "--also-train",
    "--method dora --also-train bias": "--also-train bias",
    "--method ia3 --init-lora-weights pissa": "--init-lora-weights",
    "--init-lora-weights loftq --quantize none": "--quantize",
    "--loraplus-lr-ratio 0": "--loraplus-lr-ratio",
    "--layer-lr-decay -1": "--layer-lr-decay",
    "--method prayer": "--method",
}


@pytest.mark.parametrize("flags", NOT_TOGETHER)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(
    flags, base, data, tmp_path, capsys
):
    out = tmp_path / "out"
    assert NOT_TOGETHER[flags] in error_of(capsys, train(base, data, out, flags))
    assert not out.exists()
