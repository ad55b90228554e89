"""Flags, settings files, and input that every command refuses with one line."""

import argparse

import pytest
from outcomes import error_of, refused, run
from small_run import parsed

from minilora import cli
from minilora.cli.arguments import Parser, parser, toml_settings
from minilora.cli.stored_paths import absolute
from minilora.course.commands import add_commands

# The transcript has errors, too: those are not repeated here.

TRAIN = {  # flags after `train --model BASE --data ROWS --adapter-path OUT`: part of the message
    "--save-every 0": "--save-every",
    "--lora-r 1000000000000": "MemoryError: too large for this machine",
    "--block-size 0": "--block-size: must be a whole number from 1",
    "--lr 1": "unrecognized arguments: --lr 1 (see",  # and not --lr-schedule
    "--method full": "set --quantize to none",
    "--init-lora-weights loftq --quantize none": "loftq",
    "--epochs 0": "--epochs must be",
    "--rank-pattern =2": "--rank-pattern: an expression is empty or there twice",
    "--rank-pattern q_proj=2 q_proj=3": "--rank-pattern: an expression is empty or there twice",
    "--rank-pattern .*=2 v_proj=3": "--rank-pattern has 'v_proj', which matches no adapted",
    "--alpha-pattern q_proj=a": "--alpha-pattern: must be REGEX=NUMBER, got q_proj=a",
    "--adapter-path {base}/config.json/run": "/run cannot be written: Not a directory",
    "--columns prompt=q prompt=question": "prompt is given twice, as q and question",
}


@pytest.mark.parametrize("flags", TRAIN)
def test_a_run_that_cannot_be_is_one_line_and_writes_nothing(train, base, flags, out):
    assert TRAIN[flags] in error_of(train, flags.format(base=base), steps="")
    assert not out.exists()


OTHERS = {  # command lines: part of the message
    "teach grade x --uot y": "arguments: --uot y (see minilora teach grade --help)",
    "generate --prompt a --temp 1 --seed -1": "--seed: must be a whole number",
    "train -ca --config b": "--config is given 2 times",
    "teach grade x --jobs 1 --jobs 2": "--jobs is given 2 times",
    "evaluate --max-seq-length 0": "--max-seq-length: must be a whole number from 1",
    "evaluate --block-size 0": "--block-size: must be a whole number from 1",
    "evaluate --quantize int8 --block-size 32": "--block-size has no effect with --quantize int8",
    "inspect --tokens -5": "--tokens",
    "inspect --columns a=b": "--columns has no effect without --data",
    "inspect --max-seq-length 9": "--max-seq-length has no effect without --data",
    "inspect --mask-prompt --data notes": "--mask-prompt has no effect on rows without a prompt",
    "evaluate --no-mask-prompt --data notes": "--mask-prompt has no effect on rows without a",
    "evaluate --adapter-path a\0b": "an argument has a NUL",
    "evaluate --adapter-path a\udcff": "or a character that is not UTF-8",
}


@pytest.mark.parametrize("words", OTHERS)
def test_another_command_that_cannot_be_is_one_line(words):
    assert OTHERS[words] in error_of(run, words)


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "a" * 300])
def test_a_message_stays_one_line_whatever_a_name_holds(tmp_path, name):
    for words in ("evaluate --adapter-path", "evaluate --model", "train -c", "train --data"):
        assert error_of(run, words, tmp_path / name).isprintable()


def course():
    top = Parser(prog="minilora")
    add_commands(top)
    return top


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (
        "train -c ~/x --data=~/x --model=~/x --init-adapter=~/x --adapter-path=~/x",
        "generate --prompt a b --adapter-path none ~/x", "merge --out=~/x",
        "fetch smollm2 --source=~/x", "teach grade ~/x", "teach solutions ~/x",
        "learn list --exercises=~/x", "learn init ~/x", "learn train ~/x",
    ):  # fmt: skip
        top = course() if words.startswith(("learn", "teach")) else parser()
        found = str(vars(top.parse_args(words.split())))
        assert found.count(f"'{tmp_path}/x'") == words.count("~"), words
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
    every = [*parsers(parser()), *parsers(course())]
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
    'config = "other.toml"': "config is not",
    "lora-r = 3\nlora_r = 4": "a setting twice, with - and with _",
    "iters = 3\nepochs = 1": "--iters and --epochs both set",
    'target_modules = ["q_proj", "--quiet"]': "begins with a hyphen",
    "data = [1, 2]": "unrecognized arguments: 2",
}


@pytest.mark.parametrize("text", BAD_TOML, ids=range(len(BAD_TOML)))
def test_a_bad_settings_file_is_one_line(text, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with refused(f"{path}.*{BAD_TOML[text]}"):
        toml_settings(path)


def test_a_list_in_a_file_may_be_empty_and_a_text_may_begin_with_a_hyphen(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('exclude_modules = []\nadapter_path = "-x"')
    args = parsed("train -c", path)
    assert args.exclude_modules == [] and args.adapter_path.endswith("-x")


def test_a_run_is_not_both_resumed_and_replaced_if_the_file_says_one(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("overwrite = true")
    with refused("--resume continues a run and --overwrite replaces"):
        parsed("train --resume -c", path)


def test_built_in_names_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for setting, name in (("model", "tiny"), ("data", "questions"), ("method", "lora")):
        assert absolute(setting, name) == name
    for setting in ("data", "init_adapter"):
        assert absolute(setting, "tiny") == str(tmp_path / "tiny")
