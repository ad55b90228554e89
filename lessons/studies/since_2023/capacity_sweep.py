"""How many random letters an adapter of `micro` learns by heart.

Runs of the studies `equal_until_full` and `how_much_fits_into_an_adapter`. About a quarter of an
hour of one core. The learning rate of the cases in TUNED is chosen from four rates with the seeds
CHOOSING; the runs that are compared have the seeds FRESH.
"""

import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, nf4
from minilora.config import ALL_LINEAR, ATTENTION, MLP
from minilora.lessons.helpers.common import finetune, of, scores_of
from minilora.rounding import from_bfloat16, to_bfloat16
from minilora.tree import arrays, get, num_parameters, overlay, tree_map, unflatten

LETTERS = "abcdefghijklmnop"  # 16 of them: an unknown letter has 4 bits
ANSWER, KEY = 12, 3  # letters
ONE_MATRIX = "model.layers.1.mlp.down_proj.weight"
PLACES = {"all": ALL_LINEAR, "attention": ATTENTION, "MLP": MLP}
COLUMNS = ("size", "place", "layer", "facts", "steps", "rate", "seed")  # of a job


def facts(n, seed):
    """Return n rows: a key of 3 letters, and an answer of 12 random letters."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in rng.permutation(len(LETTERS) ** KEY)[:n]:
        key = "".join(LETTERS[number // 16**i % 16] for i in range(KEY))
        answer = "".join(rng.choice(list(LETTERS), ANSWER))
        rows.append({"prompt": f"{key}:", "completion": answer})
    return rows


def start(model, size, place, layer, seed):
    """Return adapters: LoRA in a layer or "every" one, one matrix, or every leaf."""
    if size == "full":
        return minilora.get_peft_model(model, MethodConfig("full")).adapters
    if size == "matrix":
        return unflatten({ONE_MATRIX: np.array(get(model.base, ONE_MATRIX))})
    layers = None if layer == "every" else (layer,)
    config = LoraConfig(
        r=size, lora_alpha=8, target_modules=PLACES[place], layers_to_transform=layers
    )
    return minilora.get_peft_model(model, config, seed).adapters


def bits_learned(adapters, model, rows):
    """Return Σ (4 bits − the cross-entropy in bits) over the letters of all answers.

    The end of the text is a target as well. It has no information, but its loss is subtracted.
    """
    score = scores_of(adapters, model, rows)
    return 4 * ANSWER * len(rows) - score["loss"] * score["tokens"] / np.log(2)


def int8(w):
    """Round to 255 values between −absmax and absmax of the matrix."""
    absmax = np.abs(w).max()
    return np.round(w / absmax * 127) / 127 * absmax


ROUNDED = {
    "bfloat16": lambda w: from_bfloat16(to_bfloat16(w)),
    "int8": int8,
    "nf4": lambda w: nf4.quantize(w, 64).dequantize(),
}


def run(job):
    """Train on n facts, all of them in every step; return the bits learned per parameter."""
    size, place, layer, n, steps, rate, seed = job
    model, rows = minilora.load("micro").model, facts(n, seed)
    adapters = finetune(
        start=(start(model, size, place, layer, seed), model), rows=rows, held_out=rows, seed=seed,
        iters=steps, batch_size=n, learning_rate=rate,
    ).adapters  # fmt: skip
    trained = num_parameters(adapters)
    bits = {"offered": 4 * ANSWER * n, "bits": bits_learned(adapters, model, rows)}
    for name, function in ROUNDED.items():
        rounded = tree_map(lambda w, f=function: f(w).astype("f4"), arrays(adapters))
        bits[f"bits_{name}"] = bits_learned(overlay(adapters, rounded), model, rows)
    per_parameter = {name: round(float(value / trained), 4) for name, value in bits.items()}
    return {**dict(zip(COLUMNS, job)), "trained": trained, **per_parameter}


MORE = (  # size, place, layer, facts, steps: cases with eight seeds
    (1, "all", 1, 10, 500), (1, "all", 1, 38, 500), (1, "all", 1, 76, 500), (1, "all", 1, 38, 1500),
)  # fmt: skip
TUNED = (  # cases with a learning rate of their own
    (1, "all", 1, 19, 500), (2, "all", 1, 38, 500), (3, "attention", 1, 48, 500),
    (2, "MLP", 1, 44, 500), (3, "all", 1, 114, 500), (1, "all", "every", 114, 500),
)  # fmt: skip
CASES = (  # with five seeds at RATE, or at 1e-3 for the whole model
    *MORE, *TUNED, (4, "all", 1, 38, 500), (1, "all", 0, 38, 500), (1, "all", 2, 38, 500),
    ("matrix", "all", 1, 76, 500), ("full", "all", 1, 76, 500),
)  # fmt: skip
RATE, TRIED = 1e-2, (5e-3, 1e-2, 2e-2, 4e-2)
CHOOSING, FRESH = (0, 1), range(2, 10)  # seeds that choose a rate, and seeds that are compared
JOBS = [
    *((*case, 1e-3 if case[0] == "full" else RATE, seed) for seed in range(5) for case in CASES),
    *((*case, RATE, seed) for seed in (5, 6, 7) for case in MORE),
    *((*case, rate, seed) for seed in CHOOSING for case in TUNED for rate in TRIED if rate != RATE),
]


def column(rows, name, case, seeds, rate=RATE):
    """Return a column of the runs of a case (a row of CASES) with these seeds."""
    where = dict(zip(COLUMNS, case))
    chosen = [row for row in rows if row["seed"] in seeds]
    return np.array(of(chosen, name, rate=rate, **where))


def best_rate(rows, case):
    """Return the rate at which the seeds CHOOSING learn most."""
    return max(TRIED, key=lambda rate: column(rows, "bits", case, CHOOSING, rate).mean())


def at_best(rows, case, name="bits"):
    """Return a column of the runs with the seeds FRESH at the best rate of a case of TUNED."""
    return column(rows, name, case, FRESH, best_rate(rows, case))


def more(rows):
    """Return the jobs of TUNED at the best rates, with other seeds."""
    best = [(*case, best_rate(rows, case)) for case in TUNED]
    jobs = [(*case, seed) for seed in FRESH for case in best]
    return [job for job in jobs if job not in JOBS]
