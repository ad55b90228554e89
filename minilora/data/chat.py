"""A conversation with a model: its prompt as in a row, and the message of an answer."""

from contextlib import suppress
from functools import partial
from itertools import chain, groupby, product, takewhile

from ..config import InputError
from .encoding import MARK, encode, split_turns
from .rows import warn_once

THOUGHT = "20000000000000002"  # as MARK
QUESTION = {"role": "user", "content": MARK}


def chat_ids(tokenizer, messages):
    """Return the token ids of a conversation up to the next answer, as in a row.

    An answer that would join with the text before it is encoded by itself; see `encode_pieces`.
    """
    row = {"messages": [*messages, {"role": "assistant", "content": MARK}]}
    try:
        *pieces, _ = chain(*split_turns(row, tokenizer))
    except InputError:  # the template writes earlier answers in another way: there is no such row
        pieces = [tokenizer.render(messages, add_generation_prompt=True)]
    # the template writes the special tokens
    return list(chain(*tokenizer.encode_pieces(pieces, add_special_tokens=False)))


def answer_message(tokenizer, messages, prompt, ids):
    """Return the message of the answer `ids`: its texts, without what the chat template adds.

    A model can have learned to write that, too: a space before the content, the marks of thoughts,
    or what comes after the content up to the token that ends generation.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    found = possible_messages(tokenizer, messages, prompt, ids)
    possible = [*{str(message): message for message in found}.values()]
    # first the messages that are shortest as an earlier answer, because some templates leave out
    # thoughts there; of these the shortest, because some tokenizers leave out the first space
    sizes = []
    for message in possible:
        with suppress(InputError):  # the template writes earlier answers in another way
            later = tokenizer.render([*messages, message, QUESTION])
            sizes.append((len(later), len("".join(message.values())), message))
    said = [*prompt[-1:], *ids]
    rows = []
    for *_, message in sorted(sizes, key=lambda size: size[:2]):
        with suppress(InputError):
            tokens = end_of_row(tokenizer, messages, message)
            if tokens[: len(said)] == said:
                return message
            rows.append((tokens, message))
            # a template can write it as the model did only before a question
            later = chat_ids(tokenizer, [*messages, message, QUESTION])
            if later[: len(prompt) + len(ids)] == [*prompt, *ids]:
                return message
    text = decode(said)
    for tokens, message in rows:  # a model can split the text into other tokens
        if "\ufffd" not in text and decode(tokens).startswith(text):  # not within a character
            return message
    if rows or loses_prompt(tokenizer, [*messages, possible[0], QUESTION], prompt, ids):
        warn_once("the chat template writes this answer in another way than the model did")
    return possible[0]


def loses_prompt(tokenizer, messages, prompt, ids):
    """Return whether a chat has all of an answer, but not the end of the prompt before it.

    A template can begin the thoughts in the prompt, and leave them out of earlier answers: without
    its beginning, a half thought becomes an answer.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    with suppress(InputError):
        text = tokenizer.render(messages)
        said = decode(ids).strip()  # which a template may do
        return bool(said) and said in text and not text.startswith(decode([*prompt, *ids]))
    return False


def possible_messages(tokenizer, messages, prompt, ids):
    """Yield messages of the assistant that could be written as the answer `ids`."""
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    # some tokenizers write a space before each text, also after an added token, as <think>
    added = tokenizer.backend.get_added_tokens_decoder()
    sections = groupby(ids, lambda token: token in added)
    parts = [decode([*section]) for _, section in sections]
    texts = [
        decode([*prompt, *ids]).removeprefix(decode(prompt)),
        "".join(parts),
        "".join(part.removeprefix(" ") for part in parts),
    ]
    asked = tokenizer.render(messages, add_generation_prompt=True)
    for thoughts in ({}, {"reasoning_content": THOUGHT}):
        marked = {"role": "assistant", "content": MARK} | thoughts
        answered = tokenizer.render([*messages, marked]).removeprefix(asked)
        before, _, after = answered.partition(MARK)
        opens, _, between = before.partition(THOUGHT)
        afters = [after]
        with suppress(InputError):  # the template rejects the question or the answer before it
            afters.append(tokenizer.render([*messages, marked, QUESTION]).partition(MARK)[2])
        closings = list(chain(*(possible_closings(tokenizer, after) for after in afters)))
        for text, closing in product(texts, closings):
            said = text.removesuffix(closing).removeprefix(opens)
            if not thoughts:
                yield {"role": "assistant", "content": said}
                yield {"role": "assistant", "content": said.removeprefix(" ")}
            elif between and between in said:
                first, _, last = said.partition(between)
                yield {"role": "assistant", "content": last, "reasoning_content": first}


def possible_closings(tokenizer, after):
    """Yield texts that a template could have added to an answer, of the text after its content."""
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    written = tokenizer.encode(after, add_special_tokens=False)
    yield decode([*takewhile(lambda token: token not in tokenizer.eos_token_ids, written)])
    for end in filter(None, (decode([token]) for token in tokenizer.eos_token_ids)):
        yield after.partition(end)[0]


def end_of_row(tokenizer, messages, answer):
    """Return the token ids of the answer in a row, and the one before them.

    If the template writes earlier answers in another way, there is no row: the ids are those of the
    text after the prompt. Raises InputError if the conversation does not begin with the prompt.
    """
    try:
        tokens, _, in_answer = encode({"messages": [*messages, answer]}, tokenizer)
        return tokens[len(tokens) - in_answer[::-1].index(0) - 1 :]
    except InputError:
        asked = tokenizer.render(messages, add_generation_prompt=True)
        whole = tokenizer.render([*messages, answer])
        if not whole.startswith(asked):
            raise
        pieces = [asked, whole.removeprefix(asked)]
        before, tokens = tokenizer.encode_pieces(pieces, add_special_tokens=False)
        return [*before[-1:], *tokens]
