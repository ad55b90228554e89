"""One run on a real model: full fine-tuning, LoRA and QLoRA of SmolLM2 on the same rows.

    python -m minilora.lessons.helpers.real_run            # all runs, one after the other: the CSV
    python -m minilora.lessons.helpers.real_run lora 1e-3 0    # one run: method, rate, seed

Each run is a process of its own, because its peak memory is measured: 50 steps of 4 rows of the
questions, and then the scores of 64 held-out rows. The rates are the best of RATES on seed 9.
All runs take half an hour on two cores. With LoRA and QLoRA, the embedding stays in the 8 bits of
the file.
"""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.memory import peak_rss_mb
from minilora.methods.method import MethodConfig

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
METHODS = {
    "full": (MethodConfig("full"), "none"),
    "lora": (LORA, "none"),
    "qlora": (LORA, "nf4-dq"),
}
RATES = {"full": (1e-4, 3e-4), "lora": (1e-3, 3e-3), "qlora": (1e-3, 3e-3)}
TABLE = Path(__file__).with_suffix(".csv")


def run(method, rate, seed):
    """Train SmolLM2; return a row of the table."""
    config, scheme = METHODS[method]
    model, tokenizer = minilora.load("smollm2", scheme, low_precision=method != "full")
    adapters, model = minilora.get_peft_model(model, config, seed)
    settings = TrainConfig(iters=50, batch_size=4, learning_rate=rate, mask_prompt=True, seed=seed)
    rows, held_out = data.load_rows("questions", "train"), data.load_rows("questions", "valid")[:64]
    examples, valid = (data.encode_rows(r, tokenizer, settings)[0] for r in (rows, held_out))
    adapters, history = minilora.train(adapters, model, examples, settings, quiet=True)
    peak = peak_rss_mb()
    scores = minilora.evaluate(adapters, model, valid, quiet=True)
    return {
        "method": method, "rate": rate, "seed": seed, "loss": scores["loss"],
        "exact_match": scores["exact_match"], "peak_mb": round(peak),
        "seconds_per_step": statistics.median(row["seconds"] for row in history),
    }  # fmt: skip


def in_a_process(*job):
    """Return the row of a run in a process of its own."""
    command = [sys.executable, "-m", "minilora.lessons.helpers.real_run", *map(str, job)]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(row, flush=True)
    return row


def main():
    """Choose the rates on seed 9, run three other seeds, write the table."""
    rows = [in_a_process(name, rate, 9) for name, rates in RATES.items() for rate in rates]
    for name in METHODS:
        best = min((row for row in rows if row["method"] == name), key=lambda row: row["loss"])
        rows += [in_a_process(name, best["rate"], seed) for seed in range(3)]
    with open(TABLE, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(run(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
