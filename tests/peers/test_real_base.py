"""SmolLM2 itself against transformers and PEFT: every tensor, logits, gradients."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from comparisons import relative
from peft_models import four_bit_peft, prose_batch, small_random_peft, their_logits, torch

from minilora import load
from minilora.evaluation.memory import nbytes
from minilora.model import hidden_states, lm_head
from minilora.quant.schemes import quantize
from minilora.tree import flatten, num_parameters

GUIDE = Path(__file__).parents[2] / "lessons" / "guide"
# Through 30 layers float32 is off by 4e-6 to 6e-6 here, and by up to 1.3e-5 in PyTorch, whose sums
# have another order on each processor.
LOGITS = 3e-5
WEIGHTS = "SmolLM2: each tensor of its file", "transformers"


@pytest.mark.slow
def test_every_tensor(smollm2, their_smollm2, equal):
    """Transformers reads the same file, with its own decoding of Q4_1 and Q8_0."""
    model, _, _ = smollm2
    state = their_smollm2.state_dict()
    for name, x in flatten(model.base).items():
        equal(*WEIGHTS, (x, state[name]), case=name)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 7, 128, 1024])
def test_logits(smollm2, their_smollm2, prose, same_logits, length):
    model, _, _ = smollm2
    ids = prose[:, :length]
    theirs = their_logits(their_smollm2, ids)
    same_logits("SmolLM2", "transformers", theirs, {}, model, ids, bound=LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(7, 1024), (128, 1, 60)])
def test_logits_beside_padding(smollm2, their_smollm2, prose, compared, lengths):
    """Rows of different lengths in a batch, against transformers with its attention mask.

    The rows that are no padding: what is in the others, nobody reads.
    """
    model, _, _ = smollm2
    ids = np.full((len(lengths), max(lengths)), model.config.eos_token_id[0])
    kept = np.arange(max(lengths)) < np.array(lengths)[:, None]
    for row, n in enumerate(lengths):
        start = 50 * (len(lengths) - 1 - row)  # each row another text
        ids[row, :n] = prose[0, start : start + n]
    with torch.no_grad():
        mask = torch.tensor(kept.astype(np.int64))
        states = their_smollm2.model(torch.tensor(ids), attention_mask=mask).last_hidden_state
        theirs = their_smollm2.lm_head(states[torch.tensor(kept)]).numpy()
    states = hidden_states(model, ids, np.zeros_like(ids))
    ours = states[kept] @ lm_head(model.base).T
    row_of = np.nonzero(kept)[0]
    for row in range(len(lengths)):
        difference = relative(ours[row_of == row], theirs[row_of == row])
        compared("SmolLM2: logits", "transformers", difference, LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("four_bits", [False, True])
def test_gradients(smollm2, their_smollm2, prose, same_gradients, four_bits):
    """210 adapters, 420 factors."""
    model, _, _ = smollm2
    theirs, batch = deepcopy(their_smollm2), prose_batch(prose, (128, 100))
    what, against = "SmolLM2", "PyTorch + PEFT"
    if four_bits:
        model, theirs = quantize(model, "nf4-dq"), four_bit_peft(theirs)
        what, against = "SmolLM2 in NF4", "PyTorch + PEFT + bitsandbytes"
    else:
        theirs = small_random_peft(theirs)
    same_gradients(what, against, theirs, model, batch)


def test_the_numbers_of_the_base(smollm2):
    model, words, path = smollm2
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.eos_token_id) == (576, 30, (2,))
    assert num_parameters(model.base) == 134_515_008
    assert words.vocab_size == config.vocab_size == 49152
    chat = words.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert path.stat().st_size == 98_362_432


def test_the_bytes_of_the_base_in_four_bits(smollm2):
    small, large = (
        nbytes(load("smollm2", "nf4-dq", low_precision=kept).model.base) / 1e6
        for kept in (True, False)
    )
    page = (GUIDE / "data-and-models.md").read_text("utf-8").replace("\n", " ")
    assert f"takes {small:.0f} MB; with a float32 embedding it would take {large:.0f} MB" in page
