"""The conformance kit, computed by transformers, PEFT and bitsandbytes."""

import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import peft
import pytest
import torch
from transformers import LlamaForCausalLM

from lessons.conformance import check, make

KIT = Path(make.__file__).parent / "kit"
INPUTS = check.read_safetensors(KIT / "inputs.safetensors")


def verdicts(results):
    """Return {name: words} of the cases that fail; all that are given must be tried."""
    results = {name: np.float64(x) for name, x in results.items()}
    rows = [row for row in check.check(results, KIT) if row[1] != "not tried"]
    assert len(rows) == len(results)
    return {name: words for name, verdict, words in rows if verdict == "FAILED"}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function that gives a new model: the kit's folder, as transformers reads it."""
    folder = tmp_path_factory.mktemp("micro")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(KIT / name, folder)
    return lambda: LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model, name):
    with torch.no_grad():
        return model(torch.tensor(INPUTS[name][None]).long()).logits[0, -1].numpy()


def test_bitsandbytes_passes_part_1():
    results = {}
    for name in ("normal", "ties", "special", "many"):
        w = torch.tensor(INPUTS[f"nf4/{name}"])
        packed, state = bnb.quantize_4bit(
            w, blocksize=64, quant_type="nf4", compress_statistics=True
        )
        codes = packed.numpy().ravel()
        results |= {
            f"nf4/{name}/codes": np.stack([codes >> 4, codes & 15], axis=1),
            f"nf4/{name}/absmax_codes": state.absmax.numpy(),
            f"nf4/{name}/nested_absmax": state.state2.absmax.numpy(),
            f"nf4/{name}/offset": np.array([state.offset.item()]),
            f"nf4/{name}/dequantized": bnb.dequantize_4bit(packed, state).numpy(),
        }
    assert verdicts(results) == {}


def test_transformers_and_peft_pass_parts_2_and_3(load):
    results = {f"base/logits{i}": logits(load(), f"base/prompt{i}") for i in range(3)}
    for name in make.ADAPTERS:
        model = peft.PeftModel.from_pretrained(load(), KIT / "adapters" / name).eval()
        results[f"lora/{name}"] = logits(model, "base/prompt1")
    assert verdicts(results) == {}


def test_what_peft_refuses(load):
    """PEFT 0.21 refuses shapes that do not fit, and loads the other three (the page says so)."""
    refused = set()
    for name in make.REFUSED:
        try:
            peft.PeftModel.from_pretrained(load(), KIT / "adapters" / name)
        except (RuntimeError, TypeError, ValueError):
            refused.add(name)
    assert refused == {"other_base"}


def test_peft_passes_part_4(load):
    """The gradients of the factors over the dequantized weights, and AdamW of torch."""
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=r".*_proj", lora_dropout=0.0, task_type="CAUSAL_LM"
    )  # fmt: skip
    model = load()
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            w = module.weight.data
            blocks = w.reshape(-1, 64)  # a row that is no whole block is wrong on some CPUs
            packed, state = bnb.quantize_4bit(
                blocks, blocksize=64, quant_type="nf4", compress_statistics=True
            )
            module.weight.data = bnb.dequantize_4bit(packed, state).reshape(w.shape)
    model = peft.get_peft_model(model, config)
    factors = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            path = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            factors[path] = p
            p.data = torch.tensor(INPUTS[path])
    rows = torch.tensor(np.stack([INPUTS[f"training/row{i}"] for i in range(2)])).long()
    labels = rows.clone()
    labels[:, : int(INPUTS["training/start"][0])] = -100
    optimizer = torch.optim.AdamW(factors.values(), weight_decay=0.0)
    results = {}
    for t, (rate, max_norm) in enumerate(zip(make.RATES, make.MAX_NORMS), start=1):
        optimizer.zero_grad()
        loss = model(rows, labels=labels).loss
        loss.backward()
        if t == 1:
            results["training/loss"] = np.array([loss.item()])
            results |= {f"training/grad/{n}": p.grad.numpy().copy() for n, p in factors.items()}
        norm = torch.nn.utils.clip_grad_norm_(factors.values(), max_norm)
        if t == 1:
            results["training/norm"] = np.array([norm.item()])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for n in "AB":
            path = f"{make.PATH}.lora_{n}"
            results[f"training/step{t}/{n}"] = factors[path].detach().numpy() - INPUTS[path]
    assert verdicts(results) == {}
