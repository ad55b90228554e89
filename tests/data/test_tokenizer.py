"""Text to ids and back, with bytes, with a rebuilt BPE, and with chat templates."""

import json
import sys
import warnings
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import refused
from toy_models import CHAT, CHATML, POINTER, change_json, read_json, tiny, tiny_vocabulary

from minilora.config import InputError
from minilora.data.tokenizer import ByteTokenizer, PretrainedTokenizer, compiled, one_error
from minilora.formats.hf_tokenizer import QWEN2, from_folder, save

tokenizers = pytest.importorskip("tokenizers")
TINY = tiny()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TINY])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("<|im_end|>", "")
    assert max(ids, default=0) < tokenizer.vocab_size
    assert "<|im_end|>" in text or tokenizer.eos_token_id not in ids


def test_bytes_are_utf8_and_the_end_is_not_printed():
    t = ByteTokenizer()
    assert t.encode("é🙂") == [0xC3, 0xA9, 0xF0, 0x9F, 0x99, 0x82]
    assert t.decode([72, 105, 255]) == "Hi"
    assert t.decode([72, 0xC3]) == "H�", "a cut-off character is shown as such, not raised"
    for tokenizer in (t, TINY):
        with refused(r"not Unicode: .* in position 2: surrogates"):
            tokenizer.encode("ab\ud83d")


def test_merges_special_tokens_and_single_digits():
    he, hel = (tiny_vocabulary().index(x) for x in ("he", "hel"))
    assert (TINY.vocab_size, TINY.eos_token_id) == (3 + 256 + 2, 2)
    assert TINY.encode("hel") == [hel]
    assert TINY.encode("h<|im_end|>") == [TINY.encode("h")[0], 2]
    assert TINY.decode([hel, 2, he]) == "helhe"


def test_digits_are_cut_off_before_anything_merges():
    """With the pre-tokenizer of SmolLM no merge contains a digit; with that of GPT-2 some do."""
    tokens = [*tiny_vocabulary(), "12", "Ġ1", "ĠĠ"]
    merges = ["1 2", "Ġ 1", "Ġ Ġ"]
    changes = {"tokens": tokens, "token_type": [3] * 3 + [1] * 261, "merges": merges}
    one, two, space, spaces = (tokens.index(x) for x in ("1", "2", "Ġ", "ĠĠ"))
    assert tiny(**changes).encode("12 1") == [one, two, space, one]
    assert tiny(**changes).encode("  1") == [spaces, one], "GPT-2's takes a space with the digit"
    assert tiny(pre="gpt-2", **changes).encode("12 1") == [tokens.index("12"), tokens.index("Ġ1")]


def test_a_user_defined_token_is_printed():
    types = [4, 3, 3] + [1] * 258
    assert (words := tiny(token_type=types)).encode("<|endoftext|>") == [0]
    assert words.decode([0, 2]) == "<|endoftext|>"


@pytest.mark.parametrize("kind", range(1, 7))
def test_a_token_that_a_gguf_file_names_is_special(kind):
    words = tiny(token_type=[kind, kind, 3] + [1] * 258, unknown_token_id=0, padding_token_id=0)
    named = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    assert words.special == TINY.special | named
    assert words.encode("<|im_start|><|endoftext|>") == [1, 0] and words.decode([1, 0]) == ""


def test_a_first_token_of_each_text():
    t, he = tiny(), tiny_vocabulary().index("he")
    t.backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    assert t.encode("") == [1]
    assert t.encode("he<|im_end|>") == [1, he, 2], "only the end token of the text"
    assert t.encode("<|im_start|>he") == [1, he], "no second BOS"
    assert t.encode_pieces(["he", "l"]) == [[1, he], t.encode("l", False)]
    # "hel" is one token: the template wrote "l", and no model
    assert t.encode_pieces(["", "he", "l"]) == [[], [1, he + 1], []]
    assert t.encode_pieces(["", "he", "", "l"]) == [[], [1, he], [], t.encode("l", False)]
    letters = [t.encode(text, False) for text in "lhh"]
    assert t.encode_pieces(["", "he", "", *"lhh"]) == [[], [1, he], [], *letters]
    assert t.encode_pieces(["he", "l"], add_special_tokens=False) == [[he], t.encode("l", False)]


