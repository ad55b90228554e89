"""debug-export: a merged model that answers differently.

A QLoRA adapter was trained, and `export` merges it, for a program that reads only dense weights.
The exported model must compute what the model computed in training. With the adapter separate, the
loss on held-out questions is 0.008. The exported model has 0.018, without an error. The learned
factors and the scaling are right. Find the fault and repair it, in one line.
"""

import numpy as np

from minilora import layers, nf4
from minilora.course.outcome import close
from minilora.layers import dense

CASES = {"rows": range(3, 6), "width": range(6, 9), "r": range(2, 4), "alpha": [3.0, 16.0]}
HIDDEN = {"rows": range(6, 9), "width": range(9, 13), "r": range(4, 6)}


def arguments(rng, rows, width, r, alpha):
    shapes = {"norm": (width,), "up_proj": (rows, width), "down_proj": (width, rows)}
    checkpoint = {path: rng.uniform(-1, 1, s).astype("f4") for path, s in shapes.items()}
    base = {path: nf4.quantize(w) if w.ndim == 2 else w for path, w in checkpoint.items()}
    adapters = {
        "up_proj.lora_A": rng.uniform(-1, 1, (r, width)).astype("f4"),
        "up_proj.lora_B": rng.uniform(-1, 1, (rows, r)).astype("f4"),
    }
    return checkpoint, base, adapters, alpha


def tolerance(*_):
    """|W| ≤ 1, and the update is at most 16: sums of some 20 terms, 2⁻²⁴ each."""
    return 20 * 2.0**-24 * (1 + 16)


def property_the_model_that_was_trained(function, checkpoint, base, adapters, alpha):
    """the exported weight computes what the quantized one computes with its adapter"""
    A, B = adapters["up_proj.lora_A"], adapters["up_proj.lora_B"]
    node = {"weight": base["up_proj"], "lora_A": A, "lora_B": B}
    node |= {"lora_scaling": alpha / len(A), "lora_dropout": 0.0}
    x = np.eye(A.shape[1], dtype=np.float32)
    exported = function(checkpoint, base, adapters, alpha)["up_proj"]
    close(x @ exported.T, layers.linear(x, node), tolerance())


def property_without_an_adapter(function, checkpoint, base, adapters, alpha):
    """a weight without an adapter is exported as training read it, dense"""
    exported = function(checkpoint, base, adapters, alpha)
    for path in ("norm", "down_proj"):
        close(exported[path], dense(base[path]))


def export(checkpoint, base, adapters, alpha):
    """Merge the adapters into the weights; return {path: dense array}.

    checkpoint: {path: array}, the files of the model. base: {path: array or quantized weight}, the
    model in training. adapters: {path.lora_A: (r, in), path.lora_B: (out, r)}. The result has the
    types of the checkpoint. `dense(w)` makes an array of a weight, quantized or not.
    """
    exported = {}
    for path, stored in checkpoint.items():
        weight = dense(base[path])
        if f"{path}.lora_A" in adapters:
            A, B = adapters[f"{path}.lora_A"], adapters[f"{path}.lora_B"]
            scaling = alpha / len(A)  # len(A) is r
            weight = weight + scaling * B @ A
        exported[path] = weight.astype(stored.dtype)
    return exported
