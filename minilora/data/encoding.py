"""Turn rows into examples: the answers of a chat template, their end tokens, and the mask."""

from collections import Counter
from functools import partial
from itertools import chain
from typing import Any

from ..batching import Example
from ..config import InputError, TrainConfig
from ..tree import without
from .rows import DataRow, check_row, has_null_values, messages_of, parts_of, unread_keys, warn
from .template_checks import (
    EMPTY,
    HIDDEN_TOOLS,
    keys_of_texts,
    mark_message,
    trouble_with_template,
    unread_message_keys,
)

ONLY_ANSWER = "the chat template needs a message before the answer: give it, or use a text row"
REWRITTEN = (
    "the chat template changes the messages before an answer when the answer follows: use text rows"
)
MARK = "10000000000000001"  # a text that no template changes
ENDED = "the chat template writes an end token inside an answer: use text rows"


def encode_rows(
    rows: list[DataRow], tokenizer: Any, train_config: TrainConfig
) -> tuple[list[Example], int]:
    """Return (examples that have a target, cut to max_seq_length; number of these that are cut).

    Warnings on standard error name the keys that are not read, and count the rows that are cut,
    those with a null in the arguments of a call or in a tool, those that have an answer without an
    end token before the last answer, those before whose last answer generation reads other tokens,
    and those that cannot be learned and are left out: rows with an empty answer, with the text of
    the end token inside an answer, with messages, tools or parts of an answer that the chat
    template does not show, with arguments of calls as text that it does not write as an object, or
    without a target token within max_seq_length.
    Raises InputError if no row is left, or naming the row that the chat template rejects, or whose
    answer has an end token that the template writes inside it.
    A model reads at most `max_position_embeddings` tokens; this function does not know the number.
    """
    return encode_usable(rows, tokenizer, train_config)[:2]


def encode_usable(rows, tokenizer, train_config):
    """Return the result of `encode_rows`, {reason: number of rows left out}, and the other rows."""
    if isinstance(rows, (str, dict)):
        raise InputError("rows must be a list of dicts, as minilora.load_rows returns")
    rows = list(rows)
    num_cut = 0
    num_other = 0
    examples = []
    used = []
    left_out = Counter[str]()
    checked = [check_row(row, f"rows[{i}]") for i, row in enumerate(rows)]
    keys = unread_keys(rows)
    if keys:
        warn(f"keys of the rows that are not read: {keys}")
    keys = ", ".join(sorted(unread_message_keys(checked, tokenizer)))
    if keys:
        warn(f"keys of the messages that the chat template does not read: {keys}")
    num_null = sum(map(has_null_values, checked))
    if num_null:
        what = "have null in the arguments of a call or in a tool, and it counts as a value"
        warn(f"{num_null} of {len(rows)} rows {what}: datasets can write it for keys of other rows")
    for i, row in enumerate(checked):
        try:
            example, is_cut, is_other, reason = encode_row(row, tokenizer, train_config)
        except InputError as error:
            said = " ".join(m.get("content") or "" for m in messages_of(row))
            raise InputError(f"rows[{i}], {said[:40]!r}: {error}") from error
        if reason:
            left_out[reason] += 1
        else:
            examples.append(example)
            used.append(row)
            num_cut += is_cut
            num_other += is_other
    if not examples:
        raise InputError(f"no row can be learned: {' and '.join(left_out) or 'there is none'}")
    for reason, n in left_out.items():
        warn(f"{n} of {len(rows)} rows are left out: {reason}")
    ends = end_tokens(tokenizer)
    num_open = sum(is_open(example, ends) for example in examples)
    if num_open:
        what = "have an answer without an end token: the chat template writes none there"
        warn(f"{num_open} of {len(rows)} rows {what}")
    if num_other:
        what = "have other tokens before the last answer than generation reads"
        why = "the tokenizer joins the white space at the end of the prompt with the answer"
        warn(f"{num_other} of {len(rows)} rows {what}: {why}")
    if num_cut:
        cut = f"are cut to `max_seq_length` {train_config.max_seq_length}"
        warn(f"{num_cut} of {len(rows)} rows {cut}")
    return examples, num_cut, left_out, used


