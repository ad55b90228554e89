"""SmolLM2 itself against transformers and PEFT: every tensor, logits, gradients."""

from copy import deepcopy
from pathlib import Path

import pytest
from peft_models import four_bit_peft, prose_batch, small_random_peft, their_logits

from minilora import load
from minilora.evaluation.memory import nbytes
from minilora.quant.schemes import quantize
from minilora.tree import flatten

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


def test_the_bytes_of_the_base_in_four_bits(smollm2):
    small, large = (
        nbytes(load("smollm2", "nf4-dq", low_precision=kept).model.base) / 1e6
        for kept in (True, False)
    )
    page = (GUIDE / "data-and-models.md").read_text("utf-8").replace("\n", " ")
    assert f"takes {small:.0f} MB; with a float32 embedding it would take {large:.0f} MB" in page
