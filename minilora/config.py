"""The settings of a model, of its adapters and of a training run, checked when they are created.

In `lessons/00_qlora_in_one_file.py`, these settings are the constants of parts 1, 3 and 6. The
fields have the names of Hugging Face (model), PEFT (LoRA), and mlx_lm and transformers (training).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Real
from typing import Any, NamedTuple

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QK_NORMS = ("q_norm", "k_norm")  # of each head, in Qwen3 and Gemma 3
# The norms of a layer: before and after attention, before and after the MLP. None: no norm.
# Hugging Face calls Llama's norm before the MLP post_attention_layernorm.
LLAMA_NORMS = ("input_layernorm", None, "post_attention_layernorm", None)
ALL_LINEAR = ATTENTION + MLP  # PEFT's "all-linear": every projection, not the output head


class InputError(ValueError):
    """An input that cannot be used. Its one line says what is wrong, where, and what to do."""

    def __str__(self) -> str:  # escapes control characters of names; shortens a long text
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())
        return text if len(text) <= 1200 else f"{text[:800]} … {text[-300:]}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of a message that asks for the known name that resembles `word`, or "".

    >>> did_you_mean("Tinny", ["micro", "tiny"]), did_you_mean("large", ["micro", "tiny"])
    ('; did you mean tiny?', '')
    """
    near = get_close_matches(str(word).lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


class Rule(NamedTuple):
    """A condition on a number, as an error message says it after "must", and as a function."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE_INT = Rule("be a whole number from 1", lambda value: type(value) is int and value >= 1)
NON_NEGATIVE_INT = Rule("be a whole number from 0", lambda value: type(value) is int and value >= 0)
POSITIVE = Rule("be a positive number", lambda value: 0 < value < math.inf)
NON_NEGATIVE = Rule("be a finite number from 0", lambda value: 0 <= value < math.inf)
FRACTION = Rule("lie in [0, 1)", lambda value: 0 <= value < 1)


def check_number(name: str, value: Any, rule: Rule) -> None:
    """Raise InputError unless `value` is a number that satisfies `rule`.

    The name is in backticks, so that the command line can replace it by its flag.
    """
    if not (isinstance(value, Real) and rule.holds(value)):
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
    tie_word_embeddings: bool = (
        True  # only for config.json: the model uses `lm_head` if the tree has it
    )
    max_position_embeddings: int = 2048
    eos_token_id: tuple[int, ...] = ()  # each of them ends generation
    bos_token_id: int | None = None
    rope_scaling: dict[str, Any] | None = None  # Hugging Face's, llama3 or linear
    sliding_window: int | None = None  # keys that a token sees, its own included; None: all
    model_type: str = (
        "llama"  # written to config.json; with trained biases, a type that has them is written
    )
    # what differs from Llama in other families
    hidden_act: str = "silu"  # or gelu_pytorch_tanh
    norms: tuple[str | None, str | None, str | None, str | None] = LLAMA_NORMS
    norm_offset: float = 0.0  # a norm multiplies by its weight plus this number
    qk_norm: bool = False  # each head of q and k is normalized before the rotation
    embedding_scale: float = 1.0
    query_pre_attn_scalar: int | None = None  # scores are divided by its root; None: head_dim
    layer_types: tuple[str, ...] | None = (
        None  # sliding_attention or full_attention; None: one kind
    )
    rope_local_base_freq: float | None = None  # rope_theta of the sliding layers
    generation_config: dict[str, Any] | None = None  # generation_config.json; saved with the model

    def __post_init__(self) -> None:
        for f in fields(self)[:7]:  # vocab_size to head_dim
            check_number(f.name, getattr(self, f.name), POSITIVE_INT)
        if self.sliding_window is not None:
            check_number("sliding_window", self.sliding_window, POSITIVE_INT)
        q, k = self.num_attention_heads, self.num_key_value_heads
        if q % k:
            raise InputError(
                f"num_attention_heads {q} is not a multiple of num_key_value_heads {k}"
            )
        if self.head_dim % 2 != 0:
            raise InputError(f"head_dim {self.head_dim} is odd: rotation needs pairs")

    def of_layer(self, i: int) -> "ModelConfig":
        """Return the settings of layer i, with its own window and rotary base."""
        if self.layer_types is None:
            return self
        if self.layer_types[i] == "full_attention":
            return replace(self, sliding_window=None)
        if self.rope_local_base_freq is None:
            return self
        # Gemma 3 scales only the rotation of its full layers
        return replace(self, rope_theta=self.rope_local_base_freq, rope_scaling=None)


@dataclass(frozen=True)
class LoraConfig:
    """The settings of LoRA: which projections it adapts, rank and scaling (PEFT's LoraConfig)."""

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")  # names, all-linear, or one regex
    use_rslora: bool = False
    layers_to_transform: Any = None  # a layer, or several; None: all
    rank_pattern: dict[str, int] = field(default_factory=dict)  # {regex of a module: rank}
    alpha_pattern: dict[str, float] = field(default_factory=dict)  # the first match counts
    exclude_modules: str | Sequence[str] | None = None  # names, or one regex; not adapted
    use_dora: bool = False
    init_lora_weights: bool | str = True  # True or one of INITIALIZERS
    bias: str = "none"  # the only choice; methods.replaced.also_train trains biases
    task_type: str | None = "CAUSAL_LM"

    def __post_init__(self) -> None:
        check_number("r", self.r, POSITIVE_INT)
        check_number("lora_alpha", self.lora_alpha, POSITIVE)
        check_number("lora_dropout", self.lora_dropout, FRACTION)
        for r in self.rank_pattern.values():
            check_number("rank_pattern", r, POSITIVE_INT)
        for alpha in self.alpha_pattern.values():
            check_number("alpha_pattern", alpha, POSITIVE)
        for name, choices in LORA_CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"`{name}` must be one of {choices}, got {value!r}")
        for regex in (*self.rank_pattern, *self.alpha_pattern):
            matches(regex, "")  # raises InputError if it is not a regular expression
        if str(self.target_modules).lower() == "all-linear":
            object.__setattr__(self, "target_modules", ("all-linear",))
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str) or (value is None and name == "exclude_modules"):
                continue
            if not (
                isinstance(value, list | tuple | set) and all(isinstance(n, str) for n in value)
            ):
                wanted = "a list of names, or one regular expression"
                raise InputError(f"`{name}` must be {wanted}, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if isinstance(self.layers_to_transform, int):
            object.__setattr__(self, "layers_to_transform", (self.layers_to_transform,))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            what = "layers_to_transform needs a list of target_modules, not the regular expression"
            raise InputError(f"{what} {self.target_modules!r}: name the layers in the expression")

    def rank_and_scaling(self, path: str) -> tuple[int, float]:
        """Return (rank r, scaling α/r) of the adapter on the module at `path`."""
        r = _first_match(self.rank_pattern, path, self.r)
        alpha = _first_match(self.alpha_pattern, path, self.lora_alpha)
        return r, scaling(r, alpha, self.use_rslora)


INITIALIZERS = ("pissa", "loftq")  # of A and B; they also modify the frozen weight
LORA_CHOICES: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": (True, *INITIALIZERS), "bias": ("none",), "task_type": ("CAUSAL_LM", None),
}  # fmt: skip


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


