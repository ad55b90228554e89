"""Which matrices: one budget spent in ten ways, and the climb from q and v to all seven.

About six minutes of one core. A run is 200 steps of 8 rows of the questions on `micro`, at a
scaling of 2 throughout.
"""

from itertools import product

import numpy as np

from minilora import LoraConfig
from minilora.config import ALL_LINEAR
from minilora.lessons.helpers.common import finetune
from minilora.tree import num_parameters

# micro has 3 layers, d = 48, f = 128: rank 1 costs 288 parameters on an attention matrix of every
# layer (3 · (48 + 48)), 528 on one of the MLP. The budget is all seven at r = 4, or 38 · 288.
BUDGET = 10_944
SPENT = {
    "q": {"q_proj": 38},
    "k": {"k_proj": 38},
    "v": {"v_proj": 38},
    "o": {"o_proj": 38},
    "q k": {"q_proj": 19, "k_proj": 19},
    "q v": {"q_proj": 19, "v_proj": 19},
    "q k v o": {"q_proj": 10, "k_proj": 9, "v_proj": 10, "o_proj": 9},
    "down": {"down_proj": 21},
    "MLP": {"gate_proj": 7, "up_proj": 7, "down_proj": 7},
    "all": dict.fromkeys(ALL_LINEAR, 4),
}
QVO, MLP = ("q_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CLIMB = {
    "q v": QVO[:2],
    "q v o": QVO,
    **{f"q v o, MLP of layer {i}": (*QVO, *(f"{i}.mlp.{w}" for w in MLP)) for i in range(3)},
    "q v o, every MLP": (*QVO, *MLP),
    "all seven": ("all-linear",),
}
RATES = (4e-3, 1e-2, 2.5e-2)
BEST = {name: 2.5e-2 if name in ("o", "MLP") else 1e-2 for name in SPENT}  # of seed 0
SEEDS = (0, 1, 2, 3, 4)
JOBS = [
    *(("budget", name, rate, 0) for name, rate in product(SPENT, RATES)),
    *(("budget", name, BEST[name], seed) for seed, name in product(SEEDS[1:], SPENT)),
    *(("climb", name, 1e-2, seed) for seed, name in product(SEEDS, CLIMB)),
]


def config(part, name):
    """Return the LoraConfig of a row: the budget's ranks, or r = 8 on the climb's names."""
    if part == "climb":
        return LoraConfig(r=8, lora_alpha=16, target_modules=CLIMB[name])
    ranks = SPENT[name]
    alphas = {module: 2 * r for module, r in ranks.items()}
    return LoraConfig(target_modules=tuple(ranks), rank_pattern=ranks, alpha_pattern=alphas)


def run(job):
    """Return the row of a job (part, name, rate, seed)."""
    part, name, rate, seed = job
    done = finetune(config(part, name), seed=seed, learning_rate=rate, batch_size=8)
    return {
        "part": part, "name": name, "rate": rate, "seed": seed,
        "trained": num_parameters(done.adapters),
        "train_loss": float(np.mean([step["loss"] for step in done.history[-20:]])),
        "loss": done.scores["loss"], "exact_match": done.scores["exact_match"],
    }  # fmt: skip
