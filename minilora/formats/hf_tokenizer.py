"""Read and write the tokenizer files of a Hugging Face folder, as transformers does."""

import json
import warnings

from ..config import InputError
from ..data.tokenizer import SPECIAL, PretrainedTokenizer, library, one_error, utf8
from ..tree import without
from .files import check_start, errors_in, read_json, read_text, warn_of_unread, write_json

SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATES = "additional_chat_templates"
FILES = (  # that are read; the first three are written
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", SPECIAL_MAP, ADDED,
    f"{TEMPLATES}/tool_use.jinja",
)  # fmt: skip
EXTRA = "extra_special_tokens"
# of tokenizer_config.json, next to *_token
READ = ("added_tokens_decoder", "additional_special_tokens", EXTRA, "chat_template")
# without effect on the tokens here, as names that begin with _, and as False (but do_lower_case)
NEUTRAL = (
    "auto_map", "backend", "clean_up_tokenization_spaces", "errors", "is_local", "legacy",
    "local_files_only", "max_length", "merges_file", "model_input_names", "model_max_length",
    "name_or_path", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "processor_class",
    "sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_class", "tokenizer_file",
    "trust_remote_code", "truncation_side", "truncation_strategy", "use_default_system_prompt",
    "use_fast", "vocab_file", "vocab_size",
)  # fmt: skip

# what transformers 5 builds from the vocabulary for a class: the types of normalizer and
# pre-tokenizers; other classes read tokenizer.json
BUILT = {
    "LlamaTokenizer": ["Metaspace"], "CodeLlamaTokenizer": ["Metaspace"],
    "GPT2Tokenizer": ["ByteLevel"], "GemmaTokenizer": ["Replace", "Split"],
    "Qwen2Tokenizer": ["NFC", "Split", "ByteLevel"],
}  # fmt: skip


def from_folder(folder, eos_token_id=None, model_type=""):
    """Return the tokenizer of a Hugging Face folder, with `eos_token_id` if the files name none.

    Warns of settings that are not read, and if AutoTokenizer builds another tokenizer for this
    `model_type`.
    """
    path = folder / "tokenizer.json"
    backend = read_backend(path)
    config = folder / "tokenizer_config.json"
    settings = read_json(config, {})
    with errors_in(config):
        unread = unread_settings(settings)
    warn_of_unread(config, unread, "If these change the tokens, use transformers")
    name = class_of_transformers(settings, model_type)
    here = [*types(backend.normalizer), *types(backend.pre_tokenizer)]
    is_llama3 = name == "LlamaTokenizer" and "ByteLevel" in here  # AutoTokenizer reads the file
    if here != BUILT.get(name, here) and not is_llama3:
        what = f"{path}: the {name} of AutoTokenizer has other steps, and may make other tokens"
        warnings.warn(f"{what}: PreTrainedTokenizerFast reads the file as it is", stacklevel=4)
    added = {}
    if "added_tokens_decoder" not in settings:  # with it, transformers does not read these files
        settings |= read_special_map(folder, settings)
        added = read_json(folder / ADDED, {})
    with errors_in(config):
        special = _add_tokens(backend, settings, added)
        eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else eos_token_id
        if eos is None:
            raise InputError("it names no eos_token")
        templates = _templates(folder, settings)
    others = [f"the chat template {name}" for name in templates.keys() - {"default", "tool_use"}]
    warn_of_unread(folder, sorted(others), "`default` and `tool_use` are read")
    return PretrainedTokenizer(
        backend,
        eos,
        special,
        templates.get("default"),
        settings | special,
        str(path),
        for_tools=templates.get("tool_use"),
    )


