"""Read and write the tokenizer files of a Hugging Face folder, as transformers does."""

import json
import warnings
from copy import deepcopy

from ..config import InputError
from ..data.tokenizer import SPECIAL, PretrainedTokenizer, library, one_error, utf8
from ..tree import without
from .files import check_start, errors_in, read_json, read_text, warn_of_unread, write_json

SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATES = "additional_chat_templates"
WITH_TRANSFORMERS = "with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
FILES = (  # that are read; the first three are written
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", SPECIAL_MAP, ADDED,
    f"{TEMPLATES}/default.jinja", f"{TEMPLATES}/tool_use.jinja",
)  # fmt: skip
EXTRA = "extra_special_tokens"
ADDITIONAL = "additional_special_tokens"  # as versions before transformers 5 call them
# of tokenizer_config.json, next to *_token
READ = ("added_tokens_decoder", ADDITIONAL, EXTRA, "chat_template")
# without effect on the tokens here, as names that begin with _, and as False (but do_lower_case)
NEUTRAL = (
    "add_prefix_space", "backend", "clean_up_tokenization_spaces", "errors", "is_local", "legacy",
    "local_files_only", "max_length", "merges_file", "model_input_names", "model_max_length",
    "name_or_path", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "processor_class",
    "sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_class", "tokenizer_file",
    "trust_remote_code", "truncation_side", "truncation_strategy", "use_default_system_prompt",
    "use_fast", "vocab_file", "vocab_size",
)  # fmt: skip

READERS = ("", "PreTrainedTokenizer", "TokenizersBackend")  # classes that read tokenizer.json
END = "<|endoftext|>"
# classes that transformers 5 builds anew, as `steps_of_class` says, from the vocabulary, the merges
# and the added tokens: {class: its special tokens, unless the settings have others}
REBUILT: dict = {
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": None},
    "Qwen2Tokenizer": {"eos_token": END, "unk_token": END, "pad_token": END},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")
    },
}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_folder(folder, eos_token_id=None, model_type=""):
    """Return the tokenizer of a Hugging Face folder, with `eos_token_id` if the files name none.

    Warns of settings that are not read, and if AutoTokenizer builds another tokenizer for this
    `model_type`.
    """
    path = folder / "tokenizer.json"
    backend = read_backend(path)
    padding = backend.padding  # of a batch; kept for writing
    truncation = backend.truncation
    backend.no_padding()
    backend.no_truncation()
    config = folder / "tokenizer_config.json"
    settings, added = read_settings(folder, config, backend)
    with errors_in(config):
        unread = unread_settings(settings)
    warn_of_unread(config, unread, "If these change the tokens, use transformers")
    name = class_of_transformers(settings, model_type, path)
    defaults = {"pad_token": padding["pad_token"]} if padding else {}
    defaults |= REBUILT.get(name, {})
    of_class = defaults | settings
    unknown = [key for key, text in defaults.items() if text and not has(backend, text)]
    # a null of the class would hide the pad token of tokenizer.json from other readers
    named = {key: text for key, text in defaults.items() if text and key not in unknown}
    settings = named | settings
    with errors_in(config):
        special = _add_tokens(backend, settings, added)
        _check_ids(backend, added)
        found = differences(backend, name, of_class, added)
        found += [key for key in unknown if key not in settings]
        eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else eos_token_id
        if eos is None:
            raise InputError("it names no eos_token")
        templates = _templates(folder, settings)
    warn_of_unread(folder, other_templates(templates), "`default` and `tool_use` are read")
    if found:
        what = f"the {name or 'class'} of AutoTokenizer may make other tokens"
        text = f"{what} ({', '.join(found)}): PreTrainedTokenizerFast reads the file as it is"
        warnings.warn(str(InputError(f"{path}: {text}")), stacklevel=4)
    return PretrainedTokenizer(
        backend,
        eos,
        special,
        templates.get("default"),
        settings | special,
        str(path),
        for_tools=templates.get("tool_use"),
        padding=padding,
        truncation=truncation,
    )


