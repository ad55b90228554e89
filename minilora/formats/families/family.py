"""What a model family is: how its models differ from Llama, and its fields in config.json.

Each family has a file of its own, which ends with its `Family`. `FAMILIES` lists all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...config import ModelConfig
from ..safetensors_file import Entry

Convert = Callable[[ModelConfig, dict[str, Entry]], dict[str, Entry]]


@dataclass(frozen=True)
class Family:
    """A model_type of Hugging Face.

    read(raw) returns the fields of ModelConfig that config.json, the object `raw`, has in this
    family only; the sizes in it are checked before. write(model_config) returns the fields of
    config.json for them.
    If a file of the family joins projections in one tensor, split(model_config, {name: Entry})
    returns the tensors under our paths, and join(model_config, {path: Entry}) is its inverse.
    """

    model_type: str
    architecture: str
    biases: tuple[tuple[str, ...], ...] = ()  # the projections of a group have biases or none has
    always_biased: bool = False
    activation: str = "hidden_act"  # field of config.json that names the activation
    fields: dict[str, Any] = field(default_factory=dict)  # of ModelConfig, the same in each model
    defaults: dict[str, Any] = field(default_factory=dict)  # of config.json, if not Llama's
    read: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    split: Convert = lambda config, tensors: tensors
    join: Convert = lambda config, tensors: tensors

    def biased(self, some: set[str]) -> set[str]:
        """Return the projections that have a bias in a model in which `some` have one."""
        groups = [g for g in self.biases if self.always_biased or not some.isdisjoint(g)]
        return {name for group in groups for name in group}
