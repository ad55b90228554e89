"""MXFP4 and NVFP4, and adapters trained on such a base and merged into it.

Two minutes of one core. A run is 40 steps of 16 rows on `micro`, with LoRA of r = 8 on all
projections. The learning rate is the best of three on the float32 base with two further seeds, or
a quarter of it.
"""

from functools import partial

import numpy as np

import minilora
from minilora import data, nf4
from minilora.lessons.helpers.common import finetune, lora_adapters, of, scores_of
from minilora.lessons.studies.reward.rank_for_reward_sweep import in_five_digits
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten

# ------------------------------------------------------------------------- formats


def floor_log2(x):
    """Return ⌊log2 |x|⌋: frexp writes |x| = f · 2^k with ½ ≤ f < 1, so it is k − 1."""
    return np.frexp(x)[1] - 1


def round_float(x, mantissa_bits, smallest_exponent, largest):
    """Round x to the nearest small float, at a tie to the even one; clip to the largest."""
    step = np.exp2(np.maximum(floor_log2(x), smallest_exponent) - mantissa_bits)
    return np.clip(np.rint(x / step) * step, -largest, largest)


e2m1 = partial(round_float, mantissa_bits=1, smallest_exponent=0, largest=6)
e4m3 = partial(round_float, mantissa_bits=3, smallest_exponent=-6, largest=448)
NEAREST = {
    "NF4": lambda x: nf4.NF4[nf4.nearest(x.astype(np.float32), nf4.CODEBOOKS["nf4"])],
    "E2M1": e2m1,
}
VALUES = {
    "NF4": nf4.NF4.astype(np.float64),
    "E2M1": np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]),
}


def stochastic(x, values, rng):
    """Round x to one of its two neighbours: to the upper one with probability (x − lower)/gap."""
    lower = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 2)
    gap = values[lower + 1] - values[lower]
    return values[lower + (rng.random(x.shape) * gap < x - values[lower])]


def exact(absmax):
    """Keep the absmax as it is: float32."""
    return absmax


def e8m0(absmax, up=False):
    """Round to 6 · 2^k with k = ⌊log2 absmax⌋ − 2, or up, so that no element is clipped."""
    k = np.ceil(np.log2(absmax / 6)) if up else floor_log2(absmax) - 2
    return 6 * np.exp2(np.clip(k, -127, 127))


def two_scales(absmax):
    """Round to an E4M3 per block times a float32 for all, which brings them into E4M3's range."""
    per_tensor = absmax.max() / 448
    return e4m3(absmax / per_tensor) * per_tensor


FORMATS = {  # elements, block size, largest magnitude of a block
    "NF4": ("NF4", 64, exact),
    "MXFP4": ("E2M1", 32, e8m0),
    "NVFP4": ("E2M1", 16, two_scales),
}


def scales_of(w, element, size, scale):
    """Return the scale of each block of w (n,): the unit of its elements, (n/size, 1)."""
    absmax = np.abs(w).reshape(-1, size).max(axis=1, keepdims=True)
    return scale(absmax) / VALUES[element][-1]


def rounded(w, scales, element, rng=None):
    """Return w (n,) rounded with these scales: to nearest, or with `rng` stochastically."""
    x = w.reshape(len(scales), -1) / np.maximum(scales, 1e-38)
    codes = NEAREST[element](x) if rng is None else stochastic(x, VALUES[element], rng)
    return (codes * scales).ravel()


def quantized(w, element, size, scale):
    """Return w (n,) rounded to nearest, with its own scales."""
    return rounded(w, scales_of(w, element, size, scale), element)


def error(w, *how):
    """Return ‖ŵ − w‖/‖w‖ after rounding to nearest."""
    return np.linalg.norm(quantized(w, *how) - w) / np.linalg.norm(w)


def mean_step(w, element, size, scale):
    """Return the mean distance of the elements of w, after rounding, to their two neighbours."""
    values = VALUES[element]
    scales = scales_of(w, element, size, scale)
    around = np.pad(np.diff(values), 1, mode="edge")  # below each value, and above it
    x = NEAREST[element](w.reshape(-1, size) / scales)
    codes = np.searchsorted(values, x - 1e-6)
    return np.mean((around[1:] + around[:-1])[codes] / 2 * scales)


def predicted(sigma, w, element, size, scale):
    """Return Σ g·φ(m) of the study, the mean over the elements of w; the scales are kept."""
    values = VALUES[element]
    scales = scales_of(w, element, size, scale)
    x = NEAREST[element](w.reshape(-1, size) / scales)[..., None]
    middles, gaps = (values[1:] + values[:-1]) / 2, np.diff(values)
    u = sigma / scales[..., None]  # in units of the scales
    density = np.exp(-(((middles - x) / u) ** 2) / 2) / u / (2 * np.pi) ** 0.5
    return np.mean(np.sum(gaps * density, axis=-1))