def encode_row(row, tokenizer, train_config):
    """Return (Example, whether it is cut, result of `has_other_prompt`, why it is left out or "").

    What cuts it is `max_seq_length`.
    """
    reason = reason_to_leave_out(row, tokenizer)
    if reason:
        return None, False, False, reason
    length = train_config.max_seq_length
    turns = split_turns(row, tokenizer)
    full = encode_turns(row, turns, tokenizer, train_config.mask_prompt)
    example = Example(*(part[:length] for part in full))
    if not any(example.mask[1:]):
        reason = f"no target token within `max_seq_length` {length}"
    is_other = has_other_prompt(row, turns, example, tokenizer)
    return example, len(full.tokens) > length, is_other, reason


def has_other_prompt(row, turns, example, tokenizer):
    """Return whether generation, which reads the prompt alone, reads other tokens than the row has.

    White space at the end of a prompt can be a part of the first token of an answer.
    """
    *before, _ = chain(*turns)
    add_special_tokens = not is_chat(row, tokenizer)
    prompt = list(chain(*tokenizer.encode_pieces(before, add_special_tokens)))
    end = len(prompt)
    row_goes_on = example.answer[end : end + 1] == [0]
    return row_goes_on or example.tokens[:end] != prompt[: len(example.tokens)]


def is_open(example, ends):
    """Return whether an answer before the last one has no end token."""
    steps = zip(example.tokens, example.answer, example.answer[1:])
    return any(now > after and token not in ends for token, now, after in steps)