def test_a_token_that_takes_the_white_space_before_it_is_encoded_by_itself():
    """As <think> of some folders: in generation, the prompt ends with the line break."""
    words = tiny()
    words.backend.add_tokens([tokenizers.AddedToken("<t>", lstrip=True)])
    (think,) = words.encode("<t>")
    assert words.encode("he\n<t>l") == [*words.encode("he"), think, *words.encode("l")]
    pieces = ["he\n", "<t>l"]
    assert words.encode_pieces(pieces) == [words.encode("he\n"), [think, *words.encode("l")]]


def test_trimmed_offsets_change_no_mask(folder):
    """White space at the end of an answer is of the answer, and not a place of its own."""
    words = tiny()
    words.backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    for trim, pretty in ((False, False), (True, False), (True, True)):
        words.backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=trim)
        (folder / "tokenizer.json").write_text(words.backend.to_str(pretty))
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
    first = tokenizers.processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", 1)])
    backend.post_processor = first
    words = PretrainedTokenizer(backend, 1, {}, None, {}, "")
    ids = words.encode_pieces(pieces)
    whole = words.encode("".join(pieces))
    assert words.decode([i for piece in ids for i in piece]) == words.decode(whole)
    # of a prompt and an answer, a token is of the answer: those before a prompt's end are no more
    # than its text, and those before an answer's end are no less
    begins = [n for n, piece in enumerate(ids) if 1 in piece]
    assert begins == [n for n, piece in enumerate(pieces) if piece][:1] or not any(pieces)
    lengths = [sum(len(backend.id_to_token(i)) for i in piece if i != 1) for piece in ids]
    extra = sum(lengths) - sum(map(len, pieces))  # the space at the beginning
    for n in range(len(pieces)):
        text = "".join(pieces[: n + 1])
        more = sum(lengths[: n + 1]) - extra - len(text)
        # an answer that an empty prompt follows ends where the next answer begins
        begins_answer = n % 2 == 0 or pieces[n + 1 : n + 2] == [""]
        assert more <= 0 if begins_answer else more >= 0


# --- folders


@pytest.fixture
def folder(tmp_path):
    save(TINY, tmp_path)
    return tmp_path


def from_files(folder, eos_token_id=None, **contents):
    """Write the contents {name of a file of JSON: object}; return the tokenizer of the folder."""
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return from_folder(folder, eos_token_id)


def test_where_a_folder_has_its_template(folder):
    file, config = folder / "chat_template.jinja", read_json(folder / "tokenizer_config.json")
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    words = from_files(folder, tokenizer_config=config | {"chat_template": named})
    assert words.chat_template == CHATML, "the file wins, as in transformers"
    file.unlink()
    words = from_files(folder, tokenizer_config=config | {"chat_template": None})
    assert words.chat_template is None
    words = from_files(folder, tokenizer_config=config | {"chat_template": named})
    save(words, folder)
    for words in (words, from_folder(folder)):
        assert words.render([]) == "D" and words.render([], tools=[]) == "T"
    words = from_files(folder, tokenizer_config=config | {"chat_template": "here"})
    assert words.chat_template == "here"
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("R")
    with refused(r"templates are rag, and none is .* chat_template\.jinja"):
        from_folder(folder)
    file.write_text("F")
    with pytest.warns(UserWarning, match="not read: the chat template rag. `default` and"):
        assert from_folder(folder).chat_template == "F"
    (folder / "without").mkdir()
    save(replace(words, chat_template=None), folder / "without")  # the settings have none, either
    with refused("has no chat template"):
        from_folder(folder / "without").render([])
    (more / "default.jinja").write_text("second")
    with pytest.warns(UserWarning, match="rag"):
        assert from_folder(folder).chat_template == "second"


