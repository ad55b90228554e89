"""Scores of a model: loss, perplexity, exact match, calibration.

One forward pass gives all of them. Greedy decoding gives exactly the answer of a row if each token
of the answer is the most probable one, so exact match needs no generation. (`encode_rows` warns of
rows before whose answer generation would read other tokens.)
"""

import sys
from collections.abc import Sequence

import numpy as np

from ..batching import Example, collate, token_array
from ..config import InputError
from ..methods import several
from ..model import Model, hidden_states, logits, with_adapters
from ..tree import Tree

TOKENS = 2048  # per batch; on the base tiny, 4,096 take about as long per token
LOGIT_FLOATS = 2**22  # logits in memory at a time (16 MiB), for any vocabulary
BINS = 15  # of the calibration error, as in Guo et al. 2017


def evaluate(
    adapters: Tree, model: Model, examples: Sequence[Example], quiet: bool = False
) -> Tree:
    """Return the scores of a model over `examples`, a list of `Example`.

    Keys: `loss` (nats per target token), `perplexity`, `tokens` (the number of target tokens),
    `exact_match`, `ece` (calibration error) and `brier`. Exact match is the share of examples whose
    answer has only tokens that are the most probable ones; an example without a token of an answer
    is no match. All other scores are means over the target tokens. quiet: show no progress. Raises
    InputError if there are no targets.
    """
    check_examples("examples", examples, model.config.vocab_size)
    several.check_any_order(adapters)
    scored = [example for example in examples if any(example.mask[1:])]
    if not scored:
        raise InputError(
            "no token of the examples is a target: a mask needs a 1 after its first entry"
        )
    model = with_adapters(adapters, model)
    parts = []
    with progress_bar(len(scored), quiet, desc="evaluating", delay=1, leave=False) as progress:
        for batch in batches(scored):
            parts.append(token_scores(model, batch))
            progress.update(len(batch))
    scores = _joined(parts)
    loss = float(scores["nll"].mean(dtype=np.float64))
    return {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "tokens": len(scores["nll"]),
        "exact_match": float(scores["exact"].sum() / len(examples)),
        "ece": calibration_error(scores["confidence"], scores["hit"]),
        "brier": float(scores["brier"].mean(dtype=np.float64)),
    }


def batches(examples):
    """Yield lists of examples of at most TOKENS tokens, padding included, of similar lengths."""
    batch: list = []
    for example in sorted(examples, key=lambda e: len(e.tokens)):
        if batch and (len(batch) + 1) * len(example.tokens) > TOKENS:
            yield batch
            batch = []
        batch.append(example)
    yield batch


def token_scores(model, examples):
    """Return arrays: `nll`, `hit`, `confidence`, `brier` per target token, and `exact` per example.

    model: see `model.with_adapters`. The examples, a list of `Example`, are computed as one batch.
    """
    batch = collate([[example] for example in examples])
    x = hidden_states(model, batch["tokens"], batch["segment_starts"])
    at = np.nonzero(batch["mask"])
    h = x[at]
    targets = batch["targets"][at]
    size = 1 + LOGIT_FLOATS // model.config.vocab_size
    pieces = [slice(i, i + size) for i in range(0, len(targets), size)]
    scores = _joined([_scores(logits(h[i], model), targets[i]) for i in pieces])
    answers = [[e._replace(mask=e.mask if e.answer is None else e.answer)] for e in examples]
    compared = collate(answers)["mask"] * batch["mask"] > 0
    wrong = np.zeros_like(compared)
    wrong[at] = ~scores["hit"]
    return scores | {"exact": compared.any(axis=1) & ~(compared & wrong).any(axis=1)}


def _joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(z, targets):
    z = z - z.max(axis=-1, keepdims=True)
    rows = np.arange(len(targets))
    p = np.exp(z)
    total = p.sum(axis=-1)
    p /= total[:, None]
    return {
        "nll": np.log(total) - z[rows, targets],
        "hit": z.argmax(axis=-1) == targets,
        "confidence": p.max(axis=-1),
        # Σ_k (p_k − y_k)²   (Brier 1950), with y one-hot
        "brier": np.einsum("nv,nv->n", p, p) - 2 * p[rows, targets] + 1,
    }


def calibration_error(confidence, hit):
    """Compute the expected calibration error: the mean gap of confidence and accuracy over bins.

    confidence: (N,) in (0, 1], hit: (N,) booleans. Returns NaN if a confidence is NaN.
    """
    # B_m has the confidences in ((m − 1)/M, m/M], for m = 1 … M = BINS   (Guo et al. 2017, Sec. 2)
    which = np.searchsorted(np.arange(1, BINS) / BINS, confidence)
    # ECE = Σ_m |B_m|/N · |accuracy(B_m) − confidence(B_m)|   (Guo et al. 2017, Eq. 3)
    gap = np.bincount(which, weights=hit.astype(float) - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(hit))


def progress_bar(total, quiet, **options):
    """Return a bar of tqdm, which shows nothing with `quiet` and outside terminal and notebook."""
    from tqdm.auto import tqdm  # here, because it imports asyncio, which --help does not need

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(total=total, disable=quiet or not watched, **options)


def check_examples(name, examples, vocab_size) -> None:
    """Raise InputError unless it is a list of Examples that fit the vocabulary."""
    if not isinstance(examples, Sequence):
        raise InputError(f"`{name}` must be a list, not a {type(examples).__name__}")
    for i, example in enumerate(examples):
        if not isinstance(example, Example):
            raise InputError("rows are not examples: encode them first, with minilora.encode_rows")
        token_array(f"{name}[{i}]", example.tokens, vocab_size, 1)
        for part, marks in (("mask", example.mask), ("answer", example.answer)):
            if marks is not None and len(marks) != len(example.tokens):
                raise InputError(f"the {part} of {name}[{i}] has another length than its tokens")
        if not set(example.mask) <= {0, 1}:
            raise InputError(f"the mask of {name}[{i}] must have 1 for a target and 0 for the rest")
