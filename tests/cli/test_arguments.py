"""Flags, settings files, and input that every command refuses with one line."""

import argparse

import pytest
from outcomes import error_of, run
from small_run import write_rows

from minilora import cli
from minilora.cli.arguments import Parser, parse, parser, toml_settings
from minilora.cli.stored_paths import absolute
from minilora.config import InputError
from minilora.course.commands import add_commands

# The transcript has errors, too: those are not repeated here.

TRAIN = {  # flags after `train --model BASE --data ROWS --adapter-path OUT`: part of the message
    "--target-modules w_proj": "w_proj",
    "--lora-r 1000000000000": "",
    "--lora-r eight": "--lora-r",
    "--save-every 0": "--save-every",
    "--layers-to-transform 7": "--layers-to-transform has 7",
    "--block-size 0": "--block-size: must be a whole number from 1",
    "--block-size 48": "a block size of 48 is not a power of two",
    "--block-size 1099511627776": "",
    "--batch-size 1000000000": "a step needs",
    "--seed -1": "--seed",
    "--init-adapter nowhere": "nowhere",
    "-c nowhere.toml": "nowhere.toml",
    "--lr 1": "unrecognized arguments: --lr 1 (see",  # and not --lora-r
    "--quantize nf4dq": "(choose from ",
    "--method full": "set --quantize to none",
    "--init-lora-weights loftq --quantize none": "loftq",
    "--method norm --no-use-rslora": "--use-rslora has no effect",
    "--quantize none --block-size 32": "--block-size has no effect",
    "--optimizer muon --method norm": "--optimizer muon has no effect",
    "--optimizer muon --method ia3": "--optimizer muon has no effect",
    "--early-stopping-patience 2 --data {few}": "--early-stopping-patience needs held-out rows",
    "--epochs=nan": "--epochs must be",
    "--epochs 0": "--epochs must be",
    "--target-modules .*q_prox": "such as '.*q_proj'",
    "--rank-pattern q_proj": "--rank-pattern: must be REGEX=WHOLE NUMBER, got q_proj",
    "--rank-pattern q_proj=2.5": "--rank-pattern: must be REGEX=WHOLE NUMBER, got q_proj=2.5",
    "--rank-pattern =2": "--rank-pattern: an expression is empty or there twice",
    "--rank-pattern q_proj=2 q_proj=3": "--rank-pattern: an expression is empty or there twice",
    "--alpha-pattern k_proj=2": "--alpha-pattern has 'k_proj', which matches no adapted",
    "--rank-pattern .*=2 v_proj=3": "--rank-pattern has 'v_proj', which matches no adapted",
    "--no-mask-prompt --data {few}": "--mask-prompt has no effect on rows without a prompt",
    "--alpha-pattern q_proj=a": "--alpha-pattern: must be REGEX=NUMBER, got q_proj=a",
    "--exclude-modules all-linear": "down_proj, or an expression for whole paths",
    "--exclude-modules k_proj": "--exclude-modules has no effect, because no target matches",
    "--adapter-path {few}/run": "/run cannot be written: Not a directory: check the permission",
    "--columns prompt=q prompt=question": "prompt is given twice, as q and question",
}


@pytest.mark.parametrize("flags", TRAIN)
def test_a_run_that_cannot_be_is_one_line_and_writes_nothing(train, flags, out, tmp_path):
    few = write_rows(tmp_path / "few.jsonl", [{"text": "Ada keeps a red ball."}] * 3)
    error = error_of(train, flags.format(few=few), steps="")
    assert TRAIN[flags] in error
    assert not out.exists()


OTHERS = {  # command lines: part of the message
    "teach grade x --uot y": "arguments: --uot y (see minilora teach grade --help)",
    "generate --prompt a --temp 1 --seed -1": "--seed: must be a whole number",
    "generate --prompt a --max-tokens 0": "--max-tokens",
    "generate --prompt a --temp -1": "--temp",
    "generate --prompt a --adapter-path=": "--adapter-path: the value is empty",
    "generate --prompt x y z --adapter-path a b": "3 prompts need one --adapter-path or 3, got 2:",
    "train -ca --config b": "--config is given 2 times",
    "teach grade x --jobs 1 --jobs 2": "--jobs is given 2 times",
    "chat --system-prompt=": "--system-prompt: the value is empty",
    "teach grade x --out=": "--out: the value is empty",
    "evaluate --max-seq-length 0": "--max-seq-length: must be a whole number from 1",
    "evaluate --block-size 0": "--block-size: must be a whole number from 1",
    "evaluate --quantize int8 --block-size 32": "--block-size has no effect with --quantize int8",
    "quantize --quantize int8 --block-size 32 --out never": "--block-size has no effect with",
    "inspect --tokens -5": "--tokens",
    "inspect --columns a=b": "--columns has no effect without --data",
    "inspect --no-mask-prompt": "--mask-prompt has no effect without --data",
    "inspect --mask-prompt --data notes": "--mask-prompt has no effect on rows without a prompt",
    "evaluate --no-mask-prompt --data notes": "--mask-prompt has no effect on rows without a",
    "inspect --max-seq-length 9": "--max-seq-length has no effect without --data",
    "generate --prompt a --top-p 0.1": "--top-p has no effect with --temp 0",
    "evaluate --adapter-path a\0b": "an argument has a NUL",
    "evaluate --adapter-path a\udcff": "or a character that is not UTF-8",
}


