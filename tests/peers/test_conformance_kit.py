"""The conformance kit, computed by transformers, PEFT and bitsandbytes."""

import numpy as np
from four_bits import their_values, theirs
from peft_models import ALL, gradients_of, llama_of, peft, their_logits, torch
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


def test_peft_passes_part_4():
    """The gradients of the factors over the dequantized weights, and AdamW of torch."""
    llama = llama_of(KIT)
    for name, module in llama.named_modules():
        if name.endswith("_proj"):
            w = module.weight.data
            packed, state = theirs(w.numpy(), 64, True, "nf4")
            values = their_values(packed, state, w.numel())
            module.weight.data = torch.from_numpy(values).reshape(w.shape)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=ALL, task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama, config)
    factors = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            path = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            factors[path] = p
            p.data = torch.tensor(INPUTS[path])
    rows = [torch.tensor(INPUTS[f"training/row{i}"]).long() for i in range(3)]
    labels = [row.clone() for row in rows]
    for row, name in zip(labels, ("start", "start", "start2")):
        row[: int(INPUTS[f"training/{name}"][0])] = -100
    pad = torch.nn.utils.rnn.pad_sequence
    clip = torch.nn.utils.clip_grad_norm_
    loss = model(pad(rows[::2], True), labels=pad(labels[::2], True, -100)).loss
    loss.backward()
    results = {"training/uneven/loss": loss.detach()[None]}
    results["training/uneven/norm"] = clip(factors.values(), np.inf)[None]
    rows, labels = torch.stack(rows[:2]), torch.stack(labels[:2])
    optimizer = torch.optim.AdamW(factors.values(), weight_decay=0.0)
    for t, (rate, max_norm) in enumerate(zip(make.RATES, make.MAX_NORMS), start=1):
        optimizer.zero_grad()
        loss = model(rows, labels=labels).loss
        gradients = gradients_of(loss, model)
        norm = clip(factors.values(), max_norm)
        if t == 1:
            results |= {"training/loss": loss.detach()[None], "training/norm": norm[None]}
            results |= {f"training/grad/{path}": g for path, g in gradients.items()}
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for n in "AB":
            path = f"{make.PATH}.lora_{n}"
            results[f"training/step{t}/{n}"] = factors[path].detach().numpy() - INPUTS[path]
    assert failed(results) == {}
