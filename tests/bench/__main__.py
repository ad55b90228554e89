"""minilora beside PyTorch, PEFT, transformers and bitsandbytes, on this machine.

    python tests/bench [--rounds 3] [--only step small …]

Every number is from a process of its own; the two sides of a row take turns, and the ratio is
the median over the rounds of the ratio of the two neighbours, so that a machine whose speed
wanders wanders for both. Needs the groups `test` and `peers`, and `minilora fetch smollm2`. Keep
the machine quiet: the threads of matrix products lose far more than their share to other work.
Prints a Markdown table, draws figures/bench.png, and keeps the rows in results.json beside this
file; with `--only`, the other rows are those of earlier runs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
FIGURE = HERE.parent.parent / "figures" / "bench.png"
RESULTS = HERE / "results.json"

# (group, what, case of ours, case of theirs, of which the ratio of time and of memory is to be …)
PAIRS = (
    ("step", "LoRA step, q and v", "lora_step q_proj,v_proj", "", 0.75, 0.5),
    ("step", "LoRA step, all seven", "lora_step all", "", 0.75, 0.5),
    ("step", "QLoRA step, q and v", "lora_step q_proj,v_proj nf4-dq", "", 0.85, 0.3),
    ("step", "the same, checkpointed", "lora_step q_proj,v_proj nf4-dq checkpointed",
     "lora_step q_proj,v_proj nf4-dq", None, None),
    ("memory", "LoRA step, q and v, both embeddings in float32",
     "lora_step q_proj,v_proj none embedding32", "lora_step q_proj,v_proj", None, None),
    ("memory", "QLoRA step, q and v, both embeddings in float32",
     "lora_step q_proj,v_proj nf4-dq embedding32", "lora_step q_proj,v_proj nf4-dq", None, None),
    ("peer", "LoRA step, q and v, theirs with bfloat16 weights", "lora_step q_proj,v_proj",
     "lora_step q_proj,v_proj none bfloat16", 1.1, None),
    ("peer", "LoRA step, q and v, theirs with autocast", "lora_step q_proj,v_proj",
     "lora_step q_proj,v_proj none autocast", None, None),
    ("floor", "LoRA step against its own products", "lora_step q_proj,v_proj",
     "ours floor q_proj,v_proj", 1.25, None),
    ("floor", "these products against PyTorch's", "floor q_proj,v_proj", "", None, None),
    ("floor", "these products against PyTorch's whole step", "floor q_proj,v_proj",
     "lora_step q_proj,v_proj", None, None),
    ("small", "LoRA step, 0.75 million parameters", "small_step", "", 0.6, None),
    ("kernels", "quantize 4096²", "quantize 4096 4096", "", 1 / 20, None),
    ("kernels", "quantize 1536×576", "quantize 1536 576", "", 1 / 20, None),
    ("kernels", "dequantize 4096²", "dequantize 4096 4096", "", 1, None),
    ("kernels", "dequantize 1536×576", "dequantize 1536 576", "", 1, None),
    ("kernels", "a vector times 4096² in NF4", "matvec nf4", "", 1 / 5, None),
    ("kernels", "the same against dense NumPy", "matvec nf4", "ours matvec dense", None, None),
    ("generate", "48 tokens, dense", "generate none", "", None, None),
    ("generate", "48 tokens, NF4 against their dense", "generate nf4-dq", "generate none", 1, None),
)  # fmt: skip


def main():
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # they can halve NumPy's speed
        os.environ.pop(name, None)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    groups = (*dict.fromkeys(pair[0] for pair in PAIRS), "start", "scaling", "profile")
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    args = parser.parse_args()
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        write_dense(folder)
        for pair in PAIRS:
            if pair[0] in args.only:
                saved[pair[1]] = compared(folder, pair, args.rounds)
        if "start" in args.only:
            saved["start"] = starting(folder)
        if "scaling" in args.only:
            saved["scaling"] = scaling(folder)
        if "profile" in args.only:
            saved["profile"] = profile(folder)
    saved["machine"] = machine()
    RESULTS.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n")
    rows = [{"what": pair[1], **saved[pair[1]]} for pair in PAIRS if pair[1] in saved]
    lines = [saved.get(name, "") for name in ("machine", "start", "scaling", "profile")]
    print(lines[0], table(rows), *lines[1:], sep="\n\n")
    itself = {pair[1] for pair in PAIRS if pair[3].startswith("ours ")}
    draw([row for row in rows if row["what"] not in itself])


def machine():
    """The processor, the kernels that NumPy's BLAS chose for it, the threads, the versions."""
    import numpy  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    from minilora.kernels.threads import THREADS

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = dict(line.split("\t: ", 1) for line in cpuinfo.splitlines() if "\t: " in line)
    named = {key.strip(): value for key, value in named.items()}
    cpu = " ".join(named.get(k, "") for k in ("model name", "cpu family", "model"))
    blas = {i.get("architecture") for i in threadpool_info() if i["user_api"] == "blas"}

    cores = f"{len(os.sched_getaffinity(0))} cores, {THREADS} and {torch.get_num_threads()} threads"
    packages = ("numpy", "numba", "torch", "transformers", "peft", "bitsandbytes")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    kernels = ", ".join(sorted(map(str, blas)))
    cpu = f"{cpu or platform.machine()}, BLAS kernels {kernels}"
    return f"{cpu}, {cores}, Python {platform.python_version()}, {versions}"