def test_which_file_names_a_special_token(folder):
    sep = {"__type": "AddedToken", "content": "<s>", "lstrip": True}
    config = {"pad_token": "<q>", "sep_token": sep, "unk_token": None, "cls_token": ""}
    config |= {"add_bos_token": True, "extra_special_tokens": {"image": "<i>"}}
    config |= {"additional_special_tokens": ["<v>"]}
    assert from_files(folder, 0, tokenizer_config=config).eos_token_id == 0
    end = {"content": "<|im_end|>", "lstrip": True}
    words = from_files(
        folder,
        special_tokens_map={"eos_token": end, "pad_token": "<p>"},
        added_tokens={"<|im_start|>": 1},
    )
    named = {"sep_token": "<s>", "pad_token": "<p>", "image": "<i>", "eos_token": "<|im_end|>"}
    # in the order of transformers: with a name, others
    save(words, folder)
    with warnings.catch_warnings(action="error"):
        again = from_folder(folder)
    for each in (words, again):
        assert each.special == named
        assert each.encode(" <s><p><i><v>") == [*range(261, 265)]
        assert each.decode([1, *range(261, 265)]) == ""
        assert each.encode(" <|im_end|>") == TINY.encode(" <|im_end|>")
    assert read_json(folder / "tokenizer_config.json")["sep_token"] == "<s>"
    config, tokens = {"eos_token": "he"}, {"266": {"content": "<u>"}, "265": {"content": "<w>"}}
    words = from_files(folder, tokenizer_config=config | {"added_tokens_decoder": tokens})
    assert words.special == {"eos_token": "he"}  # the other two files are not read
    tokens["267"] = {"content": "<s>"}
    with refused("'<s>' has the id 267, but is the token 261"):
        from_files(folder, tokenizer_config=config | {"added_tokens_decoder": tokens})


def test_new_special_tokens_have_ids_in_the_order_of_transformers(folder):
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    config = {f"{name}_token": f"<{name}>" for name in reversed(names)}
    found = from_files(folder, tokenizer_config=config)
    ids = found.encode("".join(f"<{name}>" for name in names))
    assert ids == [*range(261, 268)]


def test_of_two_names_of_one_token_the_flags_of_the_last_count(folder):
    first = {"__type": "AddedToken", "content": "<a>", "lstrip": True}
    for last in ({"pad_token": "<a>"}, {"extra_special_tokens": ["<a>"]}):
        config = {"eos_token": "<|im_end|>", "unk_token": first} | last
        words = from_files(folder, tokenizer_config=config)
        assert words.encode("he <a>") == [*TINY.encode("he "), 261]


def test_older_files_with_tokens_that_tokenizer_json_lacks_are_refused(folder):
    """transformers joins them with tokenizer_config.json; a folder that it wrote again is read."""
    words, added, more = tiny(), "added_tokens", "additional_special_tokens"
    words.backend.add_special_tokens(["<a>"])
    words.backend.add_tokens(["<b>"])
    (folder / "tokenizer.json").write_text(words.backend.to_str())
    config = {"eos_token": "<|im_end|>", more: ["<a>"]}
    of_map = {more: [{"content": "<a>", "lstrip": True}]}
    ids = {"<a>": 261, "<b>": 262}
    found = from_files(folder, tokenizer_config=config, special_tokens_map=of_map, added_tokens=ids)
    assert found.encode("he <a>") == [*TINY.encode("he "), 261]
    assert found.decode([261, 262]) == "<b>"
    named = {"eos_token": "<|im_end|>", "extra_special_tokens": {"image": "<c>"}}
    found = from_files(folder, tokenizer_config=named, special_tokens_map=of_map, added_tokens=ids)
    assert found.decode([261, 262, 263]) == "<b>"
    for of_config, of_map, ids, text in (
        (config, {more: ["<b>"]}, {}, "<b>"),
        (config, {"extra_special_tokens": {"image": "<a>"}}, {}, "image"),
        (config | {more: ["<c>"]}, {"extra_special_tokens": []}, {}, "<c>"),
        (config, {}, {"<b>": 261}, "<b>"),
        (config, {}, {"he": 261, "<c>": 263}, "he', '<c>"),
    ):
        files = {"tokenizer_config": of_config, "special_tokens_map": of_map, added: ids}
        with refused(f"has '{text}', and tokenizer.json has not, or as another token: write"):
            from_files(folder, **files)
        (folder / "tokenizer_config.json").unlink()
    of_config = config | {"added_tokens_decoder": {"263": {"content": "<c>"}}}
    from_files(folder, **(files | {"tokenizer_config": of_config}))  # with it, they are not read


