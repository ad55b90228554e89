"""Rebuild the tokenizer in a GGUF file's metadata with the `tokenizers` library.

Only byte-level BPE is supported, with the pre-tokenizers of GPT-2 and SmolLM: the file contains
the vocabulary and the merges. Other tokenizers need a Hugging Face folder.
"""

from ..config import InputError
from ..data.tokenizer import PretrainedTokenizer, library, one_error
from .files import errors_in
from .gguf_file import INSTEAD

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF
ID_KEYS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
}  # fmt: skip


def from_metadata(path, metadata):
    """Return the PretrainedTokenizer that the metadata of the GGUF file `path` describes.

    Raises InputError naming the key that is missing or not supported.
    """
    template = metadata.get("tokenizer.chat_template")
    with errors_in(path):
        with one_error("its tokenizer is broken"):
            backend, special = _backend(metadata)
        if "eos_token" not in special:
            raise InputError("tokenizer.ggml.eos_token_id is missing")
        if not isinstance(template, str | None):
            raise InputError("tokenizer.chat_template must be text")
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["model_max_length"] = metadata.get("llama.context_length")
    settings["clean_up_tokenization_spaces"] = False
    eos = _get(metadata, "eos_token_id")
    return PretrainedTokenizer(backend, eos, special, template, settings, str(path))


def _get(metadata, name):
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise InputError(f"{key} is missing")
    return metadata[key]


def _backend(metadata):
    """Return (tokenizers.Tokenizer, {"eos_token": "<|im_end|>", …})."""
    kind, tokens = _get(metadata, "model"), _get(metadata, "tokens")
    if kind != "gpt2":
        raise InputError(f"tokenizer.ggml.model {kind!r} is not supported: {INSTEAD}")
    texts = isinstance(tokens, list) and all(isinstance(t, str) and len(t) < 4096 for t in tokens)
    if not (texts and len(set(tokens)) == len(tokens)):
        raise InputError("tokenizer.ggml.tokens must be distinct texts of at most 4,095 characters")
    special = {}
    for name, key in ID_KEYS.items():
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if not (i is None or (type(i) is int and 0 <= i < len(tokens))):
            raise InputError(f"{name} has the id {i!r}, but there are {len(tokens)} tokens")
        if i is not None:
            special[name] = tokens[i]
    tk = library("tokenizers")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = _byte_level(tk, metadata, vocabulary)
    if metadata.get("tokenizer.ggml.add_bos_token"):
        if "bos_token" not in special:
            raise InputError("tokenizer.ggml.bos_token_id is missing")
        bos = special["bos_token"]
        backend.post_processor = tk.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, _get(metadata, "bos_token_id"))]
        )
    # these tokens are matched in a text before BPE; control tokens are not printed
    for token, use in zip(tokens, metadata.get("tokenizer.ggml.token_type", ())):
        if use == CONTROL:
            backend.add_special_tokens([tk.AddedToken(token, normalized=False, special=True)])
        elif use == USER_DEFINED:
            backend.add_tokens([tk.AddedToken(token, normalized=False)])
    return backend, special


def _byte_level(tk, metadata, vocabulary):
    """Return GPT-2's BPE over bytes written as printable characters (Radford et al. 2019, 2.2)."""
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in ("smollm", "gpt-2"):
        raise InputError(f"tokenizer.ggml.pre {pre!r} is not supported: {INSTEAD}")
    merges = [tuple(merge.split(" ", 1)) for merge in _get(metadata, "merges")]
    backend = tk.Tokenizer(tk.models.BPE(vocabulary, merges))
    # SmolLM splits off each digit before GPT-2's pre-tokenizer: in "a  12" both spaces stay
    # together, while GPT-2 alone would join one of them to the number
    digits = [tk.pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    by_gpt2 = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = tk.pre_tokenizers.Sequence([*digits, by_gpt2])
    backend.decoder = tk.decoders.ByteLevel()
    return backend
