"""Llamas with PEFT's adapters on them, and what the tests against PEFT ask of them.

Both sides compute in float32, so no two numbers are equal to the last bit: a sum of n terms in
another order differs by about √n·6e-8 of its size, and a dozen such sums follow one another.
"""

import warnings
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import peft
import torch
import transformers
from comparisons import in_float64
from four_bits import linear4bit
from models import moved

import minilora
from minilora.batching import Example, collate
from minilora.config import ALL_LINEAR
from minilora.layers import value_and_grad
from minilora.methods.replaced import also_train
from minilora.tree import flatten

ALL = list(ALL_LINEAR)


@contextmanager
def quietly():
    """PEFT and transformers warn a lot about what is meant here (tied heads, biases)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama_of(folder):
    """transformers' model of a folder, in float32."""
    llama, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), "no tensor missing, unexpected or misshapen"
    return llama.eval()


def random_peft(llama, config=None, size=0.1, part="", seed=1, **fields):
    """A PEFT model on `llama` in which every trained number differs from where it started.

    config: a config of PEFT; None for a LoraConfig with these fields. part: see `move`.
    """
    torch.manual_seed(seed)
    with quietly():
        config = config or peft.LoraConfig(task_type="CAUSAL_LM", **fields)
        theirs = peft.get_peft_model(llama, deepcopy(config))  # PEFT writes the model's sizes to it
    move(theirs, size, part)
    return theirs.eval()


def move(theirs, size, part=""):
    """Add a random number of this size to each that is trained and has this part in its name."""
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.requires_grad and part in name:
                p += size * torch.randn_like(p)


def peft_folder(path, theirs, dtype=torch.float32):
    """Save what PEFT trains, held in `dtype`."""
    for p in theirs.parameters():
        if p.requires_grad:
            p.data = p.data.to(dtype)
    with quietly():
        theirs.save_pretrained(path)
    return path


def our_adapter(model, config, groups=()):
    """(adapters, model) of this config and of groups of `also_train`, moved from their start."""
    rng = np.random.default_rng(2)
    adapters, model = minilora.get_peft_model(model, config, rng)
    adapters = also_train(adapters, model.base, groups)
    return moved(adapters, lambda w: np.float32(w + 0.1 * rng.standard_normal(w.shape))), model


def in_peft(llama, folder):
    """PEFT's model of an adapter's folder, in which no tensor is missing or left over."""
    with quietly():
        theirs = peft.PeftModel.from_pretrained(llama, folder).eval()
        result = theirs.load_adapter(folder, "default")
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key] == []
    return theirs


def their_logits(theirs, tokens):
    """(B, T, V): without those of a trained prompt, which stand in front."""
    with torch.no_grad():
        return theirs(torch.tensor(tokens)).logits[:, -tokens.shape[1] :].numpy()


def transformers_loss(theirs, batch):
    """The loss that transformers computes from labels, in float32: what Trainer uses.

    transformers shifts the labels itself, so it gets one token more, whose logits it leaves out.
    """
    ids = np.concatenate([batch["tokens"][:, :1], batch["targets"]], axis=1)
    labels = np.where(np.pad(batch["mask"], ((0, 0), (1, 0))), ids, -100)
    return theirs(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss


def float64_loss(theirs, batch):
    """Mean cross-entropy over the kept targets, in float64 from torch's float32 logits on.

    Over a vocabulary of 49,152 torch's float32 cross-entropy is off by 3e-6 to 5e-6, and with it
    the worst gradient by 5e-4. (Ours is off by 1e-8 and 2e-5.)
    """
    logits = theirs(torch.tensor(batch["tokens"])).logits[:, -batch["tokens"].shape[1] :].double()
    targets, mask = torch.tensor(batch["targets"]), torch.tensor(batch["mask"])
    nll = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    return (nll * mask).sum() / mask.sum()


def gradients_of(loss, theirs):
    """{path: gradient of the loss} of all that PEFT trains, under our names."""
    loss.backward()
    found = {}
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            path = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
            found[path.removesuffix(".default.weight")] = p.grad.numpy().copy()
    return found


def gradient_errors(ours, theirs):
    """‖ours − theirs‖ / ‖theirs‖ of each path."""
    assert ours.keys() == theirs.keys()
    return [np.linalg.norm(ours[p] - g) / np.linalg.norm(g) for p, g in theirs.items()]


def gradients_and_floor(loss, *arguments, named=flatten):
    """The gradient of loss(adapters, model, …), the errors of its leaves, the loss, and in float64.

    The errors are those of float32 against float64. `named` gives {path: gradient}.
    """
    adapters, model, *rest = arguments
    value, grads = value_and_grad(loss)(*arguments)
    exact, precise = value_and_grad(loss)(in_float64(adapters), in_float64(model), *rest)
    grads = named(grads)
    return grads, gradient_errors(grads, named(precise)), value, exact


def batch_of(rows):
    """A batch of rows of token ids, the first four of each masked."""
    return collate([[Example(row, [0] * 4 + [1] * (len(row) - 4))] for row in rows])


def random_batch(vocabulary=256, B=3, T=24):
    """Rows of different lengths, as `train` makes them."""
    rng = np.random.default_rng(3)
    return batch_of([rng.integers(vocabulary, size=T - 5 * (i % 3)).tolist() for i in range(B)])


def prose_batch(prose, lengths):
    """Rows of English."""
    return batch_of([prose[0, 100 * i : 100 * i + n].tolist() for i, n in enumerate(lengths)])


def small_random_peft(llama):
    """All seven targets at r = 4, with B as small as after some training."""
    return random_peft(
        llama, size=0.01, part="lora_B", seed=6, target_modules=ALL, r=4, lora_alpha=8
    )


def in_four_bits(llama):
    """`llama` with bitsandbytes' Linear4bit for its projections: NF4, double quantization."""
    for path, dense in [*llama.model.layers.named_modules()]:
        if path.endswith("_proj"):
            four = linear4bit(dense.weight.detach().numpy(), torch.float32)
            four.bias = dense.bias
            llama.model.layers.set_submodule(path, four)
    llama.is_loaded_in_4bit = True  # what PEFT asks before it wraps a Linear4bit
    return llama


def four_bit_peft(llama):
    """A PEFT model as `small_random_peft`, on bitsandbytes' four bits."""
    theirs = small_random_peft(in_four_bits(llama))
    wrapped = theirs.base_model.model.model.layers[0].self_attn.q_proj
    assert type(wrapped) is peft.tuners.lora.bnb.Linear4bit
    # In evaluation bitsandbytes multiplies in bfloat16 on processors that can, and is off by 1e-2.
    theirs.train()
    return theirs