@pytest.mark.parametrize("words", OTHERS)
def test_another_command_that_cannot_be_is_one_line(words):
    assert OTHERS[words] in error_of(run, words)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\udcff", "a" * 300])
def test_a_message_stays_one_line_whatever_a_name_holds(tmp_path, name):
    for words in ("evaluate --adapter-path", "evaluate --model", "train -c", "train --data"):
        line = error_of(run, words, tmp_path / name)
        assert line.isprintable()


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (
        "train -c ~/x", "train --data=~/x", "train --model=~/x", "train --init-adapter=~/x",
        "train --resume --adapter-path=~/x", "generate --prompt a b --adapter-path none ~/x",
        "fetch smollm2 --source=~/x", "teach grade ~/x", "learn list --exercises=~/x",
    ):  # fmt: skip
        assert f"{tmp_path}/x" in error_of(run, words), words
    assert parse(["merge", "--out=~/x"]).out == f"{tmp_path}/x"
    course = Parser(prog="minilora")
    add_commands(course)
    for words in ("learn init ~/x", "learn train ~/x", "teach solutions ~/x"):
        args = course.parse_args(words.split())
        assert f"{tmp_path}/x" in vars(args).values(), words
    (tmp_path / "x").write_text('adapter-path = "~/y"')
    assert toml_settings(tmp_path / "x") == {"adapter_path": f"{tmp_path}/y"}


def test_a_message_names_flags_and_only_those_that_there_are(capsys):
    assert cli.report_error("`r`, `top_p` or `none`: a `dtype` of a `shape`") == 2
    assert capsys.readouterr().err == "error: --lora-r, --top-p or `none`: a --dtype of a `shape`\n"


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
            if callable(action.type) and isinstance(action.default, int | float):
                assert action.type(str(action.default)) == action.default, where  # it can be given
        assert sub.format_help()


BAD_TOML = {
    "target-modules = []": "expected at least one argument",
    "[lora]\nr = 3": "lora is not",
    'config = "other.toml"': "config is not",
    "help = true": "help is not",
    "lora-r = 3\nlora_r = 4": "a setting twice, with - and with _",
    "iters = 3\nepochs = 1": "--iters and --epochs both set",
    'target_modules = ["q_proj", "--quiet"]': "begins with a hyphen",
    "iters = " + "9" * 5000: "is not TOML",
    "iters = " + "[" * 5000 + "]" * 5000: "is not TOML",
    r'adapter-path = "a\u0000b"': "NUL",
    '"a\\nb" = 3': r"a\nb is not",
    'quantize = "x"': "--quantize",
    "data = [1, 2]": "unrecognized arguments: 2",
    "block_size = 1.5": "--block-size",
    "no_packing = true": "no_packing is not a setting",
    "iters = 1979-05-27": "--iters",
}


@pytest.mark.parametrize("text", BAD_TOML, ids=range(len(BAD_TOML)))
def test_a_bad_settings_file_is_one_line(text, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        toml_settings(path)
    assert str(path) in str(caught.value) and BAD_TOML[text] in str(caught.value)


def test_a_list_in_a_file_may_be_empty_and_a_text_may_begin_with_a_hyphen(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('exclude_modules = []\nadapter_path = "-x"')
    args = parse(["train", "-c", str(path)])
    assert args.exclude_modules == [] and args.adapter_path.endswith("-x")


def test_a_run_is_not_both_resumed_and_replaced_if_the_file_says_one(tmp_path):
    for one, other in ("resume", "--overwrite"), ("overwrite", "--resume"):
        path = tmp_path / f"{one}.toml"
        path.write_text(f"{one} = true")
        with pytest.raises(InputError, match="--resume continues a run and --overwrite replaces"):
            parse(["train", "-c", str(path), other])


def test_built_in_names_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    names = {"tiny": "model", "smollm2": "model", "questions": "data", "lora": "method"}
    for name, setting in names.items():
        assert absolute(setting, name) == name
    for setting, name in (("data", "tiny"), ("model", "./tiny"), ("init_adapter", "tiny")):
        assert absolute(setting, name) == str(tmp_path / "tiny")
