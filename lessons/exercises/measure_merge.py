"""measure-merge: what does it cost to merge an adapter into four bits?

Train `micro` in NF4 with double quantization five times, with the seeds 100 to 104. Then merge each
adapter, and quantize the merged model to NF4 again. Hand in five quotients: the held-out loss after
this, divided by the one with the adapter separate. Do not round them. A run takes six to ten
seconds:

    import minilora
    from minilora import LoraConfig, TrainConfig, data

    def quotient(seed):
        model, tokenizer = minilora.load("micro", "nf4-dq")
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
        settings = TrainConfig(
            iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True, seed=seed
        )
        rows, held_out = (
            data.encode_rows(data.load_rows("questions", split), tokenizer, settings)[0]
            for split in ("train", "valid")
        )
        adapters, model = minilora.get_peft_model(model, lora, seed)
        adapters, _ = minilora.train(adapters, model, rows, settings, quiet=True)
        merged = minilora.quantize(minilora.merge(adapters, model), "nf4-dq")
        separate = minilora.evaluate(adapters, model, held_out, quiet=True)["loss"]
        in_4_bits = minilora.evaluate({}, merged, held_out, quiet=True)["loss"]
        return in_4_bits / separate

The function of the exercise only returns your numbers. The check compares them with the five seeds
of the sweep merging_sweep.csv at this learning rate: their mean must be where the mean of five
further seeds is, and their spread must be neither near zero nor several times larger.

Write into REASON the mean of your quotients and their range. Do your runs refute the claim "merging
into 4 bits costs nothing" for this model? And what would one run with a quotient of 1.1 show?
"""

import csv
import runpy
from pathlib import Path

SWEEP = Path(__file__).parents[1] / "studies" / "serving" / "merging_sweep.csv"
SEEDS = runpy.run_path(str(Path(__file__).with_name("measure_seeds.py")))


def observe(answer):
    """Return a word for this kind of answer."""
    with open(SWEEP, encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    pairs = [(row["dequantized_4bit"], row["apart"]) for row in rows if row["rate"] == "0.004"]
    stored = [float(after) / float(before) for after, before in pairs]
    return SEEDS["compare"](answer, stored, 4.6)  # 99 of 100, 4 degrees of freedom


def property_five_runs(function):
    """the five numbers are where those of five further seeds are"""
    found = observe(function())
    assert found == SEEDS["RIGHT"], found


def quotients():
    """Return the five measured quotients, a list."""
    return [1.71119, 2.10314, 2.93456, 1.99001, 2.81933]
