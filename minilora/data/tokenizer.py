"""Turn text into token ids and back: bytes for the built-in models, a tokenizer for real models.

A chat template is a Jinja program that comes with a model, so it runs in a sandbox. The globals and
options of Jinja are those of transformers, with which the authors of templates test them.
"""

import importlib
import json
import re
from bisect import bisect_left, bisect_right
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from itertools import accumulate, chain, pairwise
from typing import Any

from ..config import InputError

SPECIAL = (  # names in the order in which transformers adds them
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"
)  # fmt: skip


@dataclass(frozen=True)
class ByteTokenizer:
    """Each token is a byte of UTF-8. Byte 0xFF never occurs in UTF-8, so id 255 ends a sequence."""

    vocab_size: int = 256
    eos_token_id: int = 255
    chat_template: str | None = None
    chat_date: str | None = None
    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text, add_special_tokens=True):
        """Return ids from 0 to 254. There are no special tokens to add."""
        return list(utf8(text))

    def encode_pieces(self, pieces, add_special_tokens=True):
        """Return the ids of each piece of a text."""
        return [self.encode(piece) for piece in pieces]

    def decode(self, ids):
        """Return the text without the end token. Invalid UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if i != self.eos_token_id).decode("utf-8", errors="replace")


def utf8(text):
    """Return the text's bytes in UTF-8; raise InputError for a lone surrogate."""
    with one_error("the text is not Unicode"):
        return text.encode()


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a real model, which `formats` reads from a folder or a GGUF file."""

    backend: Any  # a tokenizers.Tokenizer
    eos_token_id: int
    special: dict  # the texts of bos_token, eos_token, …
    chat_template: str | None
    settings: dict  # tokenizer_config.json, for writing
    source: str  # its file, for messages
    chat_date: str | None = None  # the date for chat templates, YYYY-MM-DD; None: today
    for_tools: str | None = None  # the chat template of rows with tools, if it is another one
    padding: dict | None = None  # of a batch, in tokenizer.json, for writing
    truncation: dict | None = None
    eos_token_ids: tuple[int, ...] = ()  # of the model's config: each of them ends generation

    @property
    def vocab_size(self):
        """The largest id plus one; ids may have gaps."""
        return 1 + max(self.backend.get_vocab().values(), default=-1)

    def encode(self, text, add_special_tokens=True):
        """Return ids, with special tokens before the text, but with no second BOS.

        A tokenizer that also adds tokens after a text does not do so here, because the text of a
        prompt goes on. A chat template writes all special tokens: encode its text without others.
        """
        return self._encoding(text, add_special_tokens)[0]

    def _encoding(self, text, add_special_tokens):
        """Return (ids, the start and the end of each token in the text); see `encode`."""
        utf8(text)
        bos = self.special.get("bos_token")
        add = add_special_tokens and not (bos and text.startswith(bos))
        with one_error(f"{self.source} cannot encode this text"):
            encoding = self.backend.encode(text, add_special_tokens=add)
        end = len(encoding.ids)
        while end > 1 and encoding.special_tokens_mask[end - 1]:
            end -= 1
        return encoding.ids[:end], encoding.offsets[:end]

    def encode_pieces(self, pieces, add_special_tokens=True):
        """Return the ids of each piece of a text: prompts and answers in turn, first a prompt.

        Together, they are the ids of the whole text. The exception is an answer that would change
        the tokens before it. It is then encoded by itself: a model that generates it reads the text
        before it alone. If this changes the text (some tokenizers begin each text with a space),
        the ids are those of the whole text. A token of a prompt and an answer is of the answer.
        """
        first = next((i for i, piece in enumerate(pieces) if piece), 0)
        ids = [
            self.encode(piece, add_special_tokens and i == first) if piece else []
            for i, piece in enumerate(pieces)
        ]
        whole = "".join(pieces)
        all_ids = self.encode(whole, add_special_tokens)
        if list(chain(*ids)) == all_ids:
            return ids  # the usual case, in which the rest would only take longer
        parts: list = [([], [])]  # of pieces that are encoded together; see `_cut`
        for i, piece in enumerate(pieces):
            texts, stops = parts[-1]
            if i % 2:
                before = "".join(texts)
                add = add_special_tokens and len(parts) == 1
                alone = self.encode(before, add) if before else []
                stops[-1] = len(alone)
                if self.encode(before + piece, add)[: len(alone)] != alone:
                    texts, stops = [], []
                    parts.append((texts, stops))
            texts.append(piece)
            stops.append(None)
        ids = []
        for n, (texts, stops) in enumerate(parts):
            ids += self._cut(texts, stops, add_special_tokens and n == 0)
        decode = partial(self.backend.decode, skip_special_tokens=False)
        # the whole loses the white space before some added tokens, as <think> with lstrip
        if decode(list(chain(*ids))) in (decode(all_ids), whole):
            return ids
        ends = [end for _, end in self._encoding(whole, add_special_tokens)[1]]
        counts: list = []
        for i, end in enumerate(accumulate(map(len, pieces))):
            # an answer that an empty prompt follows ends where the next answer begins
            begins_answer = i % 2 == 0 or pieces[i + 1 : i + 2] == [""]
            # BOS, which is before the text, is of the first piece with text
            counts.append(bisect_right(ends, end) * bool(end) if begins_answer else None)
        return self._cut(pieces, counts, add_special_tokens)

    def _cut(self, texts, stops, add_special_tokens):
        """Encode the texts as one; return the ids of each.

        stops: the number of ids up to the end of each text; None: those that begin before its end.
        """
        ids, offsets = self._encoding("".join(texts), add_special_tokens)
        starts = [start for start, _ in offsets]
        ends = accumulate(map(len, texts))
        stops = [bisect_left(starts, end) if n is None else n for n, end in zip(stops, ends)]
        return [ids[a:b] for a, b in pairwise([0, *accumulate(stops[:-1], max), len(ids)])]

    def decode(self, ids, skip_special_tokens=True):
        """Return the text, without special tokens unless `skip_special_tokens` is false."""
        with one_error(f"{self.source} cannot decode these tokens"):
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def render(self, messages, add_generation_prompt=False, tools=None):
        """Return the text of a chat by the chat template, optionally with the generation prompt."""
        use_other = tools is not None and self.for_tools
        program = compiled(self.for_tools if use_other else self.chat_template)
        now = datetime.fromisoformat(self.chat_date) if self.chat_date else datetime.now()
        with one_error("the chat template rejects these messages"):
            return program.render(
                messages=[normalized(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=now.strftime,
                **self.special,
            )


def normalized(message):
    """Return a message as transformers gives it to a chat template.

    A key whose value is null is absent, because a template would print None; the thoughts of an
    answer have the names that templates read.
    """
    message = {key: value for key, value in message.items() if value is not None}
    for key in ("reasoning_content", "thinking", "reasoning"):
        if key in message:
            return {"thinking": message[key]} | message | {"reasoning_content": message[key]}
    return message


@cache
def compiled(template):
    """Return a compiled chat template; raise InputError if it is not Jinja, or if it is None."""
    if template is None:
        raise InputError("the tokenizer has no chat template")

    def raise_exception(message):
        raise ValueError(message)

    environment = library("jinja2.sandbox").ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # Jinja's own tojson escapes HTML
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    # transformers has a block {% generation %} … {% endgeneration %} around the assistant's text.
    # It prints its content unchanged, as {% with %} … {% endwith %} does.
    template = re.sub(r"(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})", r"\1with\2", template)
    with one_error("the chat template is not Jinja"):
        return environment.from_string(template)


@contextmanager
def one_error(what):
    """Turn any exception in the block, also a panic of Rust, into an InputError with `what`."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a template can raise anything; panics are BaseExceptions
        reason = (str(error) or repr(error)).splitlines()[0]
        raise InputError(f"{what}: {reason}") from error


def library(name):
    """Import a package of the `hf` extra; raise InputError with the install command if missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"real models need the package {name}: pip install 'minilora[hf]'"
        ) from error
