"""Random chats × real templates: tokens and targets equal those of transformers, or are named.

The templates are those of the models, in TRL's collection. Its training variants have generation
blocks, so that transformers marks the answers. What is otherwise here, and why, is in the table of
lessons/guide/data-and-models.md.
"""

import random
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import tokenizers
import transformers
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.config import InputError, TrainConfig
from minilora.data.encoding import EMPTY, ENDED, ONLY_ANSWER, REWRITTEN, encode, encode_row
from minilora.data.template_checks import HIDDEN_TOOLS, PARTS, TEXT_ARGUMENTS
from minilora.formats.hf_tokenizer import from_folder

FOLDER = Path(trl.__file__).parent / "chat_templates"

EOS = {  # {template: its eos_token}
    "qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3_instruct_2507": "<|im_end|>",
    "lfm2": "<|im_end|>", "llama3": "<|eot_id|>", "cohere": "<|END_OF_TURN_TOKEN|>",
    "gemma": "<eos>", "gemma3": "<eos>", "phi3": "<|endoftext|>", "llama2": "</s>",
    "chatqa": "</s>", "last": "</s>", "parts": "</s>",
}  # fmt: skip
# Llama 2's own template, without system messages
LLAMA2 = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}{% endif %}{% endfor %}"
)
# as ChatQA's: only the next turn ends an answer, and a token can be of both
CHATQA = (
    "{% for m in messages %}{{ '\n\n' + m.role + ': ' }}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nassistant: ' }}{% endif %}"
)
# only the last answer has an end token, and messages of the system
LAST = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}"
    "{% generation %}{{ m.content }}{{ eos_token if loop.last and m.role == 'assistant' }}"
    "{% endgeneration %}"
    "{{ eos_token if m.role == 'system' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# a thought has an end token of its own
IN_PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% generation %}"
    "{% if m.reasoning %}{{ m.reasoning + eos_token }}<|im_start|>x{% endif %}"
    "{{ (m.content or '') + eos_token }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN = {"llama2": LLAMA2, "chatqa": CHATQA, "last": LAST, "parts": IN_PARTS}
SPECIAL = [
    "<s>", "<unk>", *dict.fromkeys(EOS.values()), "<|im_start|>", "<start_of_turn>",
    "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|user|>", "<|assistant|>",
    "<|end|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
]  # fmt: skip
WORD = r"\w+|[^\w\s\x00-\x7f]"  # a symbol is a word
ALL = TrainConfig(mask_prompt=True, max_seq_length=10**6)  # of a row
PIECES = [
    "the", "cat", " ", "  ", "\n", "\t", "é", "e\u0301", "👩\u200d👧", "日本", "12", "}", "{{ x }}",
    "\u200b", "<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "</s>", "<s>",
    "<end_of_turn>",
]  # fmt: skip
contents = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
calls = st.sampled_from([{"a": "é"}, {"a": None}, '{"a": "é"}']).map(
    lambda a: {"type": "function", "function": {"name": "add", "arguments": a}}
)
PARAMETERS = {"type": "object", "default": None}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}]


@st.composite
def rows(draw):
    """Return a row of a chat: its roles alternate, which some templates ask for, or are random."""
    roles = ["user", "assistant"] * draw(st.integers(1, 3))
    if draw(st.booleans()):
        free = st.sampled_from(["user", "assistant", "assistant", "system", "tool", "call"])
        roles = [*draw(st.lists(free, max_size=4)), "assistant"]
    thoughts = st.sampled_from([None] * 5 + ["thinking", "reasoning", "reasoning_content"])
    messages = [
        {"role": "assistant", "content": draw(st.none() | contents), "tool_calls": [draw(calls)]}
        if role == "call"
        else {"role": role, "content": draw(contents)}
        for role in roles
    ]
    for message in messages:
        if message["role"] == "assistant" and (key := draw(thoughts)):
            message[key] = draw(contents)
    return {"messages": messages, "tools": draw(st.sampled_from([None] * 9 + [TOOLS]))}


def tells_the_truth(reason, messages, tools, theirs):
    """Tell whether a row is as `reason`, the message or its beginning, says."""
    template = theirs.chat_template
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    return {
        EMPTY: lambda: any(
            not (messages[i]["content"] or "").strip() or says_nothing(theirs, messages, i, tools)
            for i in answers
        ),
        "the text of the end token inside an answer": lambda: any(
            theirs.eos_token in str(messages[i]) for i in answers
        ),
        HIDDEN_TOOLS: lambda: any(
            same_text(theirs, shown, hidden)
            for shown, hidden in chats_with_and_without_tools(messages, tools)
        ),
        TEXT_ARGUMENTS: lambda: any("tool_calls" in m for m in messages),
        "the chat template rejects these messages": lambda: (
            text_of(theirs, messages, tools) is None
        ),
        "a message that the chat template does not show": lambda: any(
            same_text(theirs, (changed(messages, i), tools), (messages, tools))
            for i in range(len(messages))
        ),
        PARTS: lambda: (
            lacks_words(text_of(theirs, messages, tools), needed(messages))
            or lacks_words(text_of_last(theirs, messages, tools), said(messages[-1]))
            or not all_is_read(theirs, messages, tools)
        ),
        before_colon(ONLY_ANSWER): lambda: len(messages) == 1,
        # Phi-3's writes its end token only at the end of a chat, Qwen3's removes earlier thoughts
        before_colon(REWRITTEN): lambda: (
            "<|end|>" in template or "<think>" in template or template == LAST
        ),
        before_colon(ENDED): lambda: (
            template == IN_PARTS and any("reasoning" in m for m in messages)
        ),
    }[before_colon(reason)]()