def survival(sigma, w, how, rng, at_random=False):
    """Return (share kept, its standard error, error/‖ΔW‖) of a normal ΔW; the scales are kept."""
    before = quantized(w, *how)
    update = sigma * rng.standard_normal(w.size)
    after = rounded(before + update, scales_of(w, *how), how[0], rng if at_random else None)
    share = kept(before, update, after)
    chances = np.std((after - before - share * update) * update) / sigma**2 / w.size**0.5
    return share, chances, np.linalg.norm(after - before - update) / np.linalg.norm(update)


def kept(before, update, after):
    """Return the share of an update that is kept: the part of the change along it."""
    return np.vdot(after - before, update) / np.vdot(update, update)


# ------------------------------------------------------------------------- models


def projections(model):
    """Return {path: weight (out, in)} of the projections of a dense model."""
    return {path: w for path, w in flatten(model.base).items() if is_projection(path)}


def in_format(model, how, like=None, rng=None):
    """Return a model with its projections rounded; like: the model whose scales it keeps."""
    source, leaves = projections(like or model), flatten(model.base)
    for path, w in projections(model).items():
        scales = scales_of(source[path].ravel().astype(np.float64), *how)
        leaves[path] = rounded(w.ravel(), scales, how[0], rng).reshape(w.shape).astype(np.float32)
    return model._replace(base=unflatten(leaves))


def flat(model):
    """Return all weights of the projections as one vector."""
    return np.concatenate([w.ravel() for w in projections(model).values()]).astype(np.float64)


# ------------------------------------------------------------------------- runs

STEPS = (2, 6, 40)  # after which a run is scored
RATES = (8e-3, 1.6e-2, 3.2e-2)
SEEDS, TUNING_SEEDS = range(8), (8, 9)
HELD_OUT = data.load_rows("questions", "valid")[:64]
WAYS = ("nearest", "stochastic", "again")  # the last one: to nearest, with new scales
JOBS = [("float32", rate, "tune", seed) for rate in RATES for seed in TUNING_SEEDS]


def more(rows):
    """Return the jobs of the split "test", at the best rate on the float32 base and a quarter."""
    losses = [np.mean(of(rows, f"apart_{STEPS[-1]}", rate=rate)) for rate in RATES]
    best = RATES[np.argmin(losses)]
    return [
        (b, rate, "test", seed)
        for b in ("float32", *FORMATS)
        for rate in (best, best / 4)
        for seed in SEEDS
    ]


def run(job):
    """Return the row of a run: per number of steps the columns of `scores`."""
    base, rate, _, seed = job
    model, _ = minilora.load("micro")
    if base in FORMATS:
        model = in_format(model, FORMATS[base])
    row = dict(zip(("base", "rate", "split", "seed"), job))

    def score(state, _):
        if state.step in STEPS:
            found = scores(state.adapters, model, FORMATS.get(base), seed)
            row.update({f"{name}_{state.step}": x for name, x in found.items()})

    start = lora_adapters(model, seed=seed), model
    finetune(
        start=start, held_out=HELD_OUT, on_step=score, seed=seed, iters=STEPS[-1],
        learning_rate=rate,
    )  # fmt: skip
    return in_five_digits(row)


def scores(adapters, model, how, seed):
    """Return the size of an update, and the losses with the adapter apart and per way of merging.

    kept_WAY: the share of the update that is kept. For a base in float32, the ways are 0.
    """
    merged = minilora.merge(adapters, model)
    before = flat(model)
    update = flat(merged) - before
    found = {"size": np.linalg.norm(update) / np.linalg.norm(before)}
    found["apart"] = scores_of(adapters, model, HELD_OUT)["loss"]
    rng = np.random.default_rng(seed)
    for way, like, chance in zip(WAYS, (model, model, merged), (None, rng, None)):
        found |= {way: 0.0, f"kept_{way}": 0.0}
        if how:
            after = in_format(merged, how, like, chance)
            found[way] = scores_of({}, after, HELD_OUT)["loss"]
            found[f"kept_{way}"] = kept(before, update, flat(after))
    return found


def logs(rows, base, column, rate, steps):
    """Return the logarithms of a column after some steps, one number per seed."""
    return np.log(of(rows, f"{column}_{steps}", base=base, rate=rate))
