"""The tokenizer that a GGUF file's metadata describes, rebuilt with the `tokenizers` library.

Two families occur in Llamas. Byte-level BPE (GPT-2; SmolLM and Llama 3 differ only in how text is
cut before merging): vocabulary and merges are in the file. SentencePiece BPE (Llama 1 and 2): the
file has no merges, but a score for each token; a pair merges the earlier, the higher the result's.
"""

from ..config import require
from ..data.tokenizer import PretrainedTokenizer, library, one_error
from .files import naming

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF
ID_KEYS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
}  # fmt: skip
# where Llama 3 cuts text before merging
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = ("smollm", "gpt-2", "llama-bpe")


def from_metadata(path, metadata):
    """Make the PretrainedTokenizer of the GGUF file at `path` whose metadata is given.

    Raises InputError naming the key that is missing or holds what is not read.
    """
    template = metadata.get("tokenizer.chat_template")
    with naming(path):
        with one_error("its tokenizer is broken"):
            backend, special = _backend(metadata)
        require("eos_token" in special, "tokenizer.ggml.eos_token_id is missing")
        require(isinstance(template, str | None), "tokenizer.chat_template must be text")
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["model_max_length"] = metadata.get("llama.context_length")
    settings["clean_up_tokenization_spaces"] = False
    eos = _get(metadata, "eos_token_id")
    return PretrainedTokenizer(backend, eos, special, template, settings, str(path))


def _get(metadata, name):
    key = f"tokenizer.ggml.{name}"
    require(key in metadata, f"{key} is missing")
    return metadata[key]


def _backend(metadata):
    """Make (tokenizers.Tokenizer, {"eos_token": "<|im_end|>", …})."""
    kind, tokens = _get(metadata, "model"), _get(metadata, "tokens")
    known = kind in ("gpt2", "llama")
    require(known, f"tokenizer.ggml.model {kind!r} is not read; gpt2, llama are")
    texts = isinstance(tokens, list) and all(isinstance(t, str) and len(t) < 4096 for t in tokens)
    different = texts and len(set(tokens)) == len(tokens)
    require(different, "tokenizer.ggml.tokens must be different texts of less than 4,096 letters")
    special = {}
    for name, key in ID_KEYS.items():
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        sound = i is None or (type(i) is int and 0 <= i < len(tokens))
        require(sound, f"{name} has the id {i!r} of {len(tokens)} tokens")
        if i is not None:
            special[name] = tokens[i]
    tk = library("tokenizers")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = (_byte_level if kind == "gpt2" else _sentencepiece)(tk, metadata, vocabulary)
    by_default = kind == "llama" or _get(metadata, "pre") == "llama-bpe"
    if metadata.get("tokenizer.ggml.add_bos_token", by_default):
        require("bos_token" in special, "tokenizer.ggml.bos_token_id is missing")
        bos = special["bos_token"]
        backend.post_processor = tk.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, _get(metadata, "bos_token_id"))]
        )
    # tokens that are found in a text as they are; control tokens are not printed
    for token, use in zip(tokens, metadata.get("tokenizer.ggml.token_type", ())):
        if use == CONTROL:
            backend.add_special_tokens([tk.AddedToken(token, normalized=False, special=True)])
        elif use == USER_DEFINED:
            backend.add_tokens([tk.AddedToken(token, normalized=False)])
    return backend, special


def _byte_level(tk, metadata, vocabulary):
    """Make GPT-2's BPE over bytes spelled as printable characters (Radford et al. 2019, 2.2)."""
    pre = metadata.get("tokenizer.ggml.pre")
    known = ", ".join(BYTE_LEVEL)
    require(pre in BYTE_LEVEL, f"tokenizer.ggml.pre {pre!r} is not read; {known} are")
    merges = [tuple(merge.split(" ", 1)) for merge in _get(metadata, "merges")]
    # Llama 3 takes a whole piece that is a token at once, whatever the merges would make of it
    llama3 = pre == "llama-bpe"
    backend = tk.Tokenizer(tk.models.BPE(vocabulary, merges, ignore_merges=llama3))
    cut = {
        # every digit alone, then GPT-2's cut of what is between: in "a  12" both spaces stay
        # together, where GPT-2 alone would leave one of them with the number
        "smollm": [tk.pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [tk.pre_tokenizers.Split(tk.Regex(LLAMA3_CUT), behavior="isolated")],
    }
    by_gpt2 = tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
    backend.pre_tokenizer = tk.pre_tokenizers.Sequence([*cut.get(pre, ()), by_gpt2])
    backend.decoder = tk.decoders.ByteLevel()
    return backend


def _sentencepiece(tk, metadata, vocabulary):
    """Make Llama 2's BPE over characters: a space is ▁, an unknown character its bytes <0xE2>."""
    merges = merges_by_score(vocabulary, dict(zip(vocabulary, _get(metadata, "scores"))))
    backend = tk.Tokenizer(
        tk.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    n, d = tk.normalizers, tk.decoders
    before, after = ([n.Prepend("▁")], [d.Strip(" ", 1, 0)]) if prefix else ([], [])
    backend.normalizer = n.Sequence([*before, n.Replace(" ", "▁")])
    backend.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), *after])
    return backend


def merges_by_score(vocabulary, scores):
    """List every cut of a token into two tokens, the best-scored token's first."""
    merges = []
    for token in sorted(vocabulary, key=lambda token: -scores[token]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
