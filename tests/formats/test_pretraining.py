"""The script that trains the built-in models: its recipes, and its errors before training."""

import numpy as np
import pytest

from lessons.helpers import pretraining
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


@pytest.mark.parametrize(
    ("model", "name"), [("micro", "there"), ("micro", "a" * 300), ("huge", "b")]
)
def test_what_cannot_be_written_is_refused_before_the_training(
    model, name, tmp_path, capsys, monkeypatch
):
    (tmp_path / "there").write_text("a user's file")
    monkeypatch.setattr(pretraining, "train", None)  # it would be called too early
    assert pretraining.main([model, "--out", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert (tmp_path / "there").read_text() == "a user's file"
