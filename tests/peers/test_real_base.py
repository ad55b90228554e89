"""SmolLM2 itself against transformers: every tensor, and logits at four lengths."""

import numpy as np
import pytest
from peft_models import assert_logits, their_logits

from minilora import model

torch = pytest.importorskip("torch", reason="the peers group is not installed")


@pytest.mark.slow
def test_logits_of_the_real_base(smollm2, their_smollm2, prose):
    config, base, _, _ = smollm2
    for length in (1, 7, 128, 1024):
        ids = prose[:, :length]
        assert_logits(model.forward({}, base, ids, config), their_logits(their_smollm2, ids))


@pytest.mark.slow
def test_padding_changes_nothing(smollm2, their_smollm2, prose):
    """Three rows of different lengths in a batch, against transformers with its attention mask."""
    config, base, _, _ = smollm2
    lengths = (128, 7, 60)
    ids, kept = np.full((3, 128), 2), np.zeros((3, 128), np.int64)
    for row, n in enumerate(lengths):
        ids[row, :n], kept[row, :n] = prose[0, 50 * row : 50 * row + n], 1
    with torch.no_grad():
        theirs = their_smollm2(torch.tensor(ids), attention_mask=torch.tensor(kept)).logits.numpy()
    ours = model.forward({}, base, ids, config)
    assert_logits(ours[kept == 1], theirs[kept == 1])
