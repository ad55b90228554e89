"""Compare the time and memory of minilora with PyTorch, PEFT, transformers and bitsandbytes.

    python tests/bench [--rounds 3] [--only step generate …]

Each measurement is a process of its own. The two sides of a row take turns, and a ratio is the
median over the rounds of minilora's time divided by the time of the other side. Needs the groups
`test` and `peers`, `minilora fetch smollm2`, and a machine that does nothing else. Prints the day,
the processor, the versions and a Markdown table.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

# (group, what, case of ours, and the case of theirs if it is another one)
ROWS = (
    ("step", "LoRA, q and v", "lora_step q_proj,v_proj"),
    ("step", "LoRA, all seven projections", "lora_step all-linear"),
    ("step", "QLoRA (NF4, double quantization), q and v", "lora_step q_proj,v_proj nf4-dq"),
    ("step", "the same with checkpointing; theirs without",
     "lora_step q_proj,v_proj nf4-dq checkpointed", "lora_step q_proj,v_proj nf4-dq"),
    ("step", "LoRA, q and v; theirs with bfloat16 autocast", "lora_step q_proj,v_proj",
     "lora_step q_proj,v_proj none autocast"),
    ("step", "LoRA, q and v; theirs with bfloat16 weights", "lora_step q_proj,v_proj",
     "lora_step q_proj,v_proj none bfloat16"),
    ("step", "LoRA, q and v, both with bfloat16 products and dense weights",
     "lora_step q_proj,v_proj none bfloat16"),
    ("step", "QLoRA (NF4, double quantization), q and v, both with bfloat16 products",
     "lora_step q_proj,v_proj nf4-dq bfloat16"),
    ("step", "LoRA on 0.75 million parameters, 16 × 64 tokens", "small_step"),
    ("memory", "LoRA, q and v, embedding in float32 on both sides",
     "lora_step q_proj,v_proj none embedding32", "lora_step q_proj,v_proj"),
    ("memory", "QLoRA, q and v, embedding in float32 on both sides",
     "lora_step q_proj,v_proj nf4-dq embedding32", "lora_step q_proj,v_proj nf4-dq"),
    ("memory", "LoRA, q and v, both with bfloat16 products, weights and embedding",
     "lora_step q_proj,v_proj none embedding16", "lora_step q_proj,v_proj none bfloat16"),
    ("kernels", "quantize 4096 × 4096 to NF4", "quantize 4096 4096"),
    ("kernels", "quantize 1536 × 576 to NF4", "quantize 1536 576"),
    ("kernels", "dequantize 4096 × 4096", "dequantize 4096 4096"),
    ("kernels", "dequantize 1536 × 576", "dequantize 1536 576"),
    ("kernels", "a vector times a 4-bit 4096 × 4096 weight", "matvec"),
    ("generate", "generate 48 tokens, dense", "generate none"),
    ("generate", "generate 48 tokens in NF4; theirs dense", "generate nf4-dq", "generate none"),
)  # fmt: skip
SAVE = """
import sys, minilora
model, tokenizer = minilora.load("smollm2")
minilora.save_pretrained(sys.argv[1], model, tokenizer)
"""
PACKAGES = ("numpy", "numba", "torch", "transformers", "peft", "bitsandbytes")


def main():
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # they can halve NumPy's speed
        os.environ.pop(name, None)
    groups = tuple(dict.fromkeys(row[0] for row in ROWS))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    args = parser.parse_args()
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES), end="\n\n")
    print("| what | ours | theirs | ratio | our peak | their peak |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        # transformers reads SmolLM2 in float32 from this folder. Another process writes it, because
        # a process begins with the peak of memory of the process that started it.
        subprocess.run([sys.executable, "-c", SAVE, folder], check=True)
        for group, what, ours, *theirs in ROWS:
            if group in args.only:
                print(compare(folder, what, args.rounds, ours, *theirs or [ours]), flush=True)


def processor():
    """Return the name of the processor, with its model, and AVX-512 BF16 if it has it."""
    text = Path("/proc/cpuinfo").read_text("utf-8")
    fields = dict(re.findall(r"^(.+?)\s*: (.*)$", text, re.MULTILINE))
    names = [f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    names += ["AVX-512 BF16"] * ("avx512_bf16" in fields.get("flags", ""))
    return ", ".join([fields.get("model name", platform.machine()), *names])


def compare(folder, what, rounds, our_case, their_case):
    """Measure both sides in turn; return a row of the table."""
    pairs = [
        (measure("ours", folder, our_case), measure("theirs", folder, their_case))
        for _ in range(rounds)
    ]
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
    seconds, peaks = (
        [median(run[name] for run in runs) for runs in zip(*pairs)]
        for name in ("seconds", "peak_mb")
    )
    cells = [what, *(f"{x:.3g} s" for x in seconds)]
    cells += [f"{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"]
    cells += [f"{x:,.0f} MB" for x in peaks]
    return f"| {' | '.join(cells)} |"


def measure(side, folder, case):
    """Run one case in a new process; return {"seconds", "peak_mb"}."""
    script = Path(__file__).with_name(f"{side}.py")
    command = [sys.executable, script, folder, *case.split()]
    out = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
    return json.loads(out.splitlines()[-1])


if __name__ == "__main__":
    main()