def _first_match(pattern: dict[str, Any], path: str, default: Any) -> Any:
    # as in PEFT, an expression matches the path of a module or its end after a dot
    found = (value for regex, value in pattern.items() if matches(rf"(.*\.)?({regex})", path))
    return next(found, default)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; a step uses `batch_size * grad_accumulation_steps` sequences."""

    iters: int = 200
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    max_seq_length: int = 256  # tokens
    optimizer: str = "adamw"  # or muon
    learning_rate: float = 2e-4  # after the warm-up
    lr_schedule: str = "cosine"
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    also_train_lr_scale: float = 0.1  # rate of other trained leaves / rate of the factors
    layer_lr_decay: float = 1.0  # rate of a layer / rate of the layer above
    loraplus_lr_ratio: float = 1.0  # rate of lora_B / rate of lora_A
    adapter_dtype: str = "float32"
    mask_prompt: bool = False
    packing: bool = False
    gradient_checkpointing: bool = False
    steps_per_eval: int = 50
    val_batches: int = 8
    early_stopping_patience: int = 0  # evaluations without a better loss; 0: never
    keep_best: bool = False  # return the adapters with the lowest held-out loss, not the last
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in CHOICES:
                choices = CHOICES[f.name]
                if value not in choices:
                    raise InputError(f"`{f.name}` must be one of {choices}, got {value!r}")
            elif type(f.default) is bool:
                if type(value) is not bool:
                    raise InputError(f"`{f.name}` must be true or false, got {value!r}")
            else:
                rule = POSITIVE_INT if type(f.default) is int else POSITIVE
                check_number(f.name, value, OTHER_RULES.get(f.name, rule))


OTHER_RULES = {  # of fields that need not be positive
    "warmup_ratio": FRACTION, "adam_beta1": FRACTION, "adam_beta2": FRACTION,
    "weight_decay": NON_NEGATIVE, "early_stopping_patience": NON_NEGATIVE_INT,
    "seed": NON_NEGATIVE_INT,
}  # fmt: skip
CHOICES = {
    "lr_schedule": ("constant", "linear", "cosine"),
    "adapter_dtype": ("float32", "bfloat16", "float16"),
    "optimizer": ("adamw", "muon"),
}