def read_backend(path):
    """Return the Tokenizer of the library tokenizers in a tokenizer.json."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no tokenizer.json: write one {WITH_TRANSFORMERS}")
    check_start(path)
    text = read_text(path)
    with one_error(f"{path} is not a tokenizer"):
        backend = library("tokenizers").Tokenizer.from_str(text)
    if getattr(backend.model, "dropout", None):
        raise InputError(f"{path}: dropout makes the tokens random: set it to null")
    if processor := backend.post_processor:
        # the places of tokens, with their white space, tell which are of an answer
        state = processor.__getstate__()
        processor.__setstate__(state.replace(b'"trim_offsets":true', b'"trim_offsets":false'))
        backend.post_processor = processor
    return backend


def read_settings(folder, config, backend):
    """Return the settings with the special tokens that have a name, and {id: fields} of the added.

    config: the path of tokenizer_config.json.
    """
    settings = read_json(config, {})
    # transformers takes such an object for a token only if it says so
    untyped = [
        key
        for key, value in settings.items()
        if is_of_model(key) and isinstance(value, dict) and "__type" not in value
    ]
    settings = without(settings, *untyped)
    if "added_tokens_decoder" in settings:  # then transformers does not read the older files
        return settings, settings["added_tokens_decoder"] or {}
    mapped = read_json(folder / SPECIAL_MAP, {})
    in_file = added_tokens(backend)
    with errors_in(folder):
        check_older_files(settings, mapped, read_json(folder / ADDED, {}), in_file)
    named = {key: mapped[key] for key in mapped if is_named(key, settings)}
    return settings | named, in_file


def check_older_files(settings, mapped, ids, in_file):
    """Raise InputError if files that older versions of transformers wrote have other tokens.

    mapped: special_tokens_map.json. ids: added_tokens.json. in_file: {id: fields} of the added
    tokens of tokenizer.json. transformers joins such files, by rules that are not repeated here.
    """
    known = {fields["content"]: int(i) for i, fields in in_file.items()}
    others = [text for text in ids if ids[text] != known.get(text)]
    keys = EXTRA, ADDITIONAL  # tokens without a name
    if any(key in mapped for key in keys):  # this list may replace that of the settings
        special = [fields["content"] for fields in in_file.values() if fields["special"]]
        own = [settings[key] for key in keys if isinstance(settings.get(key), list)]
        lists = [*own, *(mapped.get(key) or [] for key in keys)]
        listed = [_text("a special token", value) for values in lists for value in values]
        others += [text for text in listed if text not in special]
    if others:
        raise InputError(
            f"{SPECIAL_MAP} or {ADDED} has {', '.join(map(repr, others[:3]))}, and tokenizer.json "
            f"has not, or as another token: write the folder again {WITH_TRANSFORMERS}"
        )


def is_named(key, settings):
    """Return whether special_tokens_map.json decides on this name of a special token.

    As in transformers, the settings decide on a name of the model's own.
    """
    return key.endswith("_token") and not (is_of_model(key) and key in settings)


def is_of_model(name):
    """Return whether a setting is a special token with a name of the model's own."""
    return name.endswith("_token") and name not in SPECIAL


def class_of_transformers(settings, model_type, path):
    """Return the name of the class that AutoTokenizer of transformers 5 takes, or ""."""
    if model_type == "qwen2":
        return "Qwen2Tokenizer"
    if model_type == "mistral":
        return ""
    default = {"qwen3": "Qwen2Tokenizer", "gemma3_text": "GemmaTokenizer"}.get(model_type)
    name = str(settings.get("tokenizer_class") or default or "").removesuffix("Fast")
    is_llama3 = name == "LlamaTokenizer" and '"ByteLevel"' in read_text(path)
    return "" if is_llama3 else name


