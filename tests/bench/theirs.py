"""The same cases with PyTorch, PEFT, transformers and bitsandbytes; see __main__.py."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from cases import (
    BATCH,
    LENGTH,
    NEW_TOKENS,
    PROMPT,
    SMALL,
    SMALL_SHAPE,
    main,
    report,
    tokens,
    weight,
)


def load(folder, scheme="none", dtype=torch.float32):
    """Load SmolLM2 in a storage; dtype: of dense weights, activations and 4-bit products."""
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    options = {} if scheme == "none" else {"quantization_config": quantization}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def step(model, targets, rows=BATCH, length=LENGTH):
    """Return a training step without arguments: loss, gradient, clip and AdamW."""
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    ids = torch.from_numpy(tokens(model.config.vocab_size, rows, length + 1))
    # transformers would shift `labels` itself, and see one target fewer
    inputs, targets = ids[:, :-1], ids[:, 1:].contiguous()

    def run():
        optimizer.zero_grad()
        loss = model(inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return run


def lora_step(folder, targets, scheme="none", precision="float32"):
    """precision: float32, bfloat16 (also the weights), or autocast (only the arithmetic)."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    names = targets if targets == "all-linear" else targets.split(",")
    run = step(load(folder, scheme, dtype), names)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        report(run, repeat=5)


def small_step(folder):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    report(step(model, ["q_proj", "v_proj"], *SMALL_SHAPE), repeat=50)


def quantize(folder, rows, columns):
    w = torch.from_numpy(weight(rows, columns))
    report(lambda: quantize_4bit(w, blocksize=64, quant_type="nf4"), repeat=10)


def dequantize(folder, rows, columns):
    q, state = quantize_4bit(
        torch.from_numpy(weight(rows, columns)), blocksize=64, quant_type="nf4"
    )
    report(lambda: dequantize_4bit(q, state), repeat=100)


def matvec(folder):
    linear = Linear4bit(4096, 4096, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    linear = linear.to("cpu").train()  # in evaluation mode it may compute in bfloat16
    x = torch.from_numpy(weight(1, 4096))
    with torch.no_grad():
        report(lambda: linear(x), repeat=20)


def generate(folder, scheme):
    model = load(folder, scheme).eval()
    ids = torch.tensor([PROMPT])
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with torch.no_grad():
        report(lambda: model.generate(ids, **length, do_sample=False, pad_token_id=0), repeat=3)


if __name__ == "__main__":
    main(lora_step, small_step, quantize, dequantize, matvec, generate)
