"""The study `a_new_head_for_classes` against PEFT's `task_type="SEQ_CLS"`: logits, gradients."""

import numpy as np
from comparisons import in_float64, relative
from peft_models import (
    ALL,
    gradients_of,
    move,
    peft,
    quietly,
    torch,
    transformers,
)
from test_experts import adapter_of

from minilora.formats.pretrained import load
from minilora.lessons.helpers import class_head

CLASSES, PAD = 5, 0
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(1, 256, size=n).tolist() for n in (9, 21, 4, 13)]  # PAD is in none of them
LABELS = RNG.integers(CLASSES, size=len(TEXTS))


def sequence_classifier(folder):
    """PEFT's model with a head and an adapter, both random, on the Llama of this folder."""
    torch.manual_seed(1)
    with quietly():
        llama = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=CLASSES, pad_token_id=PAD, dtype=torch.float32
        )
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=ALL, r=4, lora_alpha=8)
        theirs = peft.get_peft_model(llama, config)
    move(theirs, 0.1)
    return theirs.eval()


def ours_of(theirs):
    """The trained tree: the adapter and the head, as the study has them."""
    head = theirs.get_submodule("base_model.model.score.modules_to_save.default").weight
    return {**adapter_of(theirs), "score": {"weight": head.detach().numpy()}}


def test_a_head_for_classes(tiny_llama, compared, near_gradients):
    model, _ = load(tiny_llama())
    theirs = sequence_classifier(tiny_llama())
    tokens = torch.tensor(class_head.pad(TEXTS)[0])
    found = theirs(tokens, attention_mask=(tokens != PAD).long()).logits
    trained = ours_of(theirs)
    ours = class_head.class_logits(trained, model, TEXTS)
    exact = class_head.class_logits(in_float64(trained), in_float64(model), TEXTS)
    what = "a head for classes and LoRA"
    difference = relative(ours, found.detach().numpy())
    compared(f"{what}: logits", "PEFT, SEQ_CLS", difference, 1e-5, relative(ours, exact))

    loss = torch.nn.functional.cross_entropy(found, torch.tensor(LABELS))
    gradients = gradients_of(loss, theirs)
    row = f"{what}: gradient of each leaf", "PyTorch + PEFT"
    near_gradients(*row, gradients, class_head.class_loss, trained, model, TEXTS, LABELS)