def test_special_tokens_with_a_name_of_the_model_are_those_of_transformers(folder):
    """tokenizer_config.json counts first, an object only with its type; objects come first."""
    typed = {"__type": "AddedToken", "content": "<a>"}
    for of_config, of_map, expected in (
        ({"turn_token": "<a>"}, {"turn_token": "<b>"}, {"turn_token": "<a>"}),
        ({}, {"turn_token": "<b>"}, {"turn_token": "<b>"}),
        ({"turn_token": {"content": "<a>"}}, {}, {}),
        ({"turn_token": typed}, {}, {"turn_token": "<a>"}),
        ({"b_token": "<b>", "turn_token": typed}, {}, {"turn_token": "<a>", "b_token": "<b>"}),
    ):
        of_config["eos_token"] = "<|im_end|>"
        found = from_files(folder, tokenizer_config=of_config, special_tokens_map=of_map)
        assert found.special == expected | {"eos_token": "<|im_end|>"}
        ids = [found.backend.token_to_id(text) for text in expected.values()]
        assert ids == [*range(261, 261 + len(expected))]


def test_a_special_token_is_not_printed_whatever_tokenizer_json_calls_it(folder):
    """As in transformers, where the flags of added_tokens_decoder count."""
    words = tiny()
    words.backend.add_tokens([tokenizers.AddedToken("<a>", lstrip=True)])
    (folder / "tokenizer.json").write_text(words.backend.to_str())
    pad, listed = {"pad_token": "<a>"}, {"content": "<a>", "special": True}
    for named, text, printed in (
        (pad, "he", "he"),
        ({"added_tokens_decoder": {"261": listed | {"lstrip": True}}}, "he", "he"),
        ({"added_tokens_decoder": {"261": listed}}, "he ", "he "),
        (pad | {"added_tokens_decoder": {"261": listed | {"special": False}}}, "he ", "he "),
        (pad | {"added_tokens_decoder": {}}, "he", "he<a>"),
    ):
        found = from_files(folder, tokenizer_config={"eos_token": "<|im_end|>"} | named)
        assert found.encode("he <a>") == [*TINY.encode(text), 261]
        assert found.decode([*TINY.encode(text), 261]) == printed


WITHOUT_EFFECT = (
    "backend clean_up_tokenization_spaces errors is_local local_files_only max_length merges_file "
    "model_input_names model_max_length name_or_path pad_to_multiple_of pad_token_type_id "
    "padding_side processor_class sp_model_kwargs special_tokens_map_file stride tokenizer_file "
    "trust_remote_code truncation_side truncation_strategy use_default_system_prompt use_fast "
    "vocab_file vocab_size"
)


@pytest.mark.parametrize("settings, named", [
    ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, ["auto_map"]),
    ({"split_special_tokens": 1, "do_lower_case": False}, ["split_special_tokens, do_lower_case"]),
    ({"add_prefix_space": True, "legacy": True}, []),
    (dict.fromkeys(WITHOUT_EFFECT.split(), "x"), []),
    ({"add_prefix_space": False, "do_lower_case": None, "add_bos_token": True, "_a": 1}, []),
    ({"added_tokens_decoder": None}, []),
])  # fmt: skip
def test_settings_that_are_not_read_are_named(folder, recwarn, settings, named):
    path = folder / "tokenizer_config.json"
    change_json(path, **settings)
    from_folder(folder)
    said = [str(warning.message).split(". ")[0] for warning in recwarn]
    assert said == [f"{path}: not read: {names}" for names in named]


