"""Training against PyTorch + PEFT: learning rates, and the losses of twenty steps."""

import math
from copy import deepcopy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from comparisons import in_float64
from peft_models import (
    ALL,
    in_four_bits,
    llama_of,
    peft,
    peft_folder,
    torch,
    transformers,
    transformers_loss,
)

from minilora import train
from minilora.batching import Example, batch_at, collate
from minilora.config import TrainConfig
from minilora.data.encoding import encode_rows
from minilora.formats.checkpoint import load_adapter
from minilora.formats.pretrained import load
from minilora.lessons.helpers import toolcalls
from minilora.optim import get_lr
from minilora.quant.schemes import quantize
from minilora.tree import arrays, flatten, get

PEFT, FOUR_BITS = "PyTorch + PEFT", "PyTorch + PEFT + bitsandbytes"


@pytest.mark.parametrize("schedule, iters, warmup_ratio, rate", product(
    ["cosine", "linear", "constant"], [1, 2, 7, 20, 333], [0.0, 0.06, 0.5], [2e-4, 3e-3, 1.7e-5],
))  # fmt: skip
def test_learning_rates_are_transformers_own(equal, schedule, iters, warmup_ratio, rate):
    """Equal, not close: the same operations in the same order."""
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    warmup = math.ceil(warmup_ratio * iters)
    scheduler = transformers.get_scheduler(name, optimizer, warmup, iters)
    config = TrainConfig(iters, lr_schedule=schedule, warmup_ratio=warmup_ratio, learning_rate=rate)
    theirs = []
    for _ in range(iters):
        theirs += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    ours = [get_lr(step, config) for step in range(iters)]
    equal("learning rates of a run", "transformers' schedulers", (ours, theirs))


def train_theirs(theirs, examples, config):
    """PEFT's side of `train`: AdamW, clipping, cosine with warm-up. A list of (loss, norm)."""
    params = [p for p in theirs.parameters() if p.requires_grad]
    betas = config.adam_beta1, config.adam_beta2
    optimizer = torch.optim.AdamW(
        params, config.learning_rate, betas, config.adam_eps, config.weight_decay
    )
    scheduler = transformers.get_cosine_schedule_with_warmup(
        optimizer, math.ceil(config.warmup_ratio * config.iters), config.iters
    )
    history = []
    for step in range(config.iters):
        batch = collate(batch_at([[e] for e in examples], step, config.batch_size, config.seed))
        optimizer.zero_grad()
        loss = transformers_loss(theirs, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        history.append((loss.item(), norm.item()))
    return history


@pytest.fixture
def same_losses(compared, tmp_path):
    """same_losses(what, against, theirs, model, examples, run, bound): of every step.

    From the start of `theirs`, on the same rows. Returns our trained adapters, the start, and the
    norms of their gradients.

    Adam divides by √v, so noise in a gradient comes back as large as the gradient is small: the two
    runs part slowly. The bounds are some ten times the noise of runs as long.
    """

    def same_losses(what, against, theirs, model, examples, run, bound):
        peft_folder(tmp_path, theirs)
        start, model, _ = load_adapter(tmp_path, model)
        losses, norms = np.transpose(train_theirs(theirs, examples, run))
        trained, history = train(start, model, examples, run)
        _, precise = train(in_float64(start), in_float64(model), examples, run)
        ours, our_norms = np.transpose([(row["loss"], row["grad_norm"]) for row in history])
        floor = np.abs(ours / [row["loss"] for row in precise] - 1)
        what = f"{what}: losses of {run.iters} steps"
        compared(what, against, np.abs(ours / losses - 1), bound, floor)
        np.testing.assert_allclose(our_norms, norms, rtol=1e-2)
        assert losses[-1] < losses[0] - 0.1, "something is learnt"
        return trained, start, norms

    return same_losses


RNG = np.random.default_rng(5)
EXAMPLES = [Example(RNG.integers(256, size=n).tolist(), [1] * n) for n in range(12, 36)]
RUN = TrainConfig(iters=20, batch_size=4, learning_rate=1e-2, warmup_ratio=0.1, max_grad_norm=0.1)


@pytest.mark.parametrize("fields", [{}, {"target_modules": ALL, "use_rslora": True}])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_twenty_steps_of_training_follow_peft(tiny_llama, same_losses, fields, decay):
    """A fresh start of PEFT's (B = 0), the same rows, AdamW, clipping that bites at every step."""
    torch.manual_seed(4)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **fields)
    theirs = peft.get_peft_model(llama_of(tiny_llama()), config)
    model, run = load(tiny_llama()).model, replace(RUN, weight_decay=decay)
    row = "random Llama", PEFT
    trained, start, norms = same_losses(*row, theirs, model, EXAMPLES, run, bound=2e-6)
    assert min(norms) > run.max_grad_norm, "clipping is at work"
    for path, w in flatten(arrays(trained)).items():
        w_theirs = theirs.get_parameter(f"base_model.model.{path}.default.weight").detach().numpy()
        moved = np.linalg.norm(w_theirs - get(start, path))
        assert np.linalg.norm(w - w_theirs) <= 0.02 * moved, path


@pytest.fixture(scope="session")
def tool_calls(smollm2):
    """The short ones among the rows of the study `a_real_model_calls_tools`."""
    settings = TrainConfig(mask_prompt=True, max_seq_length=256)
    examples, _ = encode_rows(toolcalls.rows("train", 200), smollm2[1], settings)
    return [example for example in examples if len(example.tokens) <= 60]


@pytest.mark.slow
@pytest.mark.parametrize("four_bits, iters", [(False, 20), (True, 6)])
def test_training_of_the_real_base_follows_peft(
    smollm2, their_smollm2, tool_calls, same_losses, four_bits, iters
):
    """What the README's run does: all seven projections, from a fresh start of PEFT's.

    The steps take a while, so each has one row, and there are six of them in four bits.
    """
    (model, _, _), theirs, row = smollm2, deepcopy(their_smollm2), ("SmolLM2", PEFT)
    if four_bits:
        theirs, row = in_four_bits(theirs), ("SmolLM2 in NF4", FOUR_BITS)
        model = quantize(model, "nf4-dq")
    torch.manual_seed(7)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=ALL, lora_alpha=16)
    theirs = peft.get_peft_model(theirs, config)
    theirs.train()  # as in_four_bits wants it; there is no dropout
    run = TrainConfig(iters=iters, batch_size=1, learning_rate=1e-3, warmup_ratio=0.1)
    *_, norms = same_losses(*row, theirs, model, tool_calls, run, bound=2e-4)
    assert max(norms) > run.max_grad_norm, "clipping is at work"
