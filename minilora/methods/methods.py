"""The whole family: what each method trains beside or in place of the frozen weights.

A method is the names of its leaves, how they start, and the one line that reads them:

| method | leaves | read in |
|---|---|---|
| lora, dora | `lora_A`, `lora_B`, `lora_magnitude_vector` | `nn.linear` |
| ia3 | `ia3_l` | `nn.linear` |
| bitfit, norm, head, full | `bias`, `weight` in place of the base's | `tree.leaf` |
| bottleneck | `bottleneck_down`, `bottleneck_up` and their biases | `siblings.bottleneck` |
| prompt, p-tuning | `prompt_embeddings`, `prompt_encoder` | `siblings.prompt` |
| prefix | `prefix_k`, `prefix_v` | `nn.attention` |

Each start is start(base, config, rng) -> (adapters, frozen), as `lora.init`: `config` is a
LoraConfig for the first two, a MethodConfig for the others. The model computes what the base
computes at first, except with prompt, p-tuning and prefix: every token sees the virtual tokens.
"""

from dataclasses import replace

import numpy as np

from .. import lora
from ..config import ALL_LINEAR, LoraConfig, require
from ..tree import get, put, unflatten, walk

EVERY_LINEAR = LoraConfig(target_modules=ALL_LINEAR)


def dora(base, config, rng):
    """Start weight-decomposed LoRA (Liu et al. 2024) with m the norms of W₀'s rows."""
    return lora.init(base, replace(config, use_dora=True), rng)


def full(base, config, rng):
    """Copy every leaf of the base; raise InputError if one is quantized."""
    for path, w in walk(base):
        require(
            isinstance(w, np.ndarray),
            f"--method full changes every weight, and {path} is quantized: give --quantize none",
        )
    return unflatten({path: np.array(w) for path, w in walk(base)}), base


def head(base, config, rng):
    """Copy the output matrix alone, which is the embedding where that is tied."""
    return lora.also_train({}, base, ["head"]), base


def norm(base, config, rng):
    """Copy the gains of every RMSNorm."""
    return lora.also_train({}, base, ["norm"]), base


def bitfit(base, config, rng):
    """Give every projection a bias (Ben Zaken et al. 2022), zero where the base has none."""
    biases = lora.biases(lora.targets(base, EVERY_LINEAR), base)
    return unflatten({path: np.array(b, "f4") for path, b in biases}), base


def ia3(base, config, rng):
    """Scales of keys, values and hidden units (Liu et al. 2022), all one: the base at first."""
    adapters: dict = {}
    for path in lora.targets(base, EVERY_LINEAR):
        out_features, in_features = get(base, path)["weight"].shape
        if path.endswith(("k_proj", "v_proj")):
            put(adapters, f"{path}.ia3_l", np.ones((out_features, 1), "f4"))
        elif path.endswith("down_proj"):
            put(adapters, f"{path}.ia3_l", np.ones((1, in_features), "f4"))
    return adapters, base


def bottleneck(base, config, rng):
    """Put a network behind o_proj and down_proj (Houlsby et al. 2019), its second matrix zero."""
    adapters: dict = {}
    m = config.bottleneck_size
    for path in lora.targets(base, LoraConfig(target_modules=("o_proj", "down_proj"))):
        D = get(base, path)["weight"].shape[0]
        put(adapters, f"{path}.bottleneck_down", _uniform(rng, (m, D), D))
        put(adapters, f"{path}.bottleneck_down_bias", np.zeros(m, "f4"))
        put(adapters, f"{path}.bottleneck_up", np.zeros((D, m), "f4"))
        put(adapters, f"{path}.bottleneck_up_bias", np.zeros(D, "f4"))
    return adapters, base


def prompt(base, config, rng):
    """Draw rows of the embedding to stand before the embedded tokens (Lester et al. 2021)."""
    embedding, n = base["model"]["embed_tokens"]["weight"], config.num_virtual_tokens
    rows = rng.choice(embedding.shape[0], n, replace=n > embedding.shape[0])
    return unflatten({"model.prompt_embeddings": np.array(embedding[rows], "f4")}), base


def p_tuning(base, config, rng):
    """Make such rows by a network (Liu et al. 2021): N(0, 1) into layers of U(−1/√D, 1/√D)."""
    adapters: dict = {}
    node, D = "model.prompt_encoder", base["model"]["embed_tokens"]["weight"].shape[1]
    embedding = rng.standard_normal((config.num_virtual_tokens, D), "f4")
    put(adapters, f"{node}.embedding.weight", embedding)
    for layer in ("0", "2", "4"):
        put(adapters, f"{node}.mlp_head.{layer}.weight", _uniform(rng, (D, D), D))
        put(adapters, f"{node}.mlp_head.{layer}.bias", _uniform(rng, (D,), D))
    return adapters, base


def prefix(base, config, rng):
    """Keys and values before those of the tokens, in every layer (Li and Liang 2021), N(0, 1) as in
    PEFT. Not the base at first, as `prompt`."""
    adapters: dict = {}
    for path in lora.targets(base, LoraConfig(target_modules=("k_proj",))):
        shape = config.num_virtual_tokens, get(base, path)["weight"].shape[0]
        for name in ("prefix_k", "prefix_v"):
            put(adapters, f"{path[: -len('.k_proj')]}.{name}", rng.standard_normal(shape, "f4"))
    return adapters, base


def _uniform(rng, shape, in_features):
    bound = 1 / np.sqrt(in_features)
    return rng.uniform(-bound, bound, shape).astype("f4")


METHODS = {
    "lora": lora.init, "dora": dora, "ia3": ia3, "bitfit": bitfit, "norm": norm, "head": head,
    "bottleneck": bottleneck, "prompt": prompt, "p-tuning": p_tuning, "prefix": prefix,
    "full": full,
}  # fmt: skip
