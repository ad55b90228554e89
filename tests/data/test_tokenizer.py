"""Text to ids and back, with bytes, with a rebuilt BPE, and with chat templates."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import CHATML, HTML, POINTER, tiny, tiny_vocabulary

from minilora.config import InputError
from minilora.data.tokenizer import ByteTokenizer, PretrainedTokenizer, compiled
from minilora.formats.hf_tokenizer import from_folder, save

CHAT = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello"}]

# --- bytes


@given(st.text())
@settings(deadline=None)
def test_bytes_come_back(text):
    t = ByteTokenizer()
    ids = t.encode(text)
    assert t.decode(ids) == text
    assert all(0 <= i < t.eos_token_id for i in ids), "255 must stay free to end a sequence"


def test_bytes_are_utf8_and_the_end_is_not_printed():
    t = ByteTokenizer()
    assert t.encode("é🙂") == [0xC3, 0xA9, 0xF0, 0x9F, 0x99, 0x82]
    assert t.decode([72, 105, 255]) == "Hi"
    assert t.decode([72, 0xC3]) == "H�", "a cut-off character is shown as such, not raised"
    assert not t.has_chat_template
    with pytest.raises(InputError, match="no chat template"):
        t.render(CHAT)


def test_half_a_surrogate_pair_is_refused():
    for t in (ByteTokenizer(), tiny()):
        with pytest.raises(InputError, match=r"lone surrogate .* at character 2"):
            t.encode("ab\ud83d")


# --- a model's own


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_byte_level_bpe_comes_back(text):
    t = tiny_once()
    assert t.decode(t.encode(text)) == text.replace("<|im_end|>", "")


_TINY = []


def tiny_once():
    if not _TINY:
        _TINY.append(tiny())
    return _TINY[0]


def test_merges_special_tokens_and_single_digits():
    t = tiny()
    he, hel, space = (tiny_vocabulary().index(x) for x in ("he", "hel", "Ġ"))
    assert t.vocab_size == 3 + 256 + 2
    assert t.eos_token_id == 2
    assert t.encode("hel") == [hel]
    assert t.encode("h<|im_end|>") == [t.encode("h")[0], 2]
    assert t.encode("hehe") == [he, he]
    assert t.decode([hel, 2, he]) == "helhe"
    assert t.encode("  1") == [space, space, *t.encode("1")]


def test_digits_are_cut_off_before_anything_merges():
    """With the pre-tokenizer of SmolLM no merge contains a digit; with that of GPT-2 some do."""
    tokens = [*tiny_vocabulary(), "12", "Ġ1"]
    changes = {"tokens": tokens, "token_type": [3] * 3 + [1] * 260, "merges": ["1 2", "Ġ 1"]}
    one, two, space = (tokens.index(x) for x in ("1", "2", "Ġ"))
    assert tiny(**changes).encode("12 1") == [one, two, space, one]
    changes["pre"] = "gpt-2"
    assert tiny(**changes).encode("12 1") == [tokens.index("12"), tokens.index("Ġ1")]


def test_a_first_token_if_the_file_says_so():
    t, he = tiny(add_bos_token=True), tiny_vocabulary().index("he")
    assert t.encode("he") == [1, he]
    assert t.encode("<|im_start|>he") == [1, he], "no second BOS"
    assert t.encode("he", add_special_tokens=False) == [he]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model 'bert' is not supported"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre 'tekken' is not supported"),
        ({"merges": ["h zz"]}, "tokenizer is broken"),
        ({"merges": ["he"]}, "tokenizer is broken"),
        ({"eos_token_id": None}, "eos_token_id is missing"),
        ({"eos_token_id": 5000}, "eos_token has the id 5000"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is missing"),
        ({"tokens": ["x" * 10**6, *tiny_vocabulary()]}, "tokens must be distinct texts"),
    ],
)
def test_gguf_tokenizers_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


# --- folders


def test_a_saved_tokenizer_comes_back(tmp_path):
    t = tiny()
    save(t, tmp_path)
    back = from_folder(tmp_path)
    text = "hello  12 <|im_end|> é🙂\n"
    assert back.encode(text) == t.encode(text)
    assert (back.eos_token_id, back.special, back.chat_template) == (2, t.special, CHATML)


def test_where_a_folder_keeps_its_template(tmp_path):
    save(tiny(), tmp_path)
    path, file = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    config = json.loads(path.read_text())
    assert "chat_template" not in config
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    broken = [7, {"name": "default"}]
    for value, expected in (("here", "here"), (named, "D"), (None, None), (broken, None)):
        path.write_text(json.dumps({**config, "chat_template": value}))
        assert from_folder(tmp_path).chat_template == CHATML, "the file wins, as in transformers"
        template = file.read_text()
        file.unlink()
        assert from_folder(tmp_path).chat_template == expected
        assert from_folder(tmp_path).has_chat_template == (expected is not None)
        file.write_text(template)


def test_special_tokens_written_as_objects(tmp_path):
    save(tiny(), tmp_path)
    config = {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert from_folder(tmp_path).eos_token_id == 2


def test_the_end_token_can_come_from_the_model(tmp_path):
    save(tiny(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert from_folder(tmp_path, eos_token_id=0).eos_token_id == 0
    with pytest.raises(InputError, match="names no eos_token"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer.json", "{", "is not a tokenizer"),
        ("tokenizer_config.json", "[1]", "must hold one JSON object"),
        ("tokenizer_config.json", "{,}", "is not JSON"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', "names no eos_token"),
        ("tokenizer_config.json", '{"eos_token": 7}', "eos_token must be text"),
        (
            "tokenizer_config.json",
            '{"eos_token": "<|im_end|>", "chat_template": 7}',
            "chat_template must be text",
        ),
        (
            "tokenizer_config.json",
            '{"eos_token": "\\ud800"}',
            "lone surrogate|not a tokenizer|no eos_token",
        ),
        ("tokenizer_config.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "is not JSON"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", POINTER, r"tokenizer\.json is a Git LFS pointer.*git lfs pull"),
        ("tokenizer.json", HTML, r"tokenizer\.json is a web page \(HTML\): download"),
        ("tokenizer.json", "", r"tokenizer\.json is empty: copy or download it again"),
        ("tokenizer_config.json", POINTER, r"tokenizer_config\.json is a Git LFS pointer"),
        ("tokenizer_config.json", "", r"tokenizer_config\.json is empty"),
    ],
)
def test_broken_folders_are_refused(tmp_path, name, content, message):
    save(tiny(), tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        from_folder(tmp_path)


def with_part(tmp_path, **parts):
    """The tokenizer of a folder whose tokenizer.json has these parts."""
    save(tiny(), tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return from_folder(tmp_path)


def test_a_tokenizer_neither_cuts_nor_pads(tmp_path):
    """A tokenizer.json can say how its last batch was cut and padded; no text is meant by that."""
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    text = "hel 1 hel"
    words = with_part(tmp_path, truncation=cut, padding=pad)
    assert words.encode(text) == tiny().encode(text)
    assert 2 < len(words.encode(text)) < 9


def test_a_panic_of_the_library_is_one_line(tmp_path):
    """Panics of Rust derive from BaseException, so `except Exception` does not catch them."""
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: .*charsmap"):
        with_part(tmp_path, normalizer=broken)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"<|im_end|>": 2}, "unk_token": "<unk>"},
        {"type": "Unigram", "vocab": [["a", -1.0], ["<|im_end|>", -2.0]], "unk_id": None},
        {"type": "BPE", "vocab": {"a": 0, "<|im_end|>": 2}, "merges": [], "unk_token": "<unk>"},
    ],
)
def test_a_text_that_a_tokenizer_without_an_unknown_token_cannot_take(tmp_path, model):
    words = with_part(tmp_path, model=model, added_tokens=[], pre_tokenizer=None)
    with pytest.raises(InputError, match=r"tokenizer\.json cannot encode this text"):
        words.encode("xyz")


def test_ids_with_gaps_count_to_the_largest(tmp_path):
    """An embedding needs a row for the largest id, however few tokens there are."""
    model = {"type": "WordLevel", "vocab": {"<|im_end|>": 2, "a": 7_000}, "unk_token": "a"}
    assert with_part(tmp_path, model=model, added_tokens=[]).vocab_size == 7_001


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'minilora\[hf\]'"):
        from_folder(tmp_path)


# --- chat templates


def rendered(template, messages=CHAT, **special):
    pytest.importorskip("jinja2")
    return PretrainedTokenizer(None, 0, special, template).render(messages)


def test_a_chat_template_prints_the_chat():
    t = tiny()
    expected = "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert t.render(CHAT) == expected
    assert t.render(CHAT[:1], add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_a_template_sees_what_transformers_gives_it():
    assert rendered("{{ messages[0] | tojson }}") == '{"role": "user", "content": "Hi <b>"}'
    assert (
        rendered("{{ bos_token }}{{ eos_token }}", bos_token="<s>", eos_token="</s>") == "<s></s>"
    )
    assert rendered("{{ tools is none }}") == "True"
    assert len(rendered("{{ strftime_now('%Y') }}")) == 4
    loop = (
        "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n"
        "{{ m.role }}{% endfor %}"
    )
    assert rendered(loop) == "assistant", "trim_blocks and lstrip_blocks, loop controls"
    assert rendered("{%- generation %}x{% endgeneration -%}\n y") == "xy"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['text'] + 'x' }}", "rejects these messages"),
        ("{% for %}", "not Jinja"),
        ("{{ ''.__class__.__mro__ }}", "rejects these messages: .*unsafe"),
        ("{{ messages.append(1) }}", "rejects these messages: .*(unsafe|not safely callable)"),
    ],
)
def test_what_a_template_may_not_do(template, message):
    with pytest.raises(InputError, match=message):
        rendered(template)


def test_a_template_is_compiled_once():
    pytest.importorskip("jinja2")
    assert compiled("{{ 1 }}") is compiled("{{ 1 }}")