def reason_to_leave_out(row, tokenizer):
    """Return why a row cannot be learned, or "".

    The reasons are an empty answer, an answer that the text of the end token would end too early,
    messages or tools that the template drops, and arguments as text that it does not write as an
    object.
    """
    messages = messages_of(row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not all(m.get("tool_calls") or (m.get("content") or "").strip() for m in answers):
        return EMPTY
    if "text" not in row and any(ends_early(message, tokenizer) for message in answers):
        return "the text of the end token inside an answer"
    tools = row.get("tools") or None
    if is_chat(row, tokenizer):
        return trouble_with_template(messages, tools, tokenizer)
    return HIDDEN_TOOLS if tools else ""


def ends_early(answer, tokenizer):
    """Return whether the text of an end token is in an answer, and more than its written end."""
    encode = partial(tokenizer.encode, add_special_tokens=False)
    first, *rest = encode((answer.get("content") or "").strip()) or [None]
    others = encode(str(without(answer, "content")))
    return not end_tokens(tokenizer).isdisjoint([first, *rest[:-1], *others])


def end_tokens(tokenizer):
    """Return the ids that end generation: that of the tokenizer, and those of the model."""
    return {tokenizer.eos_token_id, *tokenizer.eos_token_ids}


def split_turns(row, tokenizer):
    """Return [(text before an answer, the answer), …] as the model reads them.

    A text row has no text before its answer. If a template rewrites an earlier answer (some remove
    its thoughts), the text of that answer includes all up to the next one; `encode` masks the rest.
    """
    if "text" in row:
        return [("", row["text"])]
    if not tokenizer.chat_template:
        if "messages" in row:
            raise InputError("the model has no chat template: use prompt and completion, or text")
        prompt, separator, completion = parts_of(row)
        return [(prompt + separator, completion)]
    messages = messages_of(row)
    render = partial(tokenizer.render, tools=row.get("tools") or None)
    whole = render(messages)
    turns = []
    end = 0
    # most chat templates need a message before an answer
    answers = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"] or [0]
    try:
        befores = [render(messages[:i], add_generation_prompt=True) for i in answers]
    except InputError as error:
        raise error if answers != [0] else InputError(ONLY_ANSWER) from error
    for i, before, following in zip(answers, befores, [*befores[1:], whole]):
        if not (whole.startswith(before) and len(before) >= end):
            raise InputError(REWRITTEN if i else ONLY_ANSWER)
        here = render(messages[: i + 1])
        start = end
        end = len(here)
        if not whole.startswith(here):
            end = len(following)
            # an end token after the mark would be of the next message
            marked = messages[i + 1] | {"content": MARK}
            shown = render([*messages[: i + 1], marked, *messages[i + 2 :]]).partition(MARK)[0]
            answer = tokenizer.encode(shown[len(before) :], add_special_tokens=False)
            if end_tokens(tokenizer).isdisjoint(answer):
                raise InputError(REWRITTEN)
        turns.append((whole[start : len(before)], whole[len(before) : end]))
    return turns


def is_chat(row, tokenizer):
    """Return whether the chat template writes the row, with all special tokens."""
    return bool(tokenizer.chat_template) and "text" not in row


def split_row(row, tokenizer):
    """Return (text before the last answer, the last answer) as the model reads them."""
    *before, answer = chain(*split_turns(row, tokenizer))
    return "".join(before), answer


def encode(row, tokenizer, mask_prompt=False):
    """Return the Example of a row; see `encode_turns`."""
    return encode_turns(row, split_turns(row, tokenizer), tokenizer, mask_prompt)


def encode_turns(row, turns, tokenizer, mask_prompt):
    """Return the Example of a row that is split into turns, with the end of the sequence.

    With `mask_prompt`, the targets are all answers with their end tokens (as assistant_only_loss in
    TRL). Exact match compares these tokens in both cases; a text row is one answer. Text that a
    chat template writes after the end of the last answer is dropped.
    """
    pieces = list(chain(*turns))
    # as in transformers, the template writes the special tokens of a chat
    ids = tokenizer.encode_pieces(pieces, add_special_tokens=not is_chat(row, tokenizer))
    ends = end_tokens(tokenizer)
    answers = [i for i, m in enumerate(messages_of(row)) if m["role"] == "assistant"]
    heads = [*ids[::2], []]
    tokens: list = []
    in_answer: list = []
    for n, (i, tail) in enumerate(zip(answers[-len(turns) :], ids[1::2])):
        head, following = heads[n : n + 2]
        end = len(tail)
        if "text" not in row:
            if ends.isdisjoint(tail):
                n_moved = length_of_end(following, tokenizer)
                tail = [*tail, *following[:n_moved]]
                del following[:n_moved]
            end = next((place for place, token in enumerate(tail, 1) if token in ends), len(tail))
        rest = tail[end:]
        tail = tail[:end]
        has_rest = is_chat(row, tokenizer) and tokenizer.decode(rest).strip()
        if has_rest and ends_inside(row, i, tokenizer):
            raise InputError(ENDED)
        if n == len(turns) - 1:
            if ends.isdisjoint(tail[-1:]):
                tail = [*tail, tokenizer.eos_token_id]
            rest = []
        tokens += head + tail + rest
        in_answer += [0] * len(head) + [1] * len(tail) + [0] * len(rest)
    return Example(tokens, in_answer if mask_prompt else [1] * len(tokens), in_answer)


def length_of_end(tokens, tokenizer):
    """Return up to where tokens are white space and an end token; 0 if they begin otherwise.

    An end token with which the next message begins ends the answer before that message.
    """
    ends = end_tokens(tokenizer)
    place = next((k for k, token in enumerate(tokens) if token in ends), None)
    if place is None:
        return 0
    before = tokenizer.decode(tokens[:place], skip_special_tokens=False)
    return 0 if before.strip() else place + 1


def ends_inside(row, i, tokenizer):
    """Return whether the template writes an end token before the end of what message i says."""
    messages = messages_of(row)
    render = partial(tokenizer.render, tools=row.get("tools") or None)
    before = render(messages[:i], add_generation_prompt=True)
    marks: list = []
    marked = mark_message(messages[i], keys_of_texts(messages[i]), ["name"], marks)
    shown = render([*messages[:i], marked, *messages[i + 1 :]])[len(before) :]
    end = max([0, *map(shown.rfind, marks)])
    tokens = tokenizer.encode(shown[:end].rstrip(), add_special_tokens=False)
    return not end_tokens(tokenizer).isdisjoint(tokens[:-1])  # a content can end with one
