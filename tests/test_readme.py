"""The README's Python, word for word, does what the README says."""

import re
from pathlib import Path

import numpy as np
import pytest

import minilora
from minilora import tree

README = Path(__file__).parent.parent / "README.md"


def test_the_dozen_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    block = re.search(r"## In a dozen lines\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    names: dict = {}
    exec(block, names)

    config, adapters, frozen, dense = (names[n] for n in ("config", "adapters", "frozen", "dense"))
    steps = [row["loss"] for row in names["history"] if "loss" in row]
    assert len(steps) == 200 and steps[-1] < 0.02 < 2 < steps[0]

    # merging is an equation between two calls; a logit is a sum through all layers, each of its
    # float32 roundings 2⁻²⁴ of a state of size ten: far below 1e-3, and a wrong delta far above
    tokens = np.array([names["tokenizer"].encode("Ada keeps a pink kite in the barn.")])
    ours = minilora.forward(adapters, frozen, tokens, config)
    merged = minilora.forward({}, dense, tokens, config)
    without = minilora.forward({}, frozen, tokens, config)
    np.testing.assert_allclose(ours, merged, rtol=0, atol=1e-3)
    assert np.abs(ours - without).max() > 1

    loaded, _, lora_config = minilora.load_adapter("adapters", frozen)
    assert (lora_config.r, lora_config.lora_alpha) == (8, 16)
    assert tree.flatten(loaded).keys() == tree.flatten(adapters).keys()
    for path, leaf in tree.named_leaves(loaded):
        np.testing.assert_array_equal(leaf, tree.get(adapters, path))


@pytest.mark.parametrize("path", ["README.md", "lessons/README.md", "lessons/exercises/README.md"])
def test_every_link_to_a_file_leads_to_one(path):
    page = README.parent / path
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target
