"""Read and write the three tokenizer files of a Hugging Face folder."""

from ..config import InputError
from ..data.tokenizer import SPECIAL, PretrainedTokenizer, library, one_error, utf8
from ..tree import without
from .files import check_start, errors_in, read_json, read_text, write_json

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def from_folder(folder, eos_token_id=None):
    """Return the tokenizer of a Hugging Face folder, with `eos_token_id` if the files name none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no tokenizer.json: write one with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    check_start(path)
    text = read_text(path)
    with one_error(f"{path} is not a tokenizer"):
        backend = library("tokenizers").Tokenizer.from_str(text)
    backend.no_padding()
    backend.no_truncation()
    config = folder / "tokenizer_config.json"
    settings = read_json(config, {})
    with errors_in(config):
        special = {name: _text(name, settings[name]) for name in SPECIAL if settings.get(name)}
        eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else eos_token_id
        if eos is None:
            raise InputError("it names no eos_token of tokenizer.json")
        template = settings.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template is not None:
            template = _text("chat_template", template)
    own = folder / "chat_template.jinja"
    if own.is_file():
        template = read_text(own)
    return PretrainedTokenizer(backend, eos, special, template, settings, str(path))


def _text(name, value):
    """Return a setting that is text, or an object with its text under `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str):
        raise InputError(f"{name} must be text")
    utf8(value)
    return value


def save(tokenizer, folder):
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", without(tokenizer.settings, "chat_template"))
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
