"""Text to ids and back, with bytes, with a rebuilt BPE, and with chat templates."""

import sys
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import refused
from toy_models import (
    CHAT,
    CHATML,
    GGUF_CONFIG,
    POINTER,
    change_json,
    tiny,
    tiny_vocabulary,
    with_bos,
)

from minilora.config import InputError
from minilora.data.tokenizer import ByteTokenizer, PretrainedTokenizer, one_error
from minilora.formats.hf_tokenizer import QWEN2, from_folder, save
from minilora.formats.pretrained import check_vocabulary

tokenizers = pytest.importorskip("tokenizers")
TINY = tiny()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TINY])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("<|im_end|>", "")
    assert max(ids, default=0) < tokenizer.vocab_size
    assert "<|im_end|>" in text or tokenizer.eos_token_id not in ids


def test_bytes_are_utf8_and_the_end_is_not_printed():
    t = ByteTokenizer()
    assert t.encode("é🙂") == [0xC3, 0xA9, 0xF0, 0x9F, 0x99, 0x82]
    assert t.decode([72, 255, 0xC3]) == "H�", "a cut-off character is shown as such, not raised"
    for tokenizer in (t, TINY):
        with refused(r"not Unicode: .* in position 2: surrogates"):
            tokenizer.encode("ab\ud83d")


def test_digits_are_cut_off_before_anything_merges():
    """With the pre-tokenizer of SmolLM no merge contains a digit; with that of GPT-2 some do."""
    new = ["12", "Ġ1", "ĠĠ"]
    tokens = tiny_vocabulary() + new
    merges = ["Ġ 1", "1 2", "Ġ Ġ"]
    changes = {"tokens": tokens, "token_type": [3] * 3 + [1] * 261, "merges": merges}
    for pre, expected in ("smollm", ["ĠĠ", "1", "2"]), ("gpt-2", ["Ġ", "Ġ1", "2"]):
        assert tiny(pre=pre, **changes).encode("  12") == [tokens.index(x) for x in expected]


def test_of_the_added_tokens_those_that_the_file_names_or_controls_are_special():
    named = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    words = tiny(unknown_token_id=0, padding_token_id=0)
    assert words.special == TINY.special | named
    words = tiny(token_type=[4, 1, 3] + [1] * 258)  # user-defined; normal, but the file names it
    assert words.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert words.decode([0, 1, 2]) == "<|endoftext|>"


def test_a_first_token_of_each_text():
    t, he = tiny(), tiny_vocabulary().index("he")
    t.backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    assert t.encode("") == [1]
    assert t.encode("he<|im_end|>") == [1, he, 2], "only the end token of the text"
    assert t.encode("<|im_start|>he") == [1, he], "no second BOS"
    h, letter = t.encode("hl", False)
    assert t.encode_pieces(["he", "l"]) == [[1, he], [letter]]
    # "hel" is one token: the template wrote "l", and no model
    assert t.encode_pieces(["", "he", "l"]) == [[], [1, he + 1], []]
    assert t.encode_pieces(["", "he", "", *"lhh"]) == [[], [1, he], [], [letter], [h], [h]]


def test_a_first_token_needs_a_row_of_the_embedding():
    words = tiny()
    first = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 261)])
    words.backend.post_processor = first
    with refused("the token 261, but the embedding has 261 rows"):
        check_vocabulary("model", GGUF_CONFIG, words)


def test_a_token_that_takes_the_white_space_before_it_is_encoded_by_itself():
    """As <think> of some folders: in generation, the prompt ends with the line break."""
    words = tiny()
    words.backend.add_tokens([tokenizers.AddedToken("<t>", lstrip=True)])
    pieces = ["he\n", "<t>l"]
    assert words.encode_pieces(pieces) == [words.encode(piece) for piece in pieces]
    assert words.encode("".join(pieces)) == words.encode("he<t>l")


def test_trimmed_offsets_change_no_mask(folder):
    """White space at the end of an answer is of the answer, and not a place of its own."""
    words = tiny()
    words.backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    save(words, folder)
    found = from_folder(folder)
    pieces = found.encode_pieces(["l", "h ", "h", "l"])
    assert [found.decode(piece) for piece in pieces] == [" l", "h ", "h", "l"]


