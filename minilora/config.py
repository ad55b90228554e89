"""The settings of a model, of its adapters and of a training run, checked when they are created.

In `lessons/00_qlora_in_one_file.py`, these settings are the constants of parts 1, 3 and 6. The
fields have the names of Hugging Face (model), PEFT (LoRA), and mlx_lm and transformers (training).
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QK_NORMS = ("q_norm", "k_norm")  # of each head, in Qwen3 and Gemma 3
# The norms of a layer: before and after attention, before and after the MLP. None: no norm.
# Hugging Face calls Llama's norm before the MLP post_attention_layernorm.
LLAMA_NORMS = ("input_layernorm", None, "post_attention_layernorm", None)
GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
ALL_LINEAR = ATTENTION + MLP  # PEFT's "all-linear": every projection, not the output head


class InputError(ValueError):
    """An input that cannot be used. Its one line says what is wrong, where, and what to do."""

    def __str__(self) -> str:  # escapes control characters of names; shortens a long text
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())
        return text if len(text) <= 1200 else f"{text[:800]} … {text[-300:]}"


def number(value: Any) -> Any:
    """Return `value`; raise TypeError if it is true or false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise TypeError
    return value


def plain(value: Any) -> Any:
    """Return a number of NumPy, or those in a dict, as numbers of Python; other values as is."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 else value


def collection(value: Any) -> Collection[Any]:
    """Return `value`; raise TypeError if it has no length: an iterator can be read only once."""
    if not isinstance(value, Collection):
        raise TypeError
    return value


class Rule(NamedTuple):
    """A condition on a setting, as an error message says it after "must", and as a function."""

    text: str
    holds: Callable[[Any], bool]


BOOLEAN = Rule("be true or false", lambda value: type(value) is bool)
POSITIVE_INT = Rule("be a whole number from 1", lambda value: type(value) is int and value >= 1)
NON_NEGATIVE_INT = Rule("be a whole number from 0", lambda value: type(value) is int and value >= 0)
POSITIVE = Rule("be a positive number", lambda value: 0 < number(value) < math.inf)
NON_NEGATIVE = Rule("be a finite number from 0", lambda value: 0 <= number(value) < math.inf)
FINITE = Rule("be a finite number", lambda value: abs(number(value)) < 1e38)
FRACTION = Rule("lie in [0, 1)", lambda value: 0 <= number(value) < 1)
LAYERS = Rule(
    "be the number of a layer, or a list of them",
    lambda value: type(value) is int or all(type(plain(n)) is int for n in collection(value)),
)
MODULES = Rule(  # the characters of a regex are strings, too
    "be a list of names, or one regex",
    lambda value: all(type(name) is str for name in collection(value)),
)
MAPPING = Rule("be an object {name: value}", lambda value: isinstance(value, dict))
OF_TYPE: dict[Any, Rule] = {bool: BOOLEAN, int: POSITIVE_INT, float: POSITIVE}


def setting(default: Any, rule: Rule) -> Any:
    """Return a field of a dataclass with another rule than that of its type."""
    return field(default=default, metadata={"rule": rule})


def choice(*values: Any) -> Any:
    """Return a field of a dataclass that has one of these values; the first one is its default."""
    rule = Rule(f"be one of {values}", lambda value: value in values)
    return field(default=values[0], metadata={"rule": rule, "choices": values})


def check_settings(config: Any) -> None:
    """Raise InputError if a field of a dataclass breaks its rule, or else that of its type.

    None is allowed where it is the default. A number of NumPy becomes one of Python: in the tree of
    an adapter, it would count as trained.
    """
    for f in fields(config):
        value = plain(getattr(config, f.name))
        object.__setattr__(config, f.name, value)
        rule = f.metadata.get("rule") or OF_TYPE.get(f.type)
        if rule and not (value is None and f.default is None):
            check_setting(f.name, value, rule)


def check_setting(name: str, value: Any, rule: Rule) -> None:
    """Raise InputError unless `value` satisfies `rule`.

    The name is in backticks, so that the command line can replace it by its flag.
    """
    try:
        holds = rule.holds(value)
    except (TypeError, ValueError):  # a number is compared with something that is not a number
        holds = False
    if not holds:
        raise InputError(f"`{name}` must {rule.text}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-type decoder; the names are those of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True  # for config.json; the model uses `lm_head` if there is one
    max_position_embeddings: int = 2048
    eos_token_id: tuple[int, ...] = ()  # each of them ends generation
    bos_token_id: int | None = None
    rope_scaling: dict[str, Any] | None = None  # Hugging Face's, llama3 or linear
    sliding_window: int | None = setting(None, POSITIVE_INT)  # keys that a token sees; None: all
    # for config.json; a model with trained biases is written as a type that has biases
    model_type: str = "llama"
    # what differs from Llama in other families
    hidden_act: str = "silu"  # or gelu_pytorch_tanh
    norms: tuple[str | None, str | None, str | None, str | None] = LLAMA_NORMS
    norm_offset: float = setting(0.0, NON_NEGATIVE)  # is added to the weight of a norm
    qk_norm: bool = False  # each head of q and k is normalized before the rotation
    embedding_scale: float = 1.0
    query_pre_attn_scalar: int | None = None  # scores are divided by its root; None: head_dim
    layer_types: tuple[str, ...] | None = None  # sliding_attention or full_attention per layer
    rope_local_base_freq: float | None = None  # rope_theta of the sliding layers
    generation_config: dict[str, Any] | None = None  # generation_config.json; saved with the model
    # of config.json: those without effect here, which are saved with the model, too
    other_fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self)
        q, k = self.num_attention_heads, self.num_key_value_heads
        if q % k:
            raise InputError(f"num_attention_heads {q} is not a multiple of {k} key/value heads")
        if self.head_dim % 2 != 0:
            raise InputError(f"head_dim {self.head_dim} is odd: rotation needs pairs")

    def of_layers(self, kind: str) -> "ModelConfig":
        """Return the settings of the layers of this kind in `layer_types` ("" if that is None)."""
        if kind == "full_attention":
            return replace(self, sliding_window=None)
        if kind == "sliding_attention" and self.rope_local_base_freq is not None:
            # Gemma 3 scales only the rotation of its full layers
            return replace(self, rope_theta=self.rope_local_base_freq, rope_scaling=None)
        return self


INITIALIZERS = ("pissa", "loftq")  # of A and B; they also modify the frozen weight


@dataclass(frozen=True)
class LoraConfig:
    """The settings of LoRA: which projections it adapts, rank and scaling (PEFT's LoraConfig)."""

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = setting(0.0, FRACTION)
    target_modules: str | Sequence[str] = setting(("q_proj", "v_proj"), MODULES)  # or all-linear
    use_rslora: bool = False
    layers_to_transform: int | Sequence[int] | None = setting(None, LAYERS)  # None: all
    # {regex of a module: rank}; the first match counts
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"rule": MAPPING})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"rule": MAPPING})
    exclude_modules: str | Sequence[str] | None = setting(None, MODULES)  # not adapted
    use_dora: bool = False
    init_lora_weights: bool | str = choice(True, *INITIALIZERS)
    bias: str = choice("none")  # methods.replaced.also_train trains biases
    task_type: str | None = choice("CAUSAL_LM", None)

    def __post_init__(self) -> None:
        check_settings(self)
        for r in self.rank_pattern.values():
            check_setting("rank_pattern", r, POSITIVE_INT)
        for alpha in self.alpha_pattern.values():
            check_setting("alpha_pattern", alpha, POSITIVE)
        names = self.target_modules
        names = [names] if isinstance(names, str) else list(names)
        others = [name for name in names if name != "all-linear"]
        if "all-linear" in names and others:
            raise InputError(f"`target_modules` has all-linear and {others[0]!r}: give one of them")
        if "all-linear" in names:
            object.__setattr__(self, "target_modules", ALL_LINEAR)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if not isinstance(value, str | None):  # a list or a set
                object.__setattr__(self, name, tuple(value))
        layers = self.layers_to_transform
        if not isinstance(layers, int | None):
            object.__setattr__(self, "layers_to_transform", [plain(n) for n in layers])
        if isinstance(self.target_modules, str) and layers is not None:
            what = "layers_to_transform needs a list of target_modules, not the regular expression"
            raise InputError(f"{what} {self.target_modules!r}: name the layers in the expression")

    def rank_and_scaling(self, path: str) -> tuple[int, float]:
        """Return (rank r, scaling α/r) of the adapter on the module at `path`."""
        r = first_match(self.rank_pattern, path, self.r)
        alpha = first_match(self.alpha_pattern, path, self.lora_alpha)
        return r, scaling(r, alpha, self.use_rslora)


def scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """Return the factor of BA: α/r (LoRA, Sec. 4.1), or α/√r (rsLoRA, Kalajdzievski 2023).

    >>> scaling(16, 32), scaling(16, 32, use_rslora=True)
    (2.0, 8.0)
    """
    return lora_alpha / math.sqrt(r) if use_rslora else lora_alpha / r


def names_module(name: str, path: str) -> bool:
    """Return whether `path` is `name` or ends with a dot and `name`, as in PEFT."""
    return path == name or path.endswith("." + name)


def matches(regex: str, path: str) -> bool:
    """Return whether a regular expression matches `path`; raise InputError if it is not one."""
    try:
        return re.fullmatch(regex, path) is not None
    except (re.error, OverflowError, RecursionError) as error:
        where = "in target_modules or exclude_modules or rank_pattern or alpha_pattern"
        raise InputError(f"{regex!r} {where} is not a regular expression: {error}") from error


def first_match(pattern: dict[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first expression that matches `path` or its end after a dot."""
    # as in PEFT
    found = (value for regex, value in pattern.items() if matches(rf"(.*\.)?({regex})", path))
    return next(found, default)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; a step uses `batch_size * grad_accumulation_steps` sequences."""

    iters: int = 200
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    max_seq_length: int = 256  # tokens
    optimizer: str = choice("adamw", "muon")
    learning_rate: float = 2e-4  # after the warm-up
    lr_schedule: str = choice("cosine", "linear", "constant")
    warmup_ratio: float = setting(0.06, FRACTION)
    weight_decay: float = setting(0.0, NON_NEGATIVE)
    max_grad_norm: float = 1.0
    adam_beta1: float = setting(0.9, FRACTION)
    adam_beta2: float = setting(0.999, FRACTION)
    adam_eps: float = 1e-8
    also_train_lr_scale: float = 0.1  # rate of trained norms, biases, … / rate of the factors
    layer_lr_decay: float = 1.0  # rate of a layer / rate of the layer above
    loraplus_lr_ratio: float = 1.0  # rate of lora_B / rate of lora_A
    adapter_dtype: str = choice("float32", "bfloat16", "float16")
    mask_prompt: bool = False  # only the tokens of the answers are targets, as in lesson 0
    packing: bool = False  # several examples in a row of a batch
    gradient_checkpointing: bool = False
    steps_per_eval: int = 50  # from here to keep_best: for evaluation/loop.py
    val_batches: int = 8  # of held-out rows per evaluation
    early_stopping_patience: int = setting(0, NON_NEGATIVE_INT)  # evaluations without a better loss
    keep_best: bool = False  # return the adapters with the lowest held-out loss, not the last
    seed: int = setting(0, NON_NEGATIVE_INT)

    def __post_init__(self) -> None:
        check_settings(self)