def before_colon(text):
    return text.partition(":")[0]


def said(message):
    """Return what an answer says: its content, and its thoughts."""
    return " ".join(v for k, v in message.items() if k != "role" and isinstance(v, str))


def needed(messages):
    """Return all that a chat must show: the last answer, and the texts next to calls."""
    *before, last = messages
    return " ".join([said(last), *(m["content"] or "" for m in before if "tool_calls" in m)])


def chats_with_and_without_tools(messages, tools):
    """Yield pairs of (messages, tools): a whole row, and of a row that is rejected, its parts."""
    ask = {"role": "user", "content": "a"}
    bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
    if tools:
        yield (messages, tools), (messages, None)
        yield ([ask], tools), ([ask], None)
    for m, without in zip(messages, bare):
        if m != without:
            filled = {"content": m["content"] or ""}
            yield (messages, tools), (bare, tools)
            yield ([ask, m | filled], None), ([ask, without | filled], None)


def same_text(tokenizer, one, other):
    """Tell whether a template writes two chats alike, and rejects neither."""
    text = text_of(tokenizer, *one)
    return text is not None and text == text_of(tokenizer, *other)


def lacks_words(text, said):
    return not Counter(re.findall(WORD, said)) <= Counter(re.findall(WORD, text))


def all_is_read(tokenizer, messages, tools):
    """Tell whether the text depends on each part of the last answer, and of the turns of calls."""
    text = text_of(tokenizer, messages, tools)
    return all(
        text_of(tokenizer, changed(messages, i, "other", key), tools) != text
        for i, m in enumerate(messages)
        for key in m
        if isinstance(m[key], str) and m[key].strip() and key != "role"
        if i == len(messages) - 1 or ("tool_calls" in m and key == "content")
    )


def text_of(tokenizer, messages, tools):
    """Return the text of a chat; None if the template rejects it."""
    with suppress(Exception):  # a template can raise anything
        return tokenizer.apply_chat_template(messages, tools, tokenize=False)


def text_of_last(tokenizer, messages, tools):
    """The text after that of the messages before; all of it if the last one changes those."""
    before = text_of(tokenizer, messages[:-1], tools) or ""
    return text_of(tokenizer, messages, tools).removeprefix(before)


def changed(messages, i, value="other", key="content"):
    return [*messages[:i], messages[i] | {key: value}, *messages[i + 1 :]]


def says_nothing(tokenizer, messages, i, tools):
    """Tell whether a message has the text of a blank one in the chat, or of an end token."""
    return any(
        same_text(tokenizer, (messages, tools), (changed(messages, i, nothing), tools))
        for nothing in ("", tokenizer.eos_token)
    )


def byte_level():
    """A BPE over bytes that merges spaces, words and line ends, as those of GPT-2's kind."""
    words = tokenizers.ByteLevelBPETokenizer()
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES[:14], k=40)) for _ in range(200)]
    texts.append("assistant\nuser\n\n")
    words.train_from_iterator(texts, vocab_size=600, show_progress=False)
    return tokenizers.Tokenizer.from_str(words.to_str())


def llama2_kind():
    """BPE over characters with bytes for the rest; a space, spelled ▁, is put before a text."""
    merges = [("▁", "▁"), ("t", "h"), ("th", "e"), ("▁", "the")]
    alphabet = sorted(set("▁".join([*PIECES[:16], "assistant user model system ["])))
    every_byte = (f"<0x{b:02X}>" for b in range(256))
    names = ["<unk>", *every_byte, *alphabet, *map("".join, merges)]
    vocabulary = {name: i for i, name in enumerate(names)}
    words = transformers.LlamaTokenizer(vocabulary, merges).backend_tokenizer
    words.pre_tokenizer = None
    steps = tokenizers.normalizers  # as in the files of Llama 2, which transformers writes anew
    words.normalizer = steps.Sequence([steps.Prepend("▁"), steps.Replace(" ", "▁")])
    return words


@pytest.fixture(scope="module", params=[byte_level, llama2_kind])
def words(request):
    words = request.param()
    # Phi-3's tokens take the white space after them
    taking = "<|user|>", "<|assistant|>", "<|end|>"
    words.add_special_tokens([tokenizers.AddedToken(s, rstrip=s in taking) for s in SPECIAL])
    bos = words.token_to_id("<s>")
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return words


