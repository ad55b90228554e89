"""Read and write the three tokenizer files of a Hugging Face folder."""

from pathlib import Path

from ..config import InputError
from ..data.tokenizer import SPECIAL, PretrainedTokenizer, library, one_error, utf8
from .files import check_start, errors_in, read_json, read_text, write_json

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def from_folder(folder, eos_token_id=None):
    """Return the tokenizer of a Hugging Face folder, with `eos_token_id` if the files name none."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        way = "write one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        raise InputError(f"{folder} has no tokenizer.json: {way}")
    with one_error(f"{path} is not a tokenizer"):
        text = path.read_text(encoding="utf-8")
        check_start(path, text.encode())
        backend = library("tokenizers").Tokenizer.from_str(text)
    backend.no_padding()
    backend.no_truncation()
    settings = read_json(folder / "tokenizer_config.json", default={})
    special = {name: _text(folder, name, settings[name]) for name in SPECIAL if settings.get(name)}
    eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else eos_token_id
    if eos is None:
        raise InputError(f"{folder}/tokenizer_config.json names no eos_token of tokenizer.json")
    return PretrainedTokenizer(
        backend, eos, special, _template(folder, settings), settings, str(path)
    )


def _text(folder, name, value):
    """Return a setting that is text, or an object with its text under `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    with errors_in(f"{folder}/tokenizer_config.json"):
        if not isinstance(value, str):
            raise InputError(f"{name} must be text")
        utf8(value)
    return value


def _template(folder, settings):
    """Return the chat template of the file, else of the settings (there, `default` of a list)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict))
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return None if template is None else _text(folder, "chat_template", template)


def save(tokenizer, folder):
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder = Path(folder)
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
    settings = {k: v for k, v in tokenizer.settings.items() if k != "chat_template"}
    write_json(folder / "tokenizer_config.json", settings)
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
