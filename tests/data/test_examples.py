"""The rows of a command: which split, which columns, how long they may be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from models import TINY, random_model

from minilora.cli.arguments import parse
from minilora.cli.examples import load_examples
from minilora.cli.loading import LoadedModel
from minilora.data.rows import warn_once
from minilora.data.tokenizer import ByteTokenizer
from minilora.methods.method import MethodConfig


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """A folder with a file whose rows have 1, 2, …, 30 letters."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"text": "a" * n}) for n in range(1, 31)]
    Path("rows.jsonl").write_text("\n".join(rows))


def loaded_examples(words="--data rows.jsonl", limit=2048, adapter_config=None):
    model = random_model(replace(TINY, max_position_embeddings=limit))
    args = parse(["evaluate", *words.split()])
    loaded = LoadedModel(model, ByteTokenizer(), {}, adapter_config)
    data, described = load_examples(args, loaded, args.split)
    return [len(example.tokens) - 1 for example in data.examples], described


@pytest.mark.parametrize("words, described, lengths", [
    ("", "all rows", range(1, 31)),
    ("--split valid", "valid split", [10, 20, 30]),
    ("--split train", "train split", [n for n in range(1, 31) if n % 10]),
])  # fmt: skip
def test_a_file_is_scored_whole_or_by_its_split(words, described, lengths):
    """The rows of a file are those that `train` holds out, if --split is on the line."""
    found = loaded_examples(f"--data rows.jsonl {words}")
    assert found == (list(lengths), f"{described} of rows.jsonl")


def test_a_file_with_the_name_of_built_in_data_is_not_that_data(capsys):
    Path("questions").write_text('{"text": "a"}')
    warn_once.cache_clear()
    assert loaded_examples("--data questions")[1] == "test split of questions"
    what = "questions is the built-in data set: write ./questions for that of this folder"
    assert capsys.readouterr().err == f"warning: {what}\n"
    assert loaded_examples("--data ./questions") == ([1], "all rows of ./questions")


def test_rows_that_the_model_cannot_read_are_counted(capsys):
    assert loaded_examples(limit=30)[0][-1] == 30 and capsys.readouterr().err == ""
    assert loaded_examples(limit=28)[0][-1] == 30
    assert capsys.readouterr().err == (
        "warning: 2 of 30 rows are longer than the 28 tokens that the model can read "
        "(max_position_embeddings); the longest has 30: cut them with --max-seq-length 29\n"
    )
    loaded_examples("--data rows.jsonl --split valid", 28)
    assert "warning: 1 of 3 valid rows are longer than the 28" in capsys.readouterr().err
    prompt = MethodConfig("prompt", num_virtual_tokens=5)  # the model reads it, too
    loaded_examples(limit=32, adapter_config=prompt)
    assert "3 of 30 rows are longer than the 27 tokens that" in capsys.readouterr().err
    assert loaded_examples("--data rows.jsonl --max-seq-length 29", 28)[0][-1] == 28


def test_without_a_run_the_data_are_the_questions():
    assert loaded_examples("--split valid")[1] == "valid split of questions"