def steps_of_class(name, settings):
    """Return (normalizer, pre-tokenizer, fields of the BPE) that transformers 5 gives a class."""
    tk = library("tokenizers")
    steps = tk.pre_tokenizers
    space = settings.get("add_prefix_space")
    if name == "GPT2Tokenizer":
        return None, steps.ByteLevel(add_prefix_space=bool(space)), {}
    if name == "Qwen2Tokenizer":
        words = steps.Split(tk.Regex(QWEN2), "isolated")
        symbols = steps.ByteLevel(add_prefix_space=bool(space), use_regex=False)
        return tk.normalizers.NFC(), steps.Sequence([words, symbols]), {}
    fields: dict = {"byte_fallback": True, "fuse_unk": True}
    if name == "LlamaTokenizer":
        scheme = "always" if settings.get("legacy") else "first"
        if space is not None and not space:
            scheme = "never"
        return None, steps.Metaspace(prepend_scheme=scheme, split=False), fields
    fields["unk_token"] = str(settings["unk_token"])
    return tk.normalizers.Replace(" ", "▁"), steps.Split(" ", "merged_with_previous"), fields


def differences(backend, name, settings, added):
    """Return the parts in which the tokenizer that transformers 5 builds for a class differs.

    settings: with the special tokens of the class. added: {id: fields} of the added tokens that
    transformers reads.
    """
    if name in READERS:
        return []
    if name not in REBUILT:
        return ["a class of its own"]
    tk = library("tokenizers")
    rebuilt = tk.Tokenizer(backend.model)  # the same vocabulary
    special = _add_tokens(rebuilt, settings, added)
    normalizer, pre_tokenizer, fields = steps_of_class(name, settings | special)
    if name == "Qwen2Tokenizer":  # it resets flags such as lstrip
        rebuilt.add_special_tokens([*special.values(), *unnamed_tokens(settings)])
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    if "byte_fallback" in fields:
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
    names = ["ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
    if not all(has(backend.model, symbol) for symbol in alphabet):
        names += ["unk_token", "fuse_unk"]  # else no token is unknown
    models = backend.model, tk.models.BPE({}, [], **fields)
    parts = {
        "normalizer": (states(backend.normalizer), states(normalizer)),
        "pre_tokenizer": (states(backend.pre_tokenizer), states(pre_tokenizer)),
        "model": [(type(m), *(getattr(m, name, None) or None for name in names)) for m in models],
        "added_tokens": (added_tokens(backend), added_tokens(rebuilt)),
    }
    return [part for part, (here, there) in parts.items() if here != there]


def has(vocabulary, text):
    """Return whether a token of a tokenizer or of its model is this text."""
    return vocabulary.token_to_id(text) is not None


def states(component):
    """Return the steps of a normalizer or a pre-tokenizer, with what decides on the tokens."""
    state = json.loads(component.__getstate__()) if component else {}
    steps = state.get("normalizers") or state.get("pretokenizers") or [state]
    return [without(step, "trim_offsets") for step in steps if step]


def added_tokens(backend):
    """Return {id: fields} of the added tokens, as in tokenizer_config.json."""
    tokens = backend.get_added_tokens_decoder()
    return {str(i): token.__getstate__() for i, token in tokens.items()}


def unread_settings(settings):
    """Return the names in tokenizer_config.json that may change the tokens and are not read."""
    known = [*READ, *NEUTRAL, *(settings.get(EXTRA) or ())]  # `save` writes these
    return [
        name
        for name, value in settings.items()
        if (value or (name == "do_lower_case" and value is False))
        and name not in known
        and not name.startswith("_")
        and not name.endswith("_token")
    ]


def _add_tokens(backend, settings, added):
    """Add tokens to those of tokenizer.json, or set flags; return {name: text} of the special ones.

    added: {id: fields} of tokens with an id. The order is that of transformers. Special tokens of
    the vocabulary are added too, so that they are found in a text before it is split.
    """
    objects = [name for name, value in settings.items() if isinstance(value, dict)]
    named = {
        name: settings[name]
        for name in (*SPECIAL, *objects, *settings)
        if name.endswith("_token") and settings.get(name) not in (None, "", True, False)
    }  # True and False: of add_bos_token
    if isinstance(settings.get(EXTRA), dict):
        named |= settings[EXTRA]
    special = {name: _text(name, value) for name, value in named.items()}
    unnamed = unnamed_tokens(settings)
    in_file = backend.get_added_tokens_decoder().values()
    known = {token.content for token in in_file}
    already = {token.content for token in in_file if token.special}
    never_printed = {*special.values(), *already}
    tokens: list = []  # added together: for Gemma's 6,000, one by one takes ten seconds

    def add(text, value):
        fields = value if isinstance(value, dict) else {"special": True}
        fields = without(fields, "__type", "content")
        fields["special"] = fields.get("special") or text in never_printed
        tokens.append(library("tokenizers").AddedToken(text, **fields))

    for _, fields in sorted(added.items(), key=lambda token: int(token[0])):
        add(fields["content"], fields)
        known.add(fields["content"])
    values: dict[str, list] = {}  # those of each text, equal ones once
    for text, value in [*zip(special.values(), named.values()), *unnamed.items()]:
        if value not in values.setdefault(text, []):
            values[text].append(value)
    for text, different in values.items():
        if text not in known:  # of two names of one text, the flags of the last count
            add(text, different[-1])
    backend.add_tokens(tokens)
    return special


def unnamed_tokens(settings):
    """Return {text: text or object with flags} of the special tokens that have no name."""
    extra = settings.get(EXTRA)
    if isinstance(extra, dict):  # with names
        extra = None
    values = extra or settings.get(ADDITIONAL) or []
    return {_text("a special token", value): value for value in values}


def _check_ids(backend, added):
    """Raise InputError if an added token has another id in tokenizer.json."""
    for i, fields in added.items():
        token = backend.token_to_id(fields["content"])
        if token != int(i):
            what = f"the added token {fields['content']!r} has the id {i}"
            raise InputError(f"{what}, but is the token {token} of tokenizer.json")


def _templates(folder, settings):
    """Return {name: chat template}; as in transformers, files replace those of the settings."""
    files = [folder / "chat_template.jinja", *(folder / TEMPLATES).glob("*.jinja")]
    found = {file.stem: read_text(file) for file in files if file.is_file()}
    if "chat_template" in found:
        found = {"default": found.pop("chat_template")} | found
    if not found:
        value = settings.get("chat_template") or {}
        if isinstance(value, list):
            value = {entry["name"]: entry["template"] for entry in value}
        found = value if isinstance(value, dict) else {"default": value}
    if found and "default" not in found:
        raise InputError(
            f"its chat templates are {', '.join(found)}, and none is the default: "
            "write the one to use as chat_template.jinja"
        )
    return {name: _text("chat_template", template) for name, template in found.items()}


def other_templates(names):
    """Return the chat templates that are not read, as a warning names them."""
    return [f"the chat template {name}" for name in sorted({*names} - {"default", "tool_use"})]


def _text(name, value):
    """Return a setting that is text, or an object with its text under `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str):
        raise InputError(f"{name} must be text")
    utf8(value)
    return value


def save(tokenizer, folder):
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    If there is another template for tools, both are in tokenizer_config.json.
    """
    backend = deepcopy(tokenizer.backend)
    if tokenizer.padding:
        backend.enable_padding(**tokenizer.padding)
    if tokenizer.truncation:
        backend.enable_truncation(**tokenizer.truncation)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    template = tokenizer.chat_template
    settings = without(tokenizer.settings, "chat_template")
    if tokenizer.for_tools:
        settings["chat_template"] = [
            {"name": "default", "template": template},
            {"name": "tool_use", "template": tokenizer.for_tools},
        ]
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