def read_backend(path):
    """Return the Tokenizer of the library tokenizers in a tokenizer.json."""
    if not path.is_file():
        raise InputError(
            f"{path.parent} has no tokenizer.json: write one with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    check_start(path)
    text = read_text(path)
    with one_error(f"{path} is not a tokenizer"):
        backend = library("tokenizers").Tokenizer.from_str(text)
    if getattr(backend.model, "dropout", None):
        raise InputError(f"{path}: dropout makes the tokens random: set it to null")
    backend.no_padding()
    backend.no_truncation()
    return backend


def read_special_map(folder, settings):
    """Return what special_tokens_map.json adds to the settings, joined as in transformers."""
    kept = {"additional_special_tokens"} & settings.keys()
    mapped = without(read_json(folder / SPECIAL_MAP, {}), *kept)
    own = settings.get(EXTRA) or settings.get("additional_special_tokens")
    more = mapped.get(EXTRA)
    if own and isinstance(more, list):
        names = {EXTRA: own, "additional_special_tokens": more}
        mapped |= names if isinstance(own, dict) else {EXTRA: own + more}
    return mapped


def class_of_transformers(settings, model_type):
    """Return the name of the class that AutoTokenizer of transformers 5 takes, or ""."""
    if model_type == "qwen2":
        return "Qwen2Tokenizer"
    if model_type == "mistral":
        return ""
    default = {"qwen3": "Qwen2Tokenizer", "gemma3_text": "GemmaTokenizer"}.get(model_type)
    return str(settings.get("tokenizer_class") or default or "").removesuffix("Fast")


def types(component):
    """Return the types of the steps of a normalizer or a list of pre-tokenizers; [] of None."""
    state = json.loads(component.__getstate__()) if component else {}
    steps = state.get("normalizers") or state.get("pretokenizers") or [state]
    return [step["type"] for step in steps if step]


def unread_settings(settings):
    """Return the names in tokenizer_config.json that may change the tokens and are not read."""
    known = [*READ, *NEUTRAL, *(settings.get(EXTRA) or ())]  # `save` writes these
    if "Llama" in str(settings.get("tokenizer_class")):
        known.append("add_prefix_space")  # Llama's has one anyway
    return [
        name
        for name, value in settings.items()
        if (value or (name == "do_lower_case" and value is False))
        and name not in known
        and not name.startswith("_")
        and not name.endswith("_token")
    ]


def _add_tokens(backend, settings, added):
    """Add the tokens that tokenizer.json lacks; return {name: text} of the special tokens.

    added: {text: id}, of added_tokens.json. The order is that of transformers. It adds special
    tokens of the vocabulary too, so that they are found in a text before it is split.
    """
    named = {
        name: settings[name]
        for name in (*SPECIAL, *settings)
        if name.endswith("_token") and settings.get(name) not in (None, "", True, False)
    }  # True and False: of add_bos_token
    extra = settings.get(EXTRA)
    if isinstance(extra, dict):
        named |= extra
        extra = None
    extra = extra or settings.get("additional_special_tokens") or []
    special = {name: _text(name, value) for name, value in named.items()}
    texts = [*special.values(), *(_text("a special token", value) for value in extra)]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}

    def add(text, fields):
        fields = without(fields, "__type", "content") if isinstance(fields, dict) else {}
        fields["special"] = fields.get("special", False) or text in texts
        backend.add_tokens([library("tokenizers").AddedToken(text, **fields)])
        known.add(text)

    tokens = settings.get("added_tokens_decoder") or {
        i: {"content": text} for text, i in added.items() if text not in known
    }
    for i, fields in sorted(tokens.items(), key=lambda token: int(token[0])):
        add(fields["content"], fields)
        if backend.token_to_id(fields["content"]) != int(i):
            raise InputError(
                f"the added token {fields['content']!r} has the id {i}, but is the token "
                f"{backend.token_to_id(fields['content'])} of tokenizer.json"
            )
    for text, value in zip(texts, (*named.values(), *extra)):
        if text not in known:
            add(text, value)
    return special


def _templates(folder, settings):
    """Return {name: chat template}; as in transformers, files replace those of the settings."""
    files = [folder / "chat_template.jinja", *(folder / TEMPLATES).glob("*.jinja")]
    found = {file.stem: read_text(file) for file in files if file.is_file()}
    if "chat_template" in found:
        found["default"] = found.pop("chat_template")
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
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
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
