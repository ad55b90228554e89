"""Prompts and prefixes on micro: more steps, more tokens, another start, another task.

About four minutes of one core. The study `prompts_and_prefixes` reads the CSV.
"""

from typing import NamedTuple

import numpy as np

import minilora
from minilora import MethodConfig, data
from minilora.lessons.helpers.common import finetune

RATES = {"prompt": 1e-1, "prefix": 5e-1}


class Job(NamedTuple):
    """One run. start: `vocabulary` rows, or `normal` numbers."""

    method: str
    tokens: int
    iters: int = 200
    task: str = "questions"
    start: str = "vocabulary"
    seed: int = 0


def rows(task, split):
    """The questions, or `who`: the same sentences, to be followed by an echo of the base's own.

    In its own text, the base says "Who? {name}." after a third of all sentences, and ends there
    after a third of all notes.
    """
    questions = data.load_rows("questions", split)
    if task == "questions":
        return questions
    return [
        {
            "prompt": row["prompt"].partition(" Who,")[0],
            "completion": f" Who? {row['prompt'].split()[0]}.",
        }
        for row in questions
    ]


def trained(job):
    """Return the Run of a job."""
    model = minilora.load("micro").model
    method = MethodConfig(job.method, num_virtual_tokens=job.tokens)
    rng = np.random.default_rng(job.seed)
    adapters, _ = minilora.get_peft_model(model, method, rng)
    if job.start == "normal":
        shape = adapters["model"]["prompt_embeddings"].shape
        adapters["model"]["prompt_embeddings"] = rng.standard_normal(shape, "f4")
    return finetune(
        rows=rows(job.task, "train"), held_out=rows(job.task, "valid"), seed=job.seed,
        start=(adapters, model), iters=job.iters, learning_rate=RATES[job.method],
    )  # fmt: skip


def run(job):
    """Return the row of a job: what it was, and its scores on held-out rows."""
    scores = trained(job).scores
    return job._asdict() | {name: round(scores[name], 5) for name in ("loss", "exact_match")}


JOBS = [
    job._replace(seed=seed)
    for seed in range(2)
    for job in (
        Job("prompt", 16, task="who"), Job("prefix", 8, task="who"),
        Job("prompt", 16), Job("prompt", 16, 800), Job("prompt", 16, 800, start="normal"),
        Job("prompt", 64), Job("prompt", 64, 800), Job("prefix", 8), Job("prefix", 8, 400),
    )
]  # fmt: skip
