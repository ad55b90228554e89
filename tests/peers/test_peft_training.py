"""Training against PyTorch + PEFT: learning rates, and the losses of twenty steps."""

import math

import numpy as np
import pytest
from peft_models import ALL, llama_of, peft_folder, peft_loss

from minilora.checkpoint import load_adapter
from minilora.config import TrainConfig
from minilora.data import Example, batch_at, collate
from minilora.optim import learning_rate
from minilora.pretrained import load
from minilora.train import train
from minilora.tree import flatten, get

torch = pytest.importorskip("torch", reason="the peers group is not installed")
transformers = pytest.importorskip("transformers", reason="the peers group is not installed")
peft = pytest.importorskip("peft", reason="the peers group is not installed")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("iters", [1, 2, 7, 20, 333])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.06, 0.5])
@pytest.mark.parametrize("rate", [2e-4, 3e-3, 1.7e-5])
def test_learning_rates_are_transformers_own(schedule, iters, warmup_ratio, rate):
    """Equal, not close: the same operations in the same order."""
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=math.ceil(warmup_ratio * iters), num_training_steps=iters
    )
    config = TrainConfig(
        iters=iters, lr_schedule=schedule, warmup_ratio=warmup_ratio, learning_rate=rate
    )
    for step in range(iters):
        assert learning_rate(step, config) == scheduler.get_last_lr()[0], step
        optimizer.step()
        scheduler.step()


def train_theirs(theirs, examples, config):
    """PEFT's side of `train`: AdamW, clipping, cosine with warm-up. A list of (loss, norm)."""
    params = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        params, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps, weight_decay=config.weight_decay,
    )  # fmt: skip
    scheduler = transformers.get_cosine_schedule_with_warmup(
        optimizer, math.ceil(config.warmup_ratio * config.iters), config.iters
    )
    history = []
    for step in range(config.iters):
        batch = collate(batch_at([[e] for e in examples], step, config.batch_size, config.seed))
        optimizer.zero_grad()
        loss = peft_loss(theirs, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        history.append((loss.item(), norm.item()))
    return history


@pytest.mark.parametrize("fields", [{}, {"target_modules": ALL, "use_rslora": True}])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_twenty_steps_of_training_follow_peft(tiny_llama, tmp_path, fields, decay):
    """A fresh start of PEFT's (B = 0), the same rows, AdamW, clipping that bites at every step."""
    theirs = llama_of(tiny_llama())
    torch.manual_seed(4)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    peft_folder(tmp_path, theirs)
    config, base, _ = load(tiny_llama())
    adapters, frozen, _ = load_adapter(tmp_path, base)
    rng = np.random.default_rng(5)
    examples = [Example(rng.integers(256, size=n).tolist(), [1] * n) for n in range(12, 36)]
    run = TrainConfig(
        iters=20, batch_size=4, learning_rate=1e-2, warmup_ratio=0.1, weight_decay=decay,
        max_grad_norm=0.1,
    )  # fmt: skip
    expected = train_theirs(theirs, examples, run)
    trained, history = train(adapters, frozen, examples, config, run)
    losses, norms = zip(*expected)
    assert min(norms) > run.max_grad_norm, "clipping is at work"
    assert losses[-1] < losses[0] - 0.1, "something is learnt"
    # Adam divides by √v, so noise in a gradient comes back as large as the gradient is small: the
    # two runs part slowly, and the bound is a hundred times that of a single loss.
    np.testing.assert_allclose([row["loss"] for row in history], losses, rtol=2e-4)
    np.testing.assert_allclose([row["grad_norm"] for row in history], norms, rtol=1e-2)
    for path, w in flatten(trained).items():
        w_theirs = dict(theirs.named_parameters())[f"base_model.model.{path}.default.weight"]
        w_theirs = w_theirs.detach().numpy()
        start = get(adapters, path)
        assert np.linalg.norm(w - w_theirs) <= 0.02 * np.linalg.norm(w_theirs - start), path
