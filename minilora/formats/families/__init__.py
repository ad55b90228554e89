"""The model families that minilora reads and writes, one file each.

Read `family.py` first: it says what a family is. To add one, write its file and add it here.
"""

from . import (
    gemma3,
    llama,
    mistral,
    qwen2,
    qwen3,
)

FAMILIES = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        gemma3,
    )
}
