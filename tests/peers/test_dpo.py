"""DPO of `lessons/helpers/preference.py` against the paper's formula in PyTorch, and TRL."""

import datasets
import numpy as np
import pytest
import tokenizers
import transformers
import trl
from peft_models import (
    ALL,
    gradients_of,
    llama_of,
    move,
    peft_folder,
    quietly,
    random_peft,
    torch,
)

from minilora.formats.checkpoint import load_adapter
from minilora.formats.pretrained import load
from minilora.lessons.helpers import preference

BETA = 0.3
RNG = np.random.default_rng(0)
PAIRS = [
    tuple(RNG.integers(1, 255, size=n).tolist() for n in lengths)
    for lengths in [(4, 5, 9), (9, 7, 3), (6, 12, 12), (5, 1, 4)]
]


@pytest.fixture
def models(tiny_llama, tmp_path):
    """Return (model, adapters, PEFT's model): the same Llama and adapter on both sides."""
    model, _ = load(tiny_llama())
    theirs = random_peft(llama_of(tiny_llama()), size=0.02, target_modules=ALL, r=4, lora_alpha=8)
    adapters = load_adapter(peft_folder(tmp_path / "adapter", theirs), model).adapters
    return model, adapters, theirs


def torch_log_probs(model, batch):
    """log p of each row's answer."""
    log_p = model(torch.tensor(batch["tokens"])).logits.log_softmax(-1)
    found = log_p.gather(-1, torch.tensor(batch["targets"])[..., None])[..., 0]
    return (found * torch.tensor(batch["mask"])).sum(-1)


def paper_loss(model, batch):
    """−log σ(β·log(π(w)/π_ref(w)) − β·log(π(l)/π_ref(l))), the mean (Rafailov et al., Eq. 7).

    The reference π_ref is PEFT's model with its adapter switched off.
    """
    with torch.no_grad(), model.disable_adapter():
        ref_w, ref_l = torch_log_probs(model, batch).chunk(2)
    w, l = torch_log_probs(model, batch).chunk(2)  # noqa: E741  (the paper's names)
    return -torch.nn.functional.logsigmoid(BETA * (w - ref_w) - BETA * (l - ref_l)).mean()


def our_loss(adapters, model, reference_adapters):
    batch = preference.batch_of(PAIRS)
    reference = preference.answer_log_probs(reference_adapters, model, batch)
    return preference.dpo_loss(adapters, model, batch, reference, BETA)


@pytest.fixture
def compare(compared, near_gradients):
    """compare(name, expected, theirs, adapters, model, reference): with the loss of `theirs`."""

    def compare(name, expected, theirs, adapters, model, reference):
        row = "DPO of random models: gradient of each factor", name
        gradients = gradients_of(expected, theirs)
        loss, exact = near_gradients(*row, gradients, our_loss, adapters, model, reference)
        difference = abs(loss - expected.item())
        compared("DPO of random models: loss", name, difference, 1e-5, abs(loss - exact))

    return compare


def test_dpo_is_the_papers_loss(models, compare):
    model, adapters, theirs = models
    expected = paper_loss(theirs, preference.batch_of(PAIRS))
    compare("PyTorch + PEFT", expected, theirs, adapters, model, {})


def test_dpo_is_what_trl_computes(models, tmp_path, compare):
    """TRL's reference is a copy of the adapter that it is given, or the base for a new adapter."""
    model, before, theirs = models
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair)) for pair in PAIRS]
    with quietly():
        trainer = trl_trainer(theirs, tmp_path)
        move(theirs, 0.02)
        expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        theirs.save_pretrained(tmp_path / "after", selected_adapters=["default"])
    after = load_adapter(tmp_path / "after", model).adapters
    assert abs(expected.item() - np.log(2)) > 0.01, "the adapters must differ"
    compare("TRL", expected, theirs, after, model, before)


def trl_trainer(model, folder):
    """TRL's DPOTrainer of a PEFT model, with a stand-in for the tokenizer that it asks for."""
    words = {"[PAD]": 0, "a": 1, "b": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="b"
    )
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "b"}])
    settings = trl.DPOConfig(
        str(folder), beta=BETA, use_cpu=True, bf16=False, gradient_checkpointing=False
    )
    return trl.DPOTrainer(model=model, args=settings, train_dataset=rows, processing_class=fast)
