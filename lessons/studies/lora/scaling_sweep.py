"""Held-out loss over the learning rate at two ranks, under three rules for the factor before BA.

About seven minutes of one core. A run is 100 steps of `micro` on the questions with adapters on all
projections. The rules agree at r = 8, where the factor is 2.
"""

from itertools import product

from lessons.helpers.common import figure, finetune
from minilora import LoraConfig
from minilora.evaluation.plot import LINES

RANKS = (2, 32)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
RULES = {
    "constant": lambda r: {"lora_alpha": 2 * r},  # s = 2
    "alpha/r": lambda r: {"lora_alpha": 16},  # s = 16/r
    "alpha/sqrt(r)": lambda r: {"lora_alpha": 2 * 8**0.5, "use_rslora": True},  # s = 2·√(8/r)
}
SEEDS = (0, 1, 2, 3, 4)
JOBS = list(product(RULES, RANKS, RATES, SEEDS))


def config_of(rule, r):
    """The LoraConfig of a rank under a rule."""
    return LoraConfig(r=r, target_modules=("all-linear",), **RULES[rule](r))


def run(job):
    """The row of a run: (rule, r, rate, seed) and its loss on held-out questions."""
    rule, r, rate, seed = job
    done = finetune(config_of(rule, r), seed=seed, iters=100, learning_rate=rate)
    return {"rule": rule, "r": r, "rate": rate, "seed": seed, "loss": round(done.scores["loss"], 5)}


def draw(losses):
    """Draw the losses over the rates, one panel per rule; losses(rule, r) -> (rates, seeds)."""
    titles = ["s constant", "s = α/r", "s = α/√r"]
    xlabel, ylabels = "learning rate / 10⁻³", ["held-out loss (nats per token)", "", ""]
    with figure("scaling", xlabel, ylabels, titles, columns=3, width=9.6, height=3.4) as panels:
        for axes, rule in zip(panels, RULES):
            for r, style, marker in ((2, LINES[0], "o"), (32, LINES[1], "s")):
                of_r = losses(rule, r)
                axes.plot(RATES, of_r.mean(axis=1), marker=marker, label=f"r = {r}", **style)
                low, high, color = of_r.min(axis=1), of_r.max(axis=1), style["color"]
                axes.fill_between(RATES, low, high, color=color, alpha=0.15, linewidth=0)
            axes.set(xscale="log", yscale="log", ylim=(0.01, 30))
            axes.set_xticks(RATES, [f"{1000 * rate:g}" for rate in RATES])
            axes.minorticks_off()
            axes.legend(frameon=False, loc="upper left")
