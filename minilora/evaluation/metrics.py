"""Scores of a model: loss, perplexity, exact match, calibration.

One forward pass gives all of them. Greedy decoding reproduces a row exactly if each of its target
tokens is the most probable one, so exact match needs no generation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import model
from ..batching import Example, check_examples, collate
from ..config import ModelConfig
from ..kernels.chunking import LOGIT_FLOATS, chunks
from ..methods.operations import operations
from ..tree import Tree

TOKENS = 4096  # per batch
BINS = 15  # of the calibration error, as in Guo et al. 2017


def evaluate(
    adapters: Tree, base: Tree, examples: Sequence[Example], model_config: ModelConfig,
    ops: Any = None,
) -> Tree:  # fmt: skip
    """Return the scores of a model over the target tokens of `examples`, a non-empty list.

    Keys: `loss` (nats per token), `perplexity`, `tokens` (the number of target tokens),
    `exact_match` (share of examples), `ece` (calibration error) and `brier`. ops: as for `train`.
    """
    check_examples("examples", examples, model_config.vocab_size)
    ops = operations(adapters, base, ops)
    parts = [token_scores(adapters, base, batch, model_config, ops) for batch in batches(examples)]
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    loss = float(np.mean(scores["nll"], dtype=np.float64))
    return {
        "loss": loss, "perplexity": float(np.exp(loss)), "tokens": len(scores["nll"]),
        "exact_match": float(np.mean(scores["exact"])),
        "ece": calibration_error(scores["confidence"], scores["hit"]),
        "brier": float(np.mean(scores["brier"], dtype=np.float64)),
    }  # fmt: skip


def batches(examples):
    """Yield batches of at most TOKENS tokens, with examples of similar lengths."""
    batch: list = []
    for example in sorted(examples, key=lambda e: len(e.tokens)):
        if batch and (len(batch) + 1) * len(example.tokens) > TOKENS:
            yield collate(batch)
            batch = []
        batch.append([example])
    yield collate(batch)


def token_scores(adapters, base, batch, model_config, ops):
    """Return arrays: `nll`, `hit`, `confidence`, `brier` per target token, and `exact` per row."""
    tokens, starts = batch["tokens"], batch["segment_starts"]
    x = model.hidden_states(adapters, base, tokens, starts, model_config, ops)
    at = np.nonzero(batch["mask"])
    h, targets = x[at], batch["targets"][at]
    pieces = chunks(len(targets), model_config.vocab_size, LOGIT_FLOATS)
    parts = [_scores(model.logits(h[i], adapters, base, ops), targets[i]) for i in pieces]
    nll, hit, confidence, brier = (np.concatenate(part) for part in zip(*parts))
    exact = np.bincount(at[0], weights=~hit, minlength=len(x)) == 0
    return {"nll": nll, "hit": hit, "confidence": confidence, "brier": brier, "exact": exact}


def _scores(logits, targets):
    logits = logits - logits.max(axis=-1, keepdims=True)
    rows = np.arange(len(targets))
    of_target, best = logits[rows, targets], logits.argmax(axis=-1)
    p = np.exp(logits, out=logits)
    total = p.sum(axis=-1)
    p /= total[:, None]
    # Σ_k (p_k − y_k)²   (Brier 1950), with y one-hot
    brier = np.einsum("nv,nv->n", p, p) - 2 * p[rows, targets] + 1
    return np.log(total) - of_target, best == targets, p[rows, best], brier


def calibration_error(confidence, hit):
    """Compute the expected calibration error: the mean gap of confidence and accuracy over bins.

    confidence: (N,) in (0, 1], hit: (N,) booleans. Returns NaN if a confidence is not finite.
    """
    if not np.isfinite(confidence).all():
        return float("nan")
    # B_m has the confidences in ((m − 1)/M, m/M], for m = 1 … M = BINS   (Guo et al. 2017, Sec. 2)
    which = np.searchsorted(np.arange(1, BINS) / BINS, confidence)
    # ECE = Σ_m |B_m|/N · |accuracy(B_m) − confidence(B_m)|   (Guo et al. 2017, Eq. 3)
    gap = np.bincount(which, weights=hit.astype(float) - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(hit))
