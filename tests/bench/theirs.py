"""What PyTorch, PEFT, transformers and bitsandbytes take for the same: see ours.py."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from cases import ADAM, BATCH, LENGTH, SMALL, SMALL_BATCH, prompt, report, seconds, tokens

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def step(llama, targets, rows=BATCH, length=LENGTH):
    """One whole training step: loss, gradient, clip, AdamW."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    llama = peft.get_peft_model(llama, config).train()
    trained = [p for p in llama.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=ADAM["learning_rate"], weight_decay=0.0)
    ids = torch.from_numpy(tokens(llama.config.vocab_size, rows, length + 1))
    # transformers shifts labels itself, so that it would see one target fewer: both get `length`
    inputs, targets = ids[:, :-1], ids[:, 1:]

    def run():
        optimizer.zero_grad()
        logits = llama(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, ADAM["max_grad_norm"])
        optimizer.step()
        return loss.item()

    return run


def load(folder, scheme="none", dtype=torch.float32):
    import transformers

    kwargs = {}
    if scheme != "none":
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs)


def lora_step(folder, targets="q_proj,v_proj", scheme="none", precision="float32"):
    """precision: float32, bfloat16 (the weights too), or autocast (only the arithmetic)."""
    targets = ALL if targets == "all" else targets.split(",")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    run = step(load(folder, scheme, dtype), targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        report(seconds(run))


def small_step(folder):
    import transformers

    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    report(seconds(step(llama, ["q_proj", "v_proj"], *SMALL_BATCH), repeat=50))


def floor(folder, targets="q_proj,v_proj"):
    """Nothing but the matrix products of a step, each of all rows at once; see ours.py."""
    llama = load(folder).eval()
    config, rows, targets = llama.config, BATCH * LENGTH, ALL if targets == "all" else targets
    K, hd = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    x = {n: torch.randn(rows, n) for n in (config.hidden_size, config.intermediate_size, K * hd, 8)}
    A, B = ({n: torch.randn(*at(n)) for n in x} for at in (lambda n: (8, n), lambda n: (n, 8)))
    q, k = (torch.randn(BATCH * config.num_attention_heads, LENGTH, hd) for _ in range(2))
    p, logits = torch.randn(len(q), LENGTH, LENGTH), torch.randn(rows, config.vocab_size)

    def run():
        for i, layer in enumerate(llama.model.layers):
            for name, module in layer.named_modules():
                name = name.rpartition(".")[2]
                if name not in ALL:
                    continue
                w = module.weight
                out, width = w.shape
                x[width] @ w.T
                enters = i == 0 and name in ("q_proj", "k_proj", "v_proj")
                if not enters:
                    x[out] @ w
                if name in targets:
                    x[width] @ A[width].T, x[8] @ B[out].T
                    x[out] @ B[out], x[out].T @ x[8], x[8].T @ x[width]
                    if not enters:
                        x[8] @ A[width]
            q @ k.mT, p @ k, q @ k.mT, p.mT @ q, p @ k, p.mT @ q
        head = llama.lm_head.weight
        x[config.hidden_size] @ head.T, logits @ head

    with torch.no_grad():
        report(seconds(run))


def quantize(folder, rows, columns):
    from bitsandbytes.functional import quantize_4bit

    w = torch.randn(int(rows), int(columns))
    report(seconds(lambda: quantize_4bit(w, blocksize=64, quant_type="nf4"), repeat=10))


def dequantize(folder, rows, columns):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    w = torch.randn(int(rows), int(columns))
    q, state = quantize_4bit(w, blocksize=64, quant_type="nf4")
    report(seconds(lambda: dequantize_4bit(q, state), repeat=100))


def matvec(folder, scheme="nf4"):
    from bitsandbytes.nn import Linear4bit

    linear = Linear4bit(4096, 4096, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    linear = linear.to("cpu").train()  # in evaluation mode it may compute in bfloat16
    x = torch.randn(1, 4096)
    with torch.no_grad():
        report(seconds(lambda: linear(x), repeat=20))


def generate(folder, scheme="none"):
    llama = load(folder, scheme).eval()
    ids = torch.tensor([prompt(folder)])
    kwargs = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        report(seconds(lambda: llama.generate(ids, **kwargs).shape[1] - ids.shape[1], repeat=3))


CASES = (lora_step, small_step, floor, quantize, dequantize, matvec, generate)
if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {case.__name__: case for case in CASES}[name](*arguments)
