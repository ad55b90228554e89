"""From text to token ids and back: bytes for the embedded bases, a real model's own for the rest.

A chat template is a Jinja program that comes with a model, so it is run in a sandbox; its globals
and switches are those of transformers, so that a template sees what its author tested it with.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..config import InputError, require
from ..formats.files import first_line, library, read_json, write_json

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class ByteTokenizer:
    """A token is a byte of UTF-8. Byte 0xFF never occurs in UTF-8, so id 255 ends a sequence."""

    vocab_size: int = 256
    eos_token_id: int = 255
    has_chat_template: bool = False

    def encode(self, text, add_special_tokens=True):
        """Return ids in 0..254; there are no special tokens to add."""
        return list(utf8(text))

    def decode(self, ids):
        """Return the text without the end; what is no UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if i != self.eos_token_id).decode("utf-8", errors="replace")

    def render(self, messages, add_generation_prompt=False):
        raise InputError("this base has no chat template: use prompt and completion, or text rows")


def utf8(text):
    """Return the text's bytes; InputError for a lone surrogate, which no UTF-8 text can hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate {text[error.start]!r} at character {error.start}, "
            "which is no text"
        ) from error


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A model's own tokenizer, of `from_folder` here or of `gguf_tokenizer.from_metadata`."""

    backend: Any  # a tokenizers.Tokenizer
    eos_token_id: int
    special: dict = field(default_factory=dict)  # the texts of bos_token, eos_token, …
    chat_template: str | None = None
    settings: dict = field(default_factory=dict)  # tokenizer_config.json, to be written back

    @property
    def vocab_size(self):
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self):
        return self.chat_template is not None

    def encode(self, text, add_special_tokens=True):
        """Return ids, special tokens' among them; a text that starts with BOS gets no other."""
        utf8(text)
        bos = self.special.get("bos_token")
        add = add_special_tokens and not (bos and text.startswith(bos))
        return self.backend.encode(text, add_special_tokens=add).ids

    def decode(self, ids):
        """Return the text without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def render(self, messages, add_generation_prompt=False):
        """Return the chat by the model's own template, its generation prompt last if asked."""
        require(self.chat_template is not None, "this base has no chat template")
        program = compiled(self.chat_template)
        try:
            return program.render(
                messages=messages, tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, **self.special,
            )  # fmt: skip
        except Exception as error:  # a template is a program of somebody else's: anything goes
            raise InputError(
                f"the chat template refuses these messages: {first_line(error)}"
            ) from error

    def save(self, folder):
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, for transformers."""
        folder = Path(folder)
        (folder / "tokenizer.json").write_text(self.backend.to_str(), encoding="utf-8")
        settings = {k: v for k, v in self.settings.items() if k != "chat_template"}
        write_json(folder / "tokenizer_config.json", settings)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def from_folder(folder, eos_token_id=None):
    """Return the tokenizer of a Hugging Face folder; `eos_token_id` is for one that names none."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    require(
        path.is_file(),
        f"{folder} has no tokenizer.json; write one with transformers: "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
    )
    tokenizers = library("tokenizers")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path} is no tokenizer: {first_line(error)}") from error
    backend.no_padding()
    backend.no_truncation()
    settings = read_json(folder / "tokenizer_config.json", default={})
    special = {name: _text(folder, name, settings[name]) for name in SPECIAL if settings.get(name)}
    eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else eos_token_id
    require(eos is not None, f"{folder}/tokenizer_config.json names no eos_token of tokenizer.json")
    return PretrainedTokenizer(backend, eos, special, _template(folder, settings), settings)


def _text(folder, name, value):
    """Return a setting that is text, or an object with its text under `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    require(isinstance(value, str), f"{folder}/tokenizer_config.json: {name} must be text")
    return value


def _template(folder, settings):
    """Return the file's template, as in transformers; else the settings', or their default one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict))
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return None if template is None else _text(folder, "chat_template", template)


@cache
def compiled(template):
    """Compile a chat template; InputError if it is no Jinja."""
    jinja2, sandbox = library("jinja2"), library("jinja2.sandbox")

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # Jinja's own tojson escapes HTML
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # transformers marks the assistant's text with a block of its own, {% generation %} …
    # {% endgeneration %}, which prints its content unchanged: here, an `if` that is always true.
    for name, plain in (("generation", "if true"), ("endgeneration", "endif")):
        template = re.sub(rf"(\{{%[-+]?\s*){name}(\s*[-+]?%\}})", rf"\g<1>{plain}\2", template)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template is no Jinja: {first_line(error)}") from error
