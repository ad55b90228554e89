"""Lesson 3: adapters stored in three types, at three learning rates."""

from minilora.lessons.helpers.common import finetune

RATES = (4e-3, 5e-4, 6e-5)
DTYPES = ("float32", "bfloat16", "float16")
JOBS = [(d, rate, seed) for seed in range(3) for rate in RATES for d in DTYPES]
# what the study `the_precision_of_adapters` compares, with more seeds
JOBS += [(d, rate, seed) for seed in range(3, 8) for rate in (4e-3, 6e-5) for d in DTYPES]


def run(job):
    """Return the scores of a job after 200 steps of micro in NF4 at a constant rate."""
    dtype, rate, seed = job
    settings = {"learning_rate": rate, "lr_schedule": "constant", "adapter_dtype": dtype}
    scores = finetune(scheme="nf4-dq", seed=seed, **settings).scores
    return {
        "adapter_dtype": dtype, "learning_rate": rate, "seed": seed,
        "loss": scores["loss"], "exact_match": scores["exact_match"],
    }  # fmt: skip