def saved(words, eos, folder):
    """Write the files of a tokenizer; return it."""
    names = {"bos_token": "<s>", "unk_token": "<unk>", "eos_token": eos}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)
    theirs.save_pretrained(folder)
    return theirs


@pytest.fixture(scope="module", params=EOS)
def sides(request, words, tmp_path_factory):
    """(our tokenizer, theirs, the training variant of the template)."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    saved(words, EOS[name], folder)
    template, training = (
        OWN.get(name) or (FOLDER / f"{name}{end}.jinja").read_text() for end in ("", "_training")
    )
    (folder / "chat_template.jinja").write_text(template)
    return from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder), training


def their_example(theirs, training, row):
    """Return (tokens, targets) of transformers, but for the differences of the table.

    The tokens are None if a prompt alone has other tokens than as the start of the chat; the
    targets are None if the training variant writes another text.
    """
    messages, tools = row["messages"], row["tools"]
    tokens = theirs.apply_chat_template(messages, tools)["input_ids"]
    options = {"chat_template": training, "return_assistant_tokens_mask": True}
    chat = theirs.apply_chat_template(messages, tools, **options)
    targets = chat["assistant_masks"]
    answers = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"] or [0]
    prompts = [messages[:i] for i in answers]
    starts = theirs.apply_chat_template(prompts, tools, add_generation_prompt=True)["input_ids"]
    if any(tokens[: len(start)] != start for start in starts):
        return None, None
    if chat["input_ids"] != tokens:
        return tokens, None
    end = 0
    for start in map(len, starts):
        targets[end:start] = [0] * (start - end)
        end = start
        while end < len(tokens) and targets[end] and tokens[end - 1 : end] != [theirs.eos_token_id]:
            end += 1
    if tokens[end - 1] == theirs.eos_token_id:
        return tokens[:end], targets[:end]
    return [*tokens[:end], theirs.eos_token_id], [*targets[:end], 1]


@given(row=rows())
@settings(max_examples=200, derandomize=True)  # as `rng` in conftest
def check(sides, seen, row):
    ours, theirs, training = sides
    messages, tools = row["messages"], row["tools"]
    try:
        example, *_, reason = encode_row(row, ours, ALL)
    except InputError as error:
        reason = str(error)
    if reason:
        seen["named"] += 1
        assert tells_the_truth(reason, messages, tools, theirs)
        return
    begins = [t for t, *marks in zip(example.tokens[1:], example.mask, example.mask[1:])
              if marks == [0, 1]]  # fmt: skip
    assert theirs.eos_token_id not in begins  # the model would learn to say nothing
    assert not lacks_words(theirs.decode(example.tokens), said(messages[-1]))
    assert not lacks_words(text_of_last(theirs, messages, tools), said(messages[-1]))
    tokens, targets = their_example(theirs, training, row)
    if targets:
        seen["equal"] += 1
        assert (example.tokens, example.mask) == (tokens, targets)
    elif tokens:
        assert example.tokens[:-1] == tokens[: len(example.tokens) - 1]
    else:
        whole = theirs.apply_chat_template(messages, tools)["input_ids"]
        text = theirs.decode(whole)  # it can have more spaces, at special tokens
        assert text.startswith(theirs.decode(example.tokens).removesuffix(theirs.eos_token))
    if len(messages) > 1:
        prompt = {"tools": tools, "add_generation_prompt": True}
        text = ours.render(messages[:-1], **prompt)
        expected = theirs.apply_chat_template(messages[:-1], **prompt)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == expected


words_and_spaces = st.lists(st.sampled_from(PIECES[:4]), min_size=1, max_size=5).map("".join)
parts = contents.filter(lambda text: "</s>" not in text) | words_and_spaces


@given(prompt=parts, completion=parts)
@settings(max_examples=100, derandomize=True)  # as `rng` in conftest
def check_texts(ours, theirs, prompt, completion):
    start = theirs(prompt)["input_ids"]
    whole = [*theirs(prompt + completion)["input_ids"], theirs.eos_token_id]
    if prompt.startswith("<s>"):
        start = start[1:]  # transformers puts another BOS before a written one
        whole = whole[1:]
    end = len(start)
    assert ours.decode(whole) == theirs.decode(whole, skip_special_tokens=True)
    assert encode({"text": prompt + completion}, ours).tokens == whole
    tokens, mask, _ = encode({"prompt": prompt, "completion": completion}, ours, mask_prompt=True)
    assert theirs.decode(tokens) == theirs.decode(whole)
    if tokens[:end] == start:
        assert mask == [0] * end + [1] * (len(mask) - end)
    if tokens[:end] != start or whole[:end] == start:
        assert tokens == whole and mask == sorted(mask)


def test_texts_and_prompts_are_those_of_transformers(words, tmp_path):
    """Without a template, the tokenizer adds BOS, and the row ends with EOS."""
    theirs = saved(words, "</s>", tmp_path)
    check_texts(from_folder(tmp_path), theirs)


def test_a_chat_is_that_of_transformers_or_named(sides):
    seen = Counter()
    check(sides, seen)
    assert seen["equal"] and seen["named"]