PROMPTS = st.text("ab ", max_size=4)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@given(PROMPTS, st.lists(st.tuples(st.text("ab ", min_size=1, max_size=4), PROMPTS), max_size=2))
def test_pieces_have_the_text_of_the_whole(scheme, prompt, others):
    """Also if the tokenizer begins each text with a space, as those of SentencePiece.

    The token before the text, </s> here, is of the first piece with text.
    """
    pieces = [prompt, *chain(*others)]
    scores = [(text, -2.0) for text in ("<unk>", "</s>", "▁", "a", "b", "▁a", "ab")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme=scheme)
    words = with_bos(PretrainedTokenizer(backend, 1, {}, None, {}, ""), "</s>")
    ids = words.encode_pieces(pieces)
    whole = words.encode("".join(pieces))
    assert words.decode([i for piece in ids for i in piece]) == words.decode(whole)
    # of a prompt and an answer, a token is of the answer: those before a prompt's end are no more
    # than its text, and those before an answer's end are no less
    begins = [n for n, piece in enumerate(ids) if 1 in piece]
    assert begins == [n for n, piece in enumerate(pieces) if piece][:1] or not any(pieces)
    texts = ["".join(backend.id_to_token(i) for i in piece if i != 1) for piece in ids]
    extra = len("".join(texts)) - len("".join(pieces))  # the space at the beginning
    for n in range(len(pieces)):
        more = len("".join(texts[: n + 1])) - extra - len("".join(pieces[: n + 1]))
        # an answer that an empty prompt follows ends where the next answer begins
        begins_answer = n % 2 == 0 or pieces[n + 1 : n + 2] == [""]
        assert more <= 0 if begins_answer else more >= 0


# --- folders


@pytest.fixture
def folder(tmp_path):
    save(TINY, tmp_path)
    return tmp_path


def test_where_a_folder_has_its_template(folder):
    """tests/peers draws the other places."""
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    assert from_folder(folder).chat_template == CHATML, "the file wins, as in transformers"
    (folder / "chat_template.jinja").unlink()
    save(from_folder(folder), folder)
    words = from_folder(folder)
    assert words.render([]) == "D" and words.render([], tools=[]) == "T"
    save(replace(words, chat_template=None, for_tools=None), folder)  # nor have the settings one
    with refused("has no chat template"):
        from_folder(folder).render([])
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("R")
    with refused(r"templates are rag, and none is .* chat_template\.jinja"):
        from_folder(folder)
    (more / "default.jinja").write_text("F")
    with pytest.warns(UserWarning, match="not read: the chat template rag. `default` and"):
        assert from_folder(folder).chat_template == "F"


# an object counts only with its type, and comes first; of two names of one token, the last flags
SPECIAL_TOKENS = """{
    "c_token": "<c>", "mask_token": "<mask>", "cls_token": "<cls>", "pad_token": "<q>",
    "sep_token": {"__type": "AddedToken", "content": "<sep>", "lstrip": true},
    "unk_token": "<unk>", "bos_token": "<bos>", "x_token": null, "y_token": "",
    "a_token": {"__type": "AddedToken", "content": "<a>", "lstrip": true}, "b_token": "<sep>",
    "z_token": {"content": "<z>"}, "add_bos_token": true,
    "extra_special_tokens": {"d": "<d>"}, "additional_special_tokens": ["<v>"]
}"""
MAP = """{
    "eos_token": {"content": "<|im_end|>", "lstrip": true}, "pad_token": "<pad>",
    "c_token": "<q>", "e_token": "<e>"
}"""


def test_the_special_tokens_of_a_folder_are_those_of_transformers(folder):
    """In their order; special_tokens_map.json decides on the names that all models have."""
    (folder / "tokenizer_config.json").write_text(SPECIAL_TOKENS)
    assert from_folder(folder, 0).eos_token_id == 0
    (folder / "special_tokens_map.json").write_text(MAP)
    words = from_folder(folder)
    names = ["bos", "unk", "sep", "pad", "cls", "mask", "a", "c", "e"]
    named = {f"{name}_token": f"<{name}>" for name in names}
    assert words.special == named | {"eos_token": "<|im_end|>", "b_token": "<sep>", "d": "<d>"}
    ids = words.encode("".join(f"<{name}>" for name in [*names, *"dv"]))
    assert ids == [*range(261, 272)] and words.decode([1, *ids]) == ""


