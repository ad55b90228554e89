"""Rebuild the tokenizer in a GGUF file's metadata with the `tokenizers` library.

Only byte-level BPE is supported, with the pre-tokenizers of GPT-2 and SmolLM: the file contains
the vocabulary and the merges. Other tokenizers need a Hugging Face folder.
"""

from ..config import NON_NEGATIVE_INT, InputError
from ..data.tokenizer import PretrainedTokenizer, library, one_error
from .fields import number
from .files import errors_in, warn_of_unread
from .gguf_file import unsupported
from .hf_tokenizer import other_templates

# token types of GGUF
CONTROL = 3
USER_DEFINED = 4
SUPPORTED: dict = {
    "tokenizer.ggml.model": ["gpt2"],
    "tokenizer.ggml.pre": ["smollm", "gpt-2"],
    "tokenizer.ggml.add_bos_token": [None, False],
    "tokenizer.ggml.add_eos_token": [None, False],
}
TEMPLATE = "tokenizer.chat_template"  # the default; others have their name after a dot
ID_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def from_metadata(path, metadata):
    """Return the PretrainedTokenizer that the metadata of the GGUF file `path` describes.

    Raises InputError naming the key that is missing or not supported.
    """
    with errors_in(path):
        for key, supported in SUPPORTED.items():
            if metadata.get(key) not in supported:
                raise unsupported(f"{key} {metadata.get(key)!r}")
        tokens = metadata["tokenizer.ggml.tokens"]
        special = {name: tokens[metadata[key]] for name, key in ID_KEYS.items() if key in metadata}
        eos = number(metadata, ID_KEYS["eos_token"], NON_NEGATIVE_INT)
        keys = [key for key in metadata if f"{key}.".startswith(f"{TEMPLATE}.")]
        for key in keys:
            if not isinstance(metadata[key], str):
                raise InputError(f"{key} must be text")
        if keys and TEMPLATE not in keys:
            raise unsupported("a file of chat templates without a default")
        names = (key.removeprefix(TEMPLATE).removeprefix(".") for key in keys)
        templates = {name or "default": metadata[key] for name, key in zip(names, keys)}
        with one_error("its tokenizer is broken"):
            backend = _byte_level(metadata, tokens)
    warn_of_unread(path, other_templates(templates), "`default` and `tool_use` are read")
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    return PretrainedTokenizer(
        backend,
        eos,
        special,
        templates.get("default"),
        settings,
        str(path),
        for_tools=templates.get("tool_use"),
    )


def _byte_level(metadata, tokens):
    """Return GPT-2's BPE over bytes written as printable characters (Radford et al. 2019, 2.2)."""
    tk = library("tokenizers")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = tk.Tokenizer(tk.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    steps = [tk.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if metadata["tokenizer.ggml.pre"] == "smollm":
        # SmolLM splits off each digit before GPT-2's pre-tokenizer: in "a  12" both spaces stay
        # together, while GPT-2 alone would join one of them to the number
        steps.insert(0, tk.pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = tk.pre_tokenizers.Sequence(steps)
    backend.decoder = tk.decoders.ByteLevel()
    # these tokens are matched in a text before BPE; special ones are not printed
    named = {metadata.get(key) for key in ID_KEYS.values()}
    for i, (token, kind) in enumerate(
        zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
    ):
        special = kind == CONTROL or i in named
        if special or kind == USER_DEFINED:
            added = tk.AddedToken(token, normalized=False, special=special)
            backend.add_tokens([added])
    return backend
