"""All methods, in the order in which they are applied and merged, and `get_peft_model`.

| method | entries | read by |
|---|---|---|
| lora | `lora_A`, `lora_B`, `lora_scaling`, `lora_dropout` | `layers.linear` |
| bitfit, norm, head, full | `bias`, `weight`, instead of the base's | `layers.linear`, `norm` |
| prefix | `prefix_k`, `prefix_v` | `layers.with_prefix` |
| prompt, p-tuning | see their file | `layers.virtual_tokens`, through `layers.PROMPTS` |
| each other method | see its file | `layers.project`, through `layers.HOOKS` |

A new adapter does not change the outputs, except those of prompt, p-tuning and prefix, because
tokens see the virtual tokens. A trained head next to products in bfloat16 multiplies in float32.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import layers, lora
from ..config import INITIALIZERS, InputError, LoraConfig
from ..model import Model
from ..optim import OPTIMIZERS
from ..tree import Tree
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
from .method import SIZES, Method, MethodConfig

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
layers.HOOKS.extend(several.HOOKS)
for method in METHODS.values():
    layers.HOOKS.extend(method.hooks)
    layers.PROMPTS.update(method.prompts)


class AdaptedModel(NamedTuple):
    """An adapter, and the model that it adapts."""

    adapters: Tree
    model: Model


def get_peft_model(
    model: Model,
    adapter_config: LoraConfig | MethodConfig,
    rng: Any = 0,
    scheme: str | None = None,
    block_size: int | None = None,
) -> AdaptedModel:
    """Create an adapter of any method: AdaptedModel(adapters, model).

    model: dense or quantized. It is not modified; the returned model is the same, except for PiSSA
    and LoftQ, which need a dense base and store it in `scheme` (see `minilora.quantize`; default:
    none) and `block_size` (default: 64); without effect on other adapters, these are refused.
    adapter_config: a LoraConfig or a MethodConfig. rng: a NumPy generator or a seed.
    Raises InputError if a target or a pattern matches nothing, if the base must be dense, or if it
    is what PiSSA or LoftQ has left.
    """
    rng = np.random.default_rng(rng)
    if isinstance(adapter_config, LoraConfig):
        lora.check_patterns(model.base, adapter_config)
        if adapter_config.init_lora_weights in INITIALIZERS:
            scheme = scheme or "none"
            return AdaptedModel(*initializers.init(model, adapter_config, rng, scheme, block_size))
    initializers.refuse_storage(scheme, block_size)
    initializers.check_whole(model)
    name = method_name(adapter_config)
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}: choose from {', '.join(METHODS)}")
    method = METHODS[name]
    if isinstance(adapter_config, MethodConfig):
        check_sizes(adapter_config, method)
    return AdaptedModel(method.init(model.base, adapter_config, rng), model)


def check_sizes(config, method):
    """Raise InputError if a MethodConfig is of LoRA, or has a size of another method."""
    if config.method in ("lora", "dora"):
        raise InputError(f"a MethodConfig is not for {config.method}: give a LoraConfig")
    for size, default in SIZES.items():
        if size != method.size and getattr(config, size) != default.default:
            raise InputError(
                f"`{size}` has no effect with the method {config.method}: leave it out"
            )


def method_name(adapter_config):
    """Return the name in METHODS of a LoraConfig or MethodConfig."""
    if isinstance(adapter_config, MethodConfig):
        return adapter_config.method
    return "dora" if adapter_config.use_dora else "lora"


def num_virtual_tokens(adapter_config):
    """Return the number of virtual tokens before each text: 0 for LoRA, or without an adapter."""
    if not isinstance(adapter_config, MethodConfig):
        return 0
    has_some = METHODS[adapter_config.method].size == "num_virtual_tokens"
    return adapter_config.num_virtual_tokens if has_some else 0
