"""QLoRA in one file against transformers."""

import numpy as np
from comparisons import relative
from one_file import one_file
from peft_models import torch, transformers

from minilora.formats import pretrained
from minilora.tree import unflatten


def test_logits(tmp_path, compared):
    """The dense base, and the merged model, as a folder that transformers loads."""
    lesson = one_file()[0]
    model, tokenizer = pretrained.load("micro")
    tokens = np.array([list(prompt.encode()) for prompt, _ in lesson.held_out[:8]])
    for name, weights in {"base": lesson.dense_base, "merged": lesson.merged}.items():
        base = unflatten({f"{path}.weight": w for path, w in weights.items()})
        pretrained.save_pretrained(tmp_path / name, model._replace(base=base), tokenizer)
        llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            theirs = llama(torch.tensor(tokens)).logits.numpy()
        ours = lesson.forward({}, weights, tokens, lesson.config)
        # float32 in both, summed in another order; `relative` is to the largest logit
        what = "QLoRA in one file, base and merged: logits"
        compared(what, "transformers", relative(ours, theirs), 1e-5)
