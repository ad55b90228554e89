"""The recipes of the built-in models."""

from minilora.formats.pretrained import load
from minilora.lessons.helpers.pretraining import RECIPES


def test_the_embedded_bases_have_the_settings_of_the_recipes():
    for name, recipe in RECIPES.items():
        assert load(name).model.config == recipe.config
