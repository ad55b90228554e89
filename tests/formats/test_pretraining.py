"""The script that trains the built-in models: its recipes, and its errors before training."""

import os

import numpy as np
import pytest
from sweeps import pretraining

from minilora.formats.pretrained import load
from minilora.tree import flatten


def test_the_embedded_bases_are_of_the_recipes_shapes():
    for name, recipe in pretraining.RECIPES.items():
        config, base, _ = load(name)
        fresh = pretraining.random_params(recipe.config, np.random.default_rng(0))
        assert config == recipe.config
        assert {p: w.shape for p, w in flatten(base).items()} == {
            p: w.shape for p, w in flatten(fresh).items()
        }


def test_a_base_is_trained_and_written(tmp_path, capsys, monkeypatch):
    config, _, _ = pretraining.RECIPES["micro"]
    settings = pretraining.schedule(2, 2, 4e-3)
    monkeypatch.setitem(
        pretraining.RECIPES, "micro", pretraining.Recipe(config, settings, notes=20)
    )
    assert pretraining.main(["micro", "--out", str(tmp_path / "base")]) == 0
    assert "micro: held-out loss" in capsys.readouterr().err
    assert load(tmp_path / "base")[0] == config


@pytest.mark.parametrize("what", ["there", "not allowed", "too long", "another base"])
def test_what_cannot_be_written_is_refused_before_the_training(what, tmp_path, capsys, monkeypatch):
    (tmp_path / "there").write_text("a user's file")
    monkeypatch.setattr(pretraining, "train", None)  # it would be called too early
    if what == "not allowed":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    out = str(tmp_path / ("a" * 300 if what == "too long" else what))
    model = "huge" if what == "another base" else "micro"
    assert pretraining.main([model, "--out", out]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert ("huge" if what == "another base" else out) in err
    assert (tmp_path / "there").read_text() == "a user's file"