WITHOUT_EFFECT = (
    "add_prefix_space legacy backend "
    "clean_up_tokenization_spaces errors is_local local_files_only max_length merges_file "
    "model_input_names model_max_length name_or_path pad_to_multiple_of pad_token_type_id "
    "padding_side processor_class sp_model_kwargs special_tokens_map_file stride tokenizer_file "
    "trust_remote_code truncation_side truncation_strategy use_default_system_prompt use_fast "
    "vocab_file vocab_size"
)


@pytest.mark.parametrize("settings, named", [
    ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, ["auto_map"]),
    ({"split_special_tokens": 1, "do_lower_case": False}, ["split_special_tokens, do_lower_case"]),
    (dict.fromkeys(WITHOUT_EFFECT.split(), "x")
     | {"is_new": False, "_a": 1, "do_lower_case": None, "add_bos_token": True,
        "added_tokens_decoder": None}, []),
])  # fmt: skip
def test_settings_that_are_not_read_are_named(folder, recwarn, settings, named):
    path = folder / "tokenizer_config.json"
    change_json(path, **settings)
    from_folder(folder)
    said = [str(warning.message).split(". ")[0] for warning in recwarn]
    assert said == [f"{path}: not read: {names}" for names in named]


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
OF_QWEN2 = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
        # trim_offsets changes no token
        {"type": "ByteLevel", "trim_offsets": False, "add_prefix_space": True, "use_regex": False},
    ]},
}  # fmt: skip


@pytest.mark.parametrize("name, model_type, parts, settings, warned", [
    ("LlamaTokenizerFast", "llama", {}, {}, ""), ("GemmaTokenizer", "mistral", {}, {}, ""),
    ("GPTNeoXTokenizerFast", "llama", {}, {}, "GPTNeoXTokenizer (a class of its own)"),
    ("LlamaTokenizer", "qwen2", OF_QWEN2, {"add_prefix_space": True}, ""),
    ("LlamaTokenizer", "qwen2", OF_QWEN2 | {"normalizer": None},
     {"sep_token": {"content": "<s>", "lstrip": True}},  # it resets lstrip
     "Qwen2Tokenizer (normalizer, pre_tokenizer, added_tokens)"),
    ("LlamaTokenizer", "llama", {"pre_tokenizer": METASPACE, "decoder": None}, {},
     "LlamaTokenizer (model)"),
    (None, "gemma3_text", {}, {"pad_token": None},
     "GemmaTokenizer (normalizer, pre_tokenizer, model, added_tokens, mask_token)"),
])  # fmt: skip
def test_parts_that_transformers_builds_in_another_way_are_named_with_their_class(
    folder, recwarn, name, model_type, parts, settings, warned
):
    """tests/peers draws the parts of these and other classes."""
    change_json(folder / "tokenizer.json", **parts)
    settings = dict.fromkeys(("bos_token", "unk_token"), "<|im_end|>") | settings
    change_json(folder / "tokenizer_config.json", tokenizer_class=name, **settings)
    words = from_folder(folder, model_type=model_type)
    # the special tokens of a class are those that the settings lack
    assert words.special["eos_token"] == "<|im_end|>"
    assert (words.special.get("pad_token") == "<|endoftext|>") == (model_type == "qwen2")
    told = [str(w.message).replace(" of AutoTokenizer may make other tokens", "") for w in recwarn]
    what = f"the {warned}: PreTrainedTokenizerFast reads the file as it is"
    assert told == [f"{folder / 'tokenizer.json'}: {what}"] * bool(warned)


