"""The recipes of the built-in models."""

import numpy as np

from minilora.formats.pretrained import load
from minilora.lessons.helpers import pretraining
from minilora.tree import flatten


def test_the_embedded_bases_are_of_the_recipes_shapes():
    for name, recipe in pretraining.RECIPES.items():
        model, _ = load(name)
        fresh = pretraining.random_params(recipe.config, np.random.default_rng(0))
        assert model.config == recipe.config
        assert {p: w.shape for p, w in flatten(model.base).items()} == {
            p: w.shape for p, w in flatten(fresh).items()
        }