def write_dense(folder):
    """SmolLM2 in float32 for transformers, once."""
    code = "import sys, minilora; c, b, t = minilora.load('smollm2'); "
    code += "minilora.save_pretrained(sys.argv[1], c, b, t)"
    subprocess.run([sys.executable, "-c", code, folder], check=True)


def run(side, folder, case):
    """{"seconds", "peak_mb", "wall"} of one case in a new process."""
    name, *arguments = case.split()
    began = time.perf_counter()
    out = subprocess.run(
        [sys.executable, str(HERE / f"{side}.py"), name, folder, *arguments],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    result = json.loads(out.stdout.splitlines()[-1])
    return {**result, "wall": time.perf_counter() - began}


def compared(folder, pair, rounds):
    """A row of the table: both sides, turn by turn."""
    _, what, case, other, goal, memory_goal = pair
    side, _, case_of_theirs = ("theirs", "", other or case)
    if other.startswith("ours "):
        side, _, case_of_theirs = other.partition(" ")
    both = [(run("ours", folder, case), run(side, folder, case_of_theirs)) for _ in range(rounds)]
    ours, theirs = zip(*both)
    row = {"goal": goal, "memory_goal": memory_goal}
    for key in ("seconds", "peak_mb"):
        row[key] = [round(median(r[key] for r in side), 6) for side in (ours, theirs)]
        row[f"{key}_ratios"] = [round(a[key] / b[key], 4) for a, b in both]
    print(f"  {what}: {row['seconds_ratios']}", file=sys.stderr, flush=True)
    return row


def table(rows):
    """Median times and peaks, the median ratio with the span over the rounds, and the goals."""
    lines = [
        "| what | ours | theirs | ratio (rounds) | goal | our peak | theirs | ratio | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (a, b), (m, n) = row["seconds"], row["peak_mb"]
        r = row["seconds_ratios"]
        cells = [
            row["what"], span(a), span(b), f"{median(r):.3g} ({min(r):.3g} to {max(r):.3g})",
            goal(row["goal"]), f"{m:,.0f} MB", f"{n:,.0f} MB",
            f"{median(row['peak_mb_ratios']):.2f}", goal(row["memory_goal"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def goal(value):
    return "" if value is None else f"≤ {value:.3g}"


def starting(folder):
    """From the shell to the first loss, with kernels cached and without."""
    run("ours", folder, "first_loss")
    cached = median(run("ours", folder, "first_loss")["wall"] for _ in range(3))
    with tempfile.TemporaryDirectory() as empty:
        os.environ["NUMBA_CACHE_DIR"] = empty
        first = run("ours", folder, "first_loss")["wall"]
        del os.environ["NUMBA_CACHE_DIR"]
    return (
        f"from the shell to SmolLM2's first loss: {cached:.1f} s with kernels cached (goal ≤ 6), "
        f"{first - cached:.1f} s more when they are compiled first (goal ≤ 25)"
    )


def scaling(folder):
    """A QLoRA step against depth and against length; memory against depth, checkpointed."""
    lines = []
    for name, cases in (
        ("layers, at 128 tokens a row", [(n, 128) for n in (6, 12, 18, 24, 30)]),
        ("tokens a row, at 12 layers", [(12, n) for n in (64, 128, 256, 512)]),
    ):
        for how in ("", "yes"):
            results = [run("ours", folder, f"scaled_step {n} {t} {how}") for n, t in cases]
            at = [n if name.startswith("layers") else t for n, t in cases]
            said = ", ".join(
                f"{x}: {r['seconds'] * 1e3:.0f} ms {r['peak_mb']:.0f} MB"
                for x, r in zip(at, results)
            )
            lines.append(f"{name}{', checkpointed' if how else ''}: {said}")
    return "\n".join(lines)


def profile(folder):
    """Where a core spends a step: matrix products by what they are for, loops, and the rest."""
    lines = []
    for case in ("lora q_proj,v_proj", "lora all", "lora q_proj,v_proj nf4-dq", "small"):
        spent = run("ours", folder, f"profile {case}")
        whole, _ = spent.pop("seconds"), spent.pop("wall")
        parts = ", ".join(f"{name} {part / whole:.0%}" for name, part in spent.items())
        lines.append(f"of a core's {span(whole)}, {case}: {parts}")
    return "\n".join(lines)


def draw(rows):
    from minilora.evaluation.plot import GREY, LINES, figure

    rows = rows[::-1]
    title = "Beside PyTorch, PEFT and bitsandbytes: shorter is better"
    xlabel = "time, or peak memory, as a share of theirs (log scale)"
    with figure(FIGURE, xlabel, "", title, width=8.0, height=4.8) as axes:
        at = range(len(rows))
        times = [median(row["seconds_ratios"]) for row in rows]
        peaks = [median(row["peak_mb_ratios"]) for row in rows]
        axes.barh([y + 0.2 for y in at], times, 0.38, label="time", color=LINES[0]["color"])
        axes.barh([y - 0.2 for y in at], peaks, 0.38, label="peak memory", color=GREY, hatch="//")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks(list(at), [row["what"] for row in rows])
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.6, -0.15))


if __name__ == "__main__":
    main()