@pytest.mark.parametrize("name, content, message", [
    ("tokenizer.json", POINTER.decode(), r"tokenizer\.json: this is a Git LFS pointer"),
    ("tokenizer_config.json", POINTER.decode(), "config.json: this is a Git LFS pointer"),
    ("tokenizer_config.json", '{"a": 1, "a": 2}', "malformed: ValueError: the key 'a' is there tw"),
    ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": "\\ud83d"}', "Unicode"),
    ("added_tokens.json", '{"<b>": 261}', "has '<b>', and tokenizer.json has not"),
    ("tokenizer_config.json", "{}", "names no eos_token"),
    ("tokenizer_config.json", '{"eos_token": 7}', "eos_token must be text"),
    ("tokenizer_config.json", '{"eos_token": "l", "added_tokens_decoder": {"9": {"content": "h"}}}',
     "'h' has the id 9, but is the token"),
    ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": 7}', "must be text"),
])  # fmt: skip
def test_broken_folders_are_refused(folder, name, content, message):
    (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(content)
    with refused(message):
        from_folder(folder)


def test_an_error_of_a_library_becomes_one_line():
    for error, says in (
        (ValueError("a\nb"), "^it fails: a$"),
        (ValueError(), "ValueError..$"),
        (InputError("a"), "^a$"),
    ):
        with refused(says), one_error("it fails"):
            raise error
    with pytest.raises(KeyboardInterrupt), one_error("it fails"):
        raise KeyboardInterrupt


WORDS = {"type": "WordLevel", "vocab": {"<|im_end|>": 2, "a": 7_000}, "unk_token": "<unk>"}


@pytest.mark.parametrize("parts, message", [
    # a panic of Rust, which derives from BaseException
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
     r"tokenizer\.json is not a tokenizer: .*charsmap"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.5}}, "dropout makes"),
    ({"model": WORDS, "added_tokens": [], "pre_tokenizer": None},
     r"tokenizer\.json cannot encode this text"),  # it has no token <unk>
])  # fmt: skip
def test_a_tokenizer_json_that_cannot_encode_is_refused(folder, parts, message):
    change_json(folder / "tokenizer.json", **parts)
    with refused(message):
        from_folder(folder).encode("xyz")


def test_a_tokenizer_neither_cuts_nor_pads(folder):
    """A tokenizer.json can say how its last batch was cut and padded; no text is meant by that."""
    words = tiny()
    words.backend.enable_truncation(2)
    words.backend.enable_padding(length=9, pad_token="<|endoftext|>")
    save(words, folder)
    words = from_folder(folder)
    assert words.special["pad_token"] == "<|endoftext|>"  # as in transformers
    assert words.encode("hel 1 hel") == TINY.encode("hel 1 hel")


def test_ids_with_gaps_count_to_the_largest(folder):
    """An embedding needs a row for the largest id, however few tokens there are."""
    change_json(folder / "tokenizer.json", model=WORDS, added_tokens=[])
    assert from_folder(folder).vocab_size == 7_001


def test_a_missing_library_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused(r"pip install 'minilora\[hf\]'"):
        from_folder(folder)


# --- chat templates


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ messages[0]['text'] + 'x' }}", "rejects these messages"),
    ("{% for %}", "not Jinja"),
    ("{{ ''.__class__.__mro__ }}", "rejects these messages: .*unsafe"),
    ("{{ messages.append(1) }}", "rejects these messages: .*(unsafe|not safely callable)"),
])  # fmt: skip
def test_what_a_template_may_not_do(template, message):
    with refused(message):
        replace(TINY, chat_template=template).render(CHAT)


def test_a_template_sees_messages_as_in_transformers():
    """tests/peers has more of what a template sees."""
    shown = """{% for m in messages %}
        {%- generation %}
{{ m.content }}{{ m.reasoning_content }}{{ m.thinking }}{{ {'é': '<'} | tojson }}
        {% endgeneration -%}
        {% break %}
{% endfor %}"""
    words = replace(TINY, chat_template=shown)
    for thoughts, expected in (
        (["reasoning_content"], "reasoning_content reasoning_content "),
        (["reasoning", "thinking"], "thinking thinking "),
        (["reasoning", "thinking", "reasoning_content"], "reasoning_content thinking "),
    ):
        message = {"role": "assistant", "content": None} | {key: key + " " for key in thoughts}
        assert words.render([message]) == expected + '{"é": "<"}\n'
