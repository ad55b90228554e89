"""QLoRA in one file against transformers (logits) and, on the real base, the package (4 bits)."""

import numpy as np
import pytest
from comparisons import relative
from one_file import assert_equal_bits, one_file

from minilora import nf4
from minilora.formats import pretrained
from minilora.quant.schemes import is_projection
from minilora.tree import named_leaves, unflatten

torch = pytest.importorskip("torch", reason="the peers group is not installed")
transformers = pytest.importorskip("transformers", reason="the peers group is not installed")


def test_logits(tmp_path, compared):
    """The dense base, and the merged model, as a folder that transformers loads."""
    lesson = one_file()[0]
    config, _, tokenizer = pretrained.load("micro")
    tokens = np.array([list(prompt.encode()) for prompt, _ in lesson.held_out[:8]])
    for name, weights in {"base": lesson.dense_base, "merged": lesson.merged}.items():
        tree = unflatten({f"{path}.weight": w for path, w in weights.items()})
        pretrained.save_pretrained(tmp_path / name, config, tree, tokenizer)
        llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            theirs = llama(torch.tensor(tokens)).logits.numpy()
        ours = lesson.forward({}, weights, tokens, lesson.config)
        # float32 in both, summed in another order; `relative` is to the largest logit
        what = "QLoRA in one file, base and merged: logits"
        compared(what, "transformers", relative(ours, theirs), 1e-5)


@pytest.mark.slow
def test_the_4_bit_weights_of_the_real_base(smollm2):
    lesson, (_, base, _, _) = one_file()[0], smollm2
    for w in (w for path, w in named_leaves(base) if is_projection(path)):
        assert_equal_bits(lesson, nf4, w)
