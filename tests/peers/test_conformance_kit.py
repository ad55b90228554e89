"""The conformance kit, computed by transformers, PEFT and bitsandbytes."""

import numpy as np
from four_bits import their_values, theirs
from peft_models import ALL, gradients_of, llama_of, peft, random_peft, their_logits, torch
from test_conformance import INPUTS, KIT, failed

from lessons.conformance import make
from minilora import nf4


def last_logits(model, name):
    return their_logits(model, INPUTS[name][None].astype(np.int64))[0, -1]


def test_bitsandbytes_passes_part_1():
    results = {}
    for name in ("normal", "ties", "special", "many"):
        w = INPUTS[f"nf4/{name}"]
        packed, state = theirs(w, 64, True, "nf4")
        results |= {
            f"nf4/{name}/codes": nf4.unpack_4bit(packed),
            f"nf4/{name}/absmax_codes": state.absmax.numpy(),
            f"nf4/{name}/nested_absmax": state.state2.absmax.numpy(),
            f"nf4/{name}/offset": state.offset.numpy()[None],
            f"nf4/{name}/dequantized": their_values(packed, state, w.size),
        }
    assert failed(results) == {}


def test_transformers_and_peft_pass_parts_2_and_3():
    llama = llama_of(KIT)
    results = {f"base/logits{i}": last_logits(llama, f"base/prompt{i}") for i in range(3)}
    for name in make.ADAPTERS | make.LATER:
        model = peft.PeftModel.from_pretrained(llama_of(KIT), KIT / "adapters" / name).eval()
        results[f"lora/{name}"] = last_logits(model, "base/prompt1")
    assert failed(results) == {}


def test_what_peft_refuses():
    """PEFT 0.21 refuses shapes that do not fit, and loads the other three (the page says so)."""
    refused = set()
    for name in make.REFUSED:
        try:
            peft.PeftModel.from_pretrained(llama_of(KIT), KIT / "adapters" / name)
        except (RuntimeError, TypeError, ValueError):
            refused.add(name)
    assert refused == {"other_base"}


def test_adamw_of_torch_passes():
    x = torch.tensor(INPUTS["training/adamw/start"])
    optimizer = torch.optim.AdamW([x], make.ADAMW_RATE, weight_decay=0.0)
    for g in INPUTS["training/adamw/gradients"]:
        x.grad = torch.tensor(g)
        optimizer.step()
    assert failed({"training/adamw": x}) == {}


def test_the_loss_and_the_gradients_of_peft_pass():
    """Of the factors over the dequantized weights. test_peft_training.py has steps of training."""
    llama = llama_of(KIT)
    for name, module in llama.named_modules():
        if name.endswith("_proj"):
            w = module.weight.data
            packed, state = theirs(w.numpy(), 64, True, "nf4")
            module.weight.data = torch.from_numpy(their_values(packed, state, w.numel())).view_as(w)
    model = random_peft(llama, r=8, lora_alpha=16, target_modules=ALL)
    factors = {name: w for name, w in INPUTS.items() if ".lora_" in name}
    for name, w in factors.items():
        model.get_parameter(f"base_model.model.{name}.default.weight").data = torch.tensor(w)
    rows = torch.tensor(np.stack([INPUTS[f"training/row{i}"] for i in range(2)])).long()
    labels = rows.clone()
    labels[:, : int(INPUTS["training/start"][0])] = -100
    loss = model(rows, labels=labels).loss
    gradients = gradients_of(loss, model)
    assert gradients.keys() == factors.keys()
    results = {f"training/grad/{path}": g for path, g in gradients.items()}
    assert failed(results | {"training/loss": loss.detach()[None]}) == {}
