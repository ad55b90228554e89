"""What a method is: the entries that it adds, their initialization, the functions that read them.

Each method has a file of its own, which ends with its `Method`. `registry.METHODS` lists all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from .. import lora
from ..config import LoraConfig, Rule, check_settings
from ..layers import Hook
from ..tree import Tree, arrays, flatten, get, unflatten

SIZE = Rule("be a whole number from 1 to 4,096", lambda n: type(n) is int and 1 <= n <= 4096)


def size(default, what):
    """Return a field of MethodConfig: a size, whose flag has this default and this help."""
    return field(default=default, metadata={"rule": SIZE, "help": what})


@dataclass(frozen=True)
class MethodConfig:
    """The settings of a method other than LoRA: its name in METHODS, and its sizes."""

    method: str
    num_virtual_tokens: int = size(16, "for prompt, p-tuning and prefix")
    bottleneck_size: int = size(8, "width of bottleneck")
    vera_r: int = size(256, "rank of vera")

    def __post_init__(self) -> None:
        check_settings(self)


def projections(base, names):
    """Return {path: shape (out, in) of the weight} of the projections of these names."""
    paths = lora.target_paths(base, LoraConfig(target_modules=names))
    return {path: get(base, path)["weight"].shape for path in paths}


def uniform(rng, shape, bound):
    """Draw float32 numbers from U(−bound, bound)."""
    return rng.uniform(-bound, bound, shape).astype("f4")


SIZES = {f.name: f for f in fields(MethodConfig)[1:]}


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    init(base, config, rng) returns a new adapter. `hooks` and `prompts` are what the method adds to
    the tables `layers.HOOKS` and `layers.PROMPTS`.
    """

    name: str
    init: Callable[..., Tree]
    hooks: tuple[Hook, ...] = ()
    prompts: dict[str, Callable[..., Any]] = field(default_factory=dict)
    size: str = ""  # the one of SIZES that it has
    peft_size: str = ""  # its name in PEFT's file, if it has another there
    # of entries: the floats per token that the optimized operations keep for this leaf
    extra_floats: dict[str, Callable[..., int]] = field(default_factory=dict)
    # PEFT's adapter_config.json: fields that must have these values (None: PEFT lacks the method),
    # and fields that may have any value, which are not written.
    peft_fields: dict[str, Any] | None = None
    free_fields: tuple[str, ...] = ()
    # pack(adapters) returns the tensors of the file, {path: array} without PEFT's prefix of paths;
    # unpack(tensors, base, config) is its inverse
    pack: Callable[..., Tree] = lambda adapters: flatten(arrays(adapters))
    unpack: Callable[..., Tree] = lambda tensors, base, config: unflatten(tensors)
    # tensors that are no trained leaves, which no run rounds: float32 in a file of any dtype
    float32: tuple[str, ...] = ()