@pytest.mark.parametrize("name, model_type, warned", [
    ("GPT2Tokenizer", "llama", "GPT2Tokenizer"), ("LlamaTokenizerFast", "llama", None),
    ("LlamaTokenizer", "llama", None), ("LlamaTokenizer", "qwen2", "Qwen2Tokenizer"),
    ("GPTNeoXTokenizerFast", "llama", "GPTNeoXTokenizer"),
    ("PreTrainedTokenizerFast", "qwen3", None), (None, "qwen3", "Qwen2Tokenizer"),
    (None, "gemma3_text", "GemmaTokenizer"), (None, "llama", None),
    ("TokenizersBackend", "llama", None),
    ("GemmaTokenizer", "mistral", None),
])  # fmt: skip
def test_a_class_that_transformers_builds_anew_is_named(folder, recwarn, name, model_type, warned):
    path = folder / "tokenizer_config.json"
    change_json(path, tokenizer_class=name, eos_token="<|im_end|>")
    words = from_folder(folder, model_type=model_type)
    # the special tokens of a class are those that the settings lack
    assert words.special["eos_token"] == "<|im_end|>"
    assert (words.special.get("pad_token") == "<|endoftext|>") == (warned == "Qwen2Tokenizer")
    told = [str(w.message).split(" of AutoTokenizer")[0] for w in recwarn]
    assert told == [f"{folder / 'tokenizer.json'}: the {warned}"] * bool(warned)


def byte_level(space, use_regex=True):
    step = {"type": "ByteLevel", "trim_offsets": False}  # which changes no token
    return step | {"add_prefix_space": space, "use_regex": use_regex}


def of_qwen2(space):
    words = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [words, byte_level(space, False)]}


