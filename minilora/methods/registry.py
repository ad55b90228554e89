"""All methods, in the order in which they are applied and merged, and the door to a new adapter.

| method | entries | what reads them |
|---|---|---|
| lora | `lora_A`, `lora_B`, `lora_scaling`, `lora_dropout` | `layers.linear` |
| bitfit, norm, head, full | `bias`, `weight`, instead of the base's | `layers.linear`, `norm` |
| each other method | see its file | the functions that it wraps around the operations |

A new adapter does not change the outputs, except those of prompt, p-tuning and prefix, because
tokens see the virtual tokens.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .. import kernels, lora
from ..config import INITIALIZERS, InputError, LoraConfig, TrainConfig
from ..optim import OPTIMIZERS
from ..tree import Tree, flatten
from . import (
    bottleneck,
    dora,
    ia3,
    initializers,
    muon,
    prefix,
    prompt,
    replaced,
    several,
    vera,
)
from .method import Method, MethodConfig

METHODS = {
    method.name: method
    for method in (
        Method("lora", lora.init),
        dora.METHOD,
        vera.METHOD,
        ia3.METHOD,
        replaced.BITFIT,
        replaced.NORM,
        replaced.HEAD,
        bottleneck.METHOD,
        prompt.METHOD,
        prompt.P_TUNING,
        prefix.METHOD,
        replaced.FULL,
    )
}
OPTIMIZERS["muon"] = (muon.muon_init, muon.muon)
ORDER = (several.METHOD, *METHODS.values())  # of application and of merging


class AdaptedModel(NamedTuple):
    """A model with an adapter: the adapter, and its base."""

    adapters: Tree
    base: Tree


def get_peft_model(
    base: Tree, adapter_config: LoraConfig | MethodConfig, rng: Any = 0, scheme: str = "none",
    block_size: int = 64,
) -> AdaptedModel:  # fmt: skip
    """Create an adapter of any method: AdaptedModel(adapters, base).

    base: dense or quantized. It is not modified; the returned base is the same, except for PiSSA
    and LoftQ, which need a dense base and store it in `scheme` (see `minilora.quantize`).
    adapter_config: a LoraConfig or a MethodConfig. rng: a NumPy generator or a seed.
    Raises InputError if a target matches nothing, or if the base must be dense.
    """
    rng = np.random.default_rng(rng)
    if getattr(adapter_config, "init_lora_weights", True) in INITIALIZERS:
        return AdaptedModel(*initializers.init(base, adapter_config, rng, scheme, block_size))
    method = METHODS[method_name(adapter_config)]
    return AdaptedModel(method.init(base, adapter_config, rng), base)


def method_name(adapter_config):
    """Return the name in METHODS of a LoraConfig or MethodConfig."""
    if isinstance(adapter_config, MethodConfig):
        return adapter_config.method
    return "dora" if adapter_config.use_dora else "lora"


def operations(adapters: Tree, base: Tree, ops: Any = None) -> Any:
    """Return operations that read the entries of both trees.

    ops: `layers`, `kernels.fused`, a result of this function, or None for the optimized operations.
    Each method that occurs in the trees is wrapped around them, in this order.
    """
    ops = getattr(ops, "inner", ops) or kernels.ops  # a wrapper is unwrapped first
    names = {name for path in flatten(base) | flatten(adapters) for name in path.split(".")}
    used = [m for m in ORDER if any(names.intersection(added) for added in m.entries.values())]
    if not used:
        return ops
    wrapped = {name: getattr(ops, name) for name in OPERATIONS}
    entries = dict(ops.ENTRIES)
    for method in used:
        for node, added in method.entries.items():
            entries[node] += added
        for f in method.wraps:
            wrapped[f.__name__] = partial(f, wrapped[f.__name__])
    return SimpleNamespace(**wrapped, ENTRIES=entries, inner=ops)


OPERATIONS = (
    "embed", "linear", "merge_projection", "attention", "swiglu", "self_attention", "rms_norm",
    "cross_entropy",
)  # fmt: skip


def check_packing(adapters: Tree, train_config: TrainConfig) -> None:
    """Raise InputError if `train_config` packs rows and the adapter is a trained prompt."""
    trained = adapters.get("model", {})
    if train_config.packing and (prompt.PROMPT in trained or prompt.ENCODER in trained):
        raise InputError("leave out `packing`: only the first example would see the trained prompt")
