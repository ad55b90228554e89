"""Rebuild the tokenizer in a GGUF file's metadata with the `tokenizers` library.

Only byte-level BPE is supported, with the pre-tokenizers of GPT-2 and SmolLM: the file contains
the vocabulary and the merges. Other tokenizers need a Hugging Face folder.
"""

from ..config import InputError
from ..data.tokenizer import PretrainedTokenizer, library, one_error
from .fields import ids
from .files import errors_in
from .gguf_file import INSTEAD

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF
ID_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id", "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id", "pad_token": "tokenizer.ggml.padding_token_id",
}  # fmt: skip


def from_metadata(path, metadata):
    """Return the PretrainedTokenizer that the metadata of the GGUF file `path` describes.

    Raises InputError naming the key that is missing or not supported.
    """
    template = metadata.get("tokenizer.chat_template")
    with errors_in(path):
        if not isinstance(template, str | None):
            raise InputError("tokenizer.chat_template must be text")
        tokens = _tokens(metadata)
        special_ids = {name: ids(metadata, key) for name, key in ID_KEYS.items()}
        special = {}
        for name, found in special_ids.items():
            for i in found:
                if i >= len(tokens):
                    raise InputError(f"{name} has the id {i}, but there are {len(tokens)} tokens")
                special[name] = tokens[i]
        add_bos = metadata.get("tokenizer.ggml.add_bos_token")
        for name in ("eos_token", "bos_token") if add_bos else ("eos_token",):
            if name not in special:
                raise InputError(f"{ID_KEYS[name]} is missing")
        with one_error("its tokenizer is broken"):
            backend = _byte_level(metadata, tokens)
            if add_bos:
                _add_bos(backend, special["bos_token"])
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    eos = special_ids["eos_token"][0]
    return PretrainedTokenizer(backend, eos, special, template, settings, str(path))


def _get(metadata, name):
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise InputError(f"{key} is missing")
    return metadata[key]


def _tokens(metadata):
    """Return the texts of all tokens, after checking the type of the tokenizer."""
    for name, supported in (("model", ["gpt2"]), ("pre", ["smollm", "gpt-2"])):
        value = _get(metadata, name)
        if value not in supported:
            raise InputError(f"tokenizer.ggml.{name} {value!r} is not supported: {INSTEAD}")
    tokens = _get(metadata, "tokens")
    texts = isinstance(tokens, list) and all(isinstance(t, str) and len(t) < 4096 for t in tokens)
    if not (texts and len(set(tokens)) == len(tokens)):
        raise InputError("tokenizer.ggml.tokens must be distinct texts of at most 4,095 characters")
    return tokens


def _byte_level(metadata, tokens):
    """Return GPT-2's BPE over bytes written as printable characters (Radford et al. 2019, 2.2)."""
    tk = library("tokenizers")
    merges = [tuple(merge.split(" ", 1)) for merge in _get(metadata, "merges")]
    backend = tk.Tokenizer(tk.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    steps = [tk.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if metadata["tokenizer.ggml.pre"] == "smollm":
        # SmolLM splits off each digit before GPT-2's pre-tokenizer: in "a  12" both spaces stay
        # together, while GPT-2 alone would join one of them to the number
        steps.insert(0, tk.pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = tk.pre_tokenizers.Sequence(steps)
    backend.decoder = tk.decoders.ByteLevel()
    # these tokens are matched in a text before BPE; control tokens are not printed
    for token, use in zip(tokens, metadata.get("tokenizer.ggml.token_type", ())):
        if use == CONTROL:
            backend.add_special_tokens([tk.AddedToken(token, normalized=False, special=True)])
        elif use == USER_DEFINED:
            backend.add_tokens([tk.AddedToken(token, normalized=False)])
    return backend


def _add_bos(backend, bos):
    """Let the tokenizer put the token `bos` before each text."""
    first = [(bos, backend.token_to_id(bos))]
    processors = library("tokenizers").processors
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=first)