NFC = {"type": "NFC"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
LIKE_LLAMA = {
    "decoder": None, "pre_tokenizer": METASPACE,
    "model": {"byte_fallback": True, "fuse_unk": True},
}  # fmt: skip
MADE = {  # the parts of a tokenizer.json that a class of transformers makes
    "GPT2": {"pre_tokenizer": byte_level(False)},
    "Qwen2": {"normalizer": NFC, "pre_tokenizer": of_qwen2(False)},
    "Llama": LIKE_LLAMA, "Gemma": LIKE_LLAMA,
}  # fmt: skip
ADDED = {"GPT2": ("bos_token", "unk_token"), "Qwen2": ("unk_token", "pad_token")}  # by the class
SPACE = {"add_prefix_space": True}
IN_FILE = json.loads(TINY.backend.to_str())["added_tokens"]
WITH_PLAIN = [*IN_FILE, IN_FILE[0] | {"id": 261, "content": "<p>", "special": False}]


@pytest.mark.parametrize("name, settings, changes, named", [
    ("GPT2", {}, {}, []), ("GPT2", SPACE, {}, ["pre_tokenizer"]),
    ("GPT2", SPACE, {"pre_tokenizer": byte_level(True)}, []),
    ("GPT2", {}, {"model": {"continuing_subword_prefix": ""}}, []),  # as in GPT-2's own file
    # no token is unknown, because there is one for each byte
    ("GPT2", {}, {"model": {"unk_token": "h"}}, []),
    *(
        ("GPT2", {}, {"model": change}, ["model"])
        for change in (
            {"ignore_merges": True}, {"byte_fallback": True}, {"continuing_subword_prefix": "#"},
            {"end_of_word_suffix": "#"},
        )
    ),
    ("Qwen2", {}, {}, []), ("Qwen2", SPACE, {"pre_tokenizer": of_qwen2(True)}, []),
    ("Qwen2", {}, {"normalizer": {"type": "Sequence", "normalizers": [NFC]}}, []),
    ("Qwen2", {}, {"normalizer": None}, ["normalizer"]),
    # it resets lstrip
    ("Qwen2", {"sep_token": {"content": "<s>", "lstrip": True}}, {}, ["added_tokens"]),
    ("Qwen2", {}, {"added_tokens": WITH_PLAIN}, []),
    ("Qwen2", {"additional_special_tokens": ["<p>"]}, {"added_tokens": WITH_PLAIN},
     ["added_tokens"]),  # it makes <p> special
    ("Llama", {}, {}, []), ("Llama", {"legacy": True}, {}, ["pre_tokenizer"]),
    ("Llama", {"legacy": None}, {}, []),
    ("Llama", {"add_prefix_space": False, "legacy": True}, {}, ["pre_tokenizer"]),
    ("Llama", {"unk_token": "<unk>"}, {}, []), ("Llama", {"unk_token": None}, {}, []),
    ("Llama", {"pad_token": {"content": "h", "lstrip": True}}, {}, []),
    ("Llama", {"added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}}}, {},
     ["added_tokens"]),
    # fuse_unk decides, because there is no token <0x00>
    ("Llama", {}, {"model": {"byte_fallback": True, "fuse_unk": False}}, ["model"]),
    ("Gemma", {"pad_token": None, "mask_token": None}, {}, ["normalizer, pre_tokenizer, model"]),
    ("Gemma", {"pad_token": None}, {},
     ["normalizer, pre_tokenizer, model, added_tokens, mask_token"]),
])  # fmt: skip
def test_the_parts_that_transformers_builds_in_another_way_are_named(
    folder, recwarn, name, settings, changes, named
):
    file = folder / "tokenizer.json"
    parts = MADE[name] | changes
    change_json(file, **parts | {"model": read_json(file)["model"] | parts.get("model", {})})
    tokens = ("eos_token",) if name in ADDED else ("bos_token", "eos_token", "unk_token")
    fields = {"tokenizer_class": f"{name}Tokenizer"} | dict.fromkeys(tokens, "<|im_end|>")
    special = from_files(folder, tokenizer_config=fields | settings).special
    assert [str(w.message).split("(")[1].split(")")[0] for w in recwarn] == named
    assert {special[token] for token in ADDED.get(name, ())} <= {"<|endoftext|>"}


@pytest.mark.parametrize("name, content, message", [
    ("tokenizer.json", None, "has no tokenizer.json"),
    ("tokenizer.json", POINTER.decode(), r"tokenizer\.json: this is a Git LFS pointer"),
    ("tokenizer_config.json", POINTER.decode(), "config.json: this is a Git LFS pointer"),
    ("tokenizer_config.json", '{"a": 1, "a": 2}', "malformed: ValueError: the key 'a' is there tw"),
    ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": "\\ud83d"}', "Unicode"),
    ("tokenizer_config.json", "{}", "names no eos_token"),
    ("tokenizer_config.json", '{"eos_token": 7}', "eos_token must be text"),
    ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": 7}', "must be text"),
])  # fmt: skip
def test_broken_folders_are_refused(folder, name, content, message):
    (folder / "chat_template.jinja").unlink()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with refused(message):
        from_folder(folder)


def with_part(folder, **parts):
    """Return the tokenizer of a folder whose tokenizer.json has these parts."""
    change_json(folder / "tokenizer.json", **parts)
    return from_folder(folder)


def test_a_tokenizer_neither_cuts_nor_pads(folder):
    """A tokenizer.json can say how its last batch was cut and padded; no text is meant by that."""
    words = tiny()
    words.backend.enable_truncation(2)
    words.backend.enable_padding(length=9, pad_token="<|endoftext|>")
    save(words, folder)
    file = read_json(folder / "tokenizer.json")
    words = from_folder(folder)
    assert words.encode("hel 1 hel") == TINY.encode("hel 1 hel")
    assert words.special["pad_token"] == "<|endoftext|>"  # as in transformers
    gpt2 = from_files(folder, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    assert "pad_token" not in gpt2.settings  # whose class has none, but other readers have one
    save(words, folder)
    assert read_json(folder / "tokenizer.json") == file
    assert words.encode("hel 1 hel") == TINY.encode("hel 1 hel")  # not changed by `save`
    model = file["model"]
    with refused("dropout makes the tokens random"):
        with_part(folder, model=model | {"dropout": 0.5})


@pytest.mark.parametrize("error, expected, says", [
    (ValueError("a\nb"), InputError, "^it fails: a$"), (ValueError(), InputError, "ValueError..$"),
    (InputError("a"), InputError, "^a$"), (KeyboardInterrupt(), KeyboardInterrupt, None),
])  # fmt: skip
def test_an_error_of_a_library_becomes_one_line(error, expected, says):
    with pytest.raises(expected, match=says), one_error("it fails"):
        raise error


def test_a_panic_of_the_library_is_one_line(folder):
    """Panics of Rust derive from BaseException, so `except Exception` does not catch them."""
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with refused(r"tokenizer\.json is not a tokenizer: .*charsmap"):
        with_part(folder, normalizer=broken)


def test_a_text_that_a_tokenizer_without_an_unknown_token_cannot_take(folder):
    model = {"type": "WordLevel", "vocab": {"<|im_end|>": 2}, "unk_token": "<unk>"}
    words = with_part(folder, model=model, added_tokens=[], pre_tokenizer=None)
    with refused(r"tokenizer\.json cannot encode this text"):
        words.encode("xyz")


def test_ids_with_gaps_count_to_the_largest(folder):
    """An embedding needs a row for the largest id, however few tokens there are."""
    model = {"type": "WordLevel", "vocab": {"<|im_end|>": 2, "a": 7_000}, "unk_token": "a"}
    assert with_part(folder, model=model, added_tokens=[]).vocab_size == 7_001


def test_a_missing_library_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused(r"pip install 'minilora\[hf\]'"):
        from_folder(folder)


# --- chat templates


def rendered(template, **special):
    return PretrainedTokenizer(None, 0, special, template, {}, "").render(CHAT)


@pytest.mark.parametrize("template, expected", [
    ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hi <b>"}'),
    ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
    ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
    ("{{ 'é<' | tojson }}", '"é<"'),
    ("{{ strftime_now('%Y')[:2] }}", "20"),
    # trim_blocks and lstrip_blocks, loop controls
    ("{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n"
     "{{ m.role }}{% endfor %}", "assistant"),
    ("{%- generation %}x{% endgeneration -%}\n y", "xy"),
    ("a\n {%+ generation +%}\nx{% endgeneration %}", "a\n \nx"),
])  # fmt: skip
def test_a_template_sees_what_transformers_gives_it(template, expected):
    assert rendered(template, bos_token="<s>", eos_token="</s>") == expected


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ messages[0]['text'] + 'x' }}", "rejects these messages"),
    ("{% for %}", "not Jinja"),
    ("{{ ''.__class__.__mro__ }}", "rejects these messages: .*unsafe"),
    ("{{ messages.append(1) }}", "rejects these messages: .*(unsafe|not safely callable)"),
])  # fmt: skip
def test_what_a_template_may_not_do(template, message):
    with refused(message):
        rendered(template)


def test_a_template_is_compiled_once():
    assert compiled("{{ 1 }}") is compiled("{{ 1 }}")


def test_a_template_sees_messages_as_in_transformers():
    shown = "{{ messages[0].content }}{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    why, how, who = ({key: key + " "} for key in ("reasoning_content", "thinking", "reasoning"))
    for thoughts, expected in (
        (why, "reasoning_content reasoning_content "), (how, "thinking thinking "),
        (who, "reasoning reasoning "), (why | how | who, "reasoning_content thinking "),
        (how | who, "thinking thinking "),
    ):  # fmt: skip
        message = {"role": "assistant", "content": None} | thoughts
        assert replace(TINY, chat_template=shown).render([message]) == expected


def test_a_template_shows_the_date_that_it_is_given():
    words = replace(TINY, chat_template="{{ strftime_now('%d %b %Y') }}", chat_date="2001-02-03")
    assert words.render([]) == "03 Feb 2001"
