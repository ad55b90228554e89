"""The table "PEFT to minilora" of the guide: its right column runs from top to bottom."""

import ast
import re
from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from minilora import LoraConfig, forward, get_peft_model, train

GUIDE = Path(__file__).parents[1] / "lessons" / "guide" / "peft.md"


def test_the_right_column_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text("utf-8").partition("## What differs")[0]
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert len(rows) == text.count("\n| `")  # every row has one code span per cell
    names = {}
    imports, loop = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)[:2]
    exec(imports, names)
    for peft, ours in rows:
        ast.parse(peft.replace(r"\|", "|"))  # it is valid Python for PEFT
        exec(ours.replace(r"\|", "|"), names)

    # the rows did what their left column says
    model, plain, tokens = (names[name] for name in ("model", "plain", "tokens"))
    logits = forward(names["adapters"], model, tokens)
    assert "trainable params" in capsys.readouterr().out
    assert [row["step"] for row in names["history"] if "loss" in row] == [1, 2]
    assert len(names["ids"]) <= 5
    # float32 rounds each of 21 projections; a lost or doubled adapter moves a logit by far more
    for pair in ({}, names["dense"]), *((names[name], plain) for name in ("a", "b", "ab")):
        assert_allclose(forward(*pair, tokens), logits, rtol=0, atol=1e-3)
    assert np.abs(forward({}, model, tokens) - logits).max() > 1e-2
    assert Path("merged", "config.json").exists()

    # the loop that the page shows next is that of `train`
    names["adapters"], names["model"] = get_peft_model(plain, LoraConfig(), rng=0)
    trained, history = train(
        *(names[name] for name in ("adapters", "model", "examples", "train_config", "valid"))
    )
    exec(loop, names)
    assert [row.get("loss") for row in names["history"]] == [row.get("loss") for row in history]
    assert_array_equal(forward(names["state"].kept, plain, tokens), forward(trained, plain, tokens))
