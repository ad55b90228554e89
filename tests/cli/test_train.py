"""`minilora train`: the folder of a run, resuming, and settings that a run refuses."""

import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import matplotlib.figure
import numpy as np
import pytest
from outcomes import error_of, refused, run
from small_run import (
    at,
    history,
    metrics,
    parsed,
    resume,
    settings_of,
    sums,
    tensors,
    write_adapter,
    write_base,
    write_rows,
)
from toy_models import change_json, change_tensors, files

import minilora
from minilora import (
    LoraConfig,
    Model,
    Source,
    State,
    TrainConfig,
    encode_rows,
    load,
    load_rows,
    save_adapter,
)
from minilora.batching import Example
from minilora.cli import run as cli_run
from minilora.cli import run_folder, stored_paths
from minilora.cli.arguments import flag
from minilora.cli.loading import LoadedModel, load_for_training, make_adapter_config
from minilora.cli.run import (
    RunWriter,
    check_memory,
    print_length,
    steps_of_epochs,
)
from minilora.evaluation import plot
from minilora.formats import pretrained
from minilora.formats.checkpoint import (
    CHECKPOINT,
    CONFIG,
    WEIGHTS,
    load_state,
    read_metadata,
    read_source,
)
from minilora.formats.safetensors_file import read_header
from minilora.kernels import fused
from minilora.methods.vera import SHARED_NAMES

# ------------------------------------------------------------------------- the folder of a run


def test_all_files_of_a_run_are_written_again_from_its_checkpoint(train, out, monkeypatch):
    monkeypatch.setattr("minilora.cli.run.curve", plot.curve)
    train("--save-every 4")
    assert {path.name for path in out.iterdir()} == run_folder.FILES
    before = files(out)
    for name in run_folder.FILES - {CHECKPOINT}:
        (out / name).unlink()
    for words in ("evaluate --adapter-path", "train --init-adapter"):
        assert "train --resume" in error_of(run, words, out)
    resume(out)
    assert files(out) == before


def test_a_save_does_not_write_the_records_of_earlier_saves(train, out, monkeypatch):
    appended, append = [], cli_run.append

    def noting(path, size, new):
        assert history(out / CHECKPOINT) == new.encode()
        appended.append(new.count("\n"))
        append(path, size, new)

    monkeypatch.setattr(cli_run, "append", noting)
    monkeypatch.setattr(cli_run, "generate", None)  # a quiet run makes no sample
    train("--iters 5 --save-every 1 --steps-per-eval 5 --quiet")
    assert appended == [1, 1, 1]  # the first save and the last one have all records


def test_a_killed_run_needs_its_metrics(train_and_stop, out):
    """More than the records of its checkpoint do no harm; less, or others, are an error."""
    train_and_stop("--optimizer muon")
    path, rows = out / "metrics.jsonl", metrics(out)
    whole = path.read_bytes()
    for damaged in (whole[:99], whole.replace(b"loss", b"gain")):
        path.write_bytes(damaged)
        before = files(out)
        assert f"{path} has not the records" in error_of(resume, out)
        assert files(out) == before
    path.write_bytes(whole + b'{"st')
    resume(out)
    assert metrics(out)[: len(rows)] == rows
    assert history(out / CHECKPOINT) == path.read_bytes()


def test_a_run_or_a_strangers_folder_is_never_overwritten(train, base, out, tmp_path, monkeypatch):
    train()
    before = files(out)
    train("--dry-run")
    with monkeypatch.context() as patch:
        patch.setattr(cli_run, "load_for_training", None)  # the check comes before the loading
        assert "--overwrite" in error_of(train)
    with monkeypatch.context() as patch:  # in the first step
        patch.setattr("minilora.training.gradient_at", Mock(side_effect=KeyboardInterrupt))
        train("--overwrite --seed 4", status=130)
        said = train(*at(tmp_path / "new"), status=130).err
    assert said.endswith("start the same command again\n") and not (tmp_path / "new").exists()
    assert files(out) == before
    own = {Path("README.md"): b"years of work \xff", Path("thesis.tex"): b"and more"}
    for path, raw in own.items():
        (out / path).write_bytes(raw)
    foreign = "did not create (thesis.tex, README.md): move them"
    assert foreign in error_of(train, "--overwrite")
    assert "did not create (README.md): move them" in error_of(train, "--resume")
    assert files(out) == before | own
    write_adapter(tmp_path / "adapter", base)
    assert "an adapter: use --overwrite, or" in error_of(train, *at(tmp_path / "adapter"))


def test_two_runs_in_one_folder(train, out):
    with run_folder.lock(out):
        half = out / "metrics.jsonl.12.tmp"
        half.touch()
        line = error_of(train, "--overwrite")
        assert f"another process is writing {out}: wait for it" in line and half.exists()
        half.unlink()
    assert not out.exists()


@pytest.mark.parametrize("flags, message", [
    ("", "already contains a run"), ("--resume", "--lora-r is 3, but the run"),
])  # fmt: skip
def test_a_run_that_ends_while_another_one_loads_stays(train, out, monkeypatch, flags, message):
    prepare = cli_run.prepare

    def slow(args, folder):
        job = prepare(args, folder)
        monkeypatch.setattr(cli_run, "prepare", prepare)
        train("--overwrite --lora-r 2")
        return job

    if flags:
        train("--lora-r 3")
    monkeypatch.setattr(cli_run, "prepare", slow)
    assert message in error_of(train, "--lora-r 3", flags)
    assert settings_of(out)["lora_r"] == 2


def test_every_evaluation_has_the_rows_of_val_batches_and_none_is_made_twice(
    train, base, data, out, monkeypatch
):
    write_rows(data, [{"text": f"{n}"} for n in range(100)])
    evaluate = Mock(side_effect=minilora.evaluate)
    for place in ("minilora.cli.run.evaluate", "minilora.evaluation.loop.evaluate"):
        monkeypatch.setattr(place, evaluate)
    printed = train("--iters 2 --val-batches 2 --batch-size 3").out
    first, _ = encode_rows(load_rows(data, "valid")[:6], load(base)[1], TrainConfig())
    # before the first step, and after the last
    assert [call.args[2] for call in evaluate.call_args_list] == [first, first]
    assert printed.count(", on 6 of 10 held-out rows\n") == 2
    loss = metrics(out)[-1]["eval_loss"]
    assert f"- Held-out rows: 6: loss {loss:.6g}," in (out / "README.md").read_text()


def test_a_diverged_run_names_the_step_and_keeps_the_checkpoint_before(train, out):
    with np.errstate(all="ignore"):
        more = "--target-modules all-linear --learning-rate 1e30"
        assert "at step" in error_of(train, more)
    assert 1 <= read_metadata(out / CHECKPOINT)[0]["step"] < 4


def test_plain_runs_none_of_the_optimized_operations(train, out, monkeypatch):
    for name in set(fused.__all__) - {"THREADS"}:
        monkeypatch.setattr(fused, name, None)
    train("--iters 2 --plain")
    resume(out, "--iters 3")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        train("--overwrite")


def test_a_step_that_needs_the_whole_memory_is_refused(base, capsys, monkeypatch):
    """Its tokens are those of the longest row, without the last one."""
    loaded = load_for_training(parsed("train --method prefix --model", base))
    examples = [Example([1] * n, [1] * n) for n in (3, 9, 7)]
    config = TrainConfig(batch_size=4, grad_accumulation_steps=9)
    needed = cli_run.print_size(loaded, 4 * 8, config)
    monkeypatch.setattr("minilora.evaluation.memory.physical_memory", lambda: needed)
    with refused("a step needs"):
        check_memory(loaded, examples, config)
    line = "\na step over 32 tokens, without the scores of prefix"
    assert capsys.readouterr().out.count(line) == 2


def test_the_model_card_has_the_base_and_the_metadata_of_the_hub():
    """The transcript has the cards of other methods."""
    words = "train --model smollm2 --method dora --data rows/x/.. --init-adapter runs/first/x/.."
    args = parsed(words)
    model = Model(None, {}, source=Source(scheme=args.quantize))
    loaded = LoadedModel(model, None, {}, make_adapter_config(args))
    scores = {"eval_loss": 0.5, "eval_tokens": 1234567}
    text = run_folder.model_card(args, loaded, State({}, {"step": 200}), scores, 3)
    for part in (
        "- Data: rows, 200 steps. The run began with the adapter in first.\n",
        "- Held-out rows: 3: loss 0.5, tokens 1234567\n",
        "\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n", "- dora\n- lora\n- minilora\n",
        "- base_model:adapter:HuggingFaceTB/SmolLM2-135M-Instruct\n",
    ):  # fmt: skip
        assert part in text


# ----------------------------------------------------------------------------- resuming a run


def test_a_finished_run_is_lengthened(train, base, data, out, tmp_path, monkeypatch):
    """The definition: the state at the end of the first run, then steps of the longer run."""
    train()
    loaded = load_for_training(parsed("train --model", base, "--data", data))
    state, *_ = load_state(out / CHECKPOINT, loaded.adapters)
    for name in ("notes.tmp", "metrics.jsonl.12.tmp"):
        (out / name).touch()
    resume(out, "--iters 9")
    assert [path.name for path in out.glob("*.tmp")] == ["notes.tmp"]

    settings = TrainConfig(iters=9, batch_size=2, learning_rate=0.01)
    examples, _ = encode_rows(load_rows(data, "train"), loaded.tokenizer, settings)
    *_, (state, _) = minilora.run(state, loaded.model, examples, settings)
    save_adapter(tmp_path / "expected", state.adapters, loaded.model, loaded.adapter_config)
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "expected" / WEIGHTS).read_bytes()
    assert [row["step"] for row in metrics(out) if "loss" in row] == [*range(1, 10)]
    resume(out)  # the settings of the checkpoint are the new ones
    config = out / "train_config.toml"
    again = run("train -c", config, *at(tmp_path / "again")).err
    assert f"up to step 4, the run of {config} had the schedule of 4" in again
    with monkeypatch.context() as patch:  # no step has the schedule of this length
        patch.setattr(cli_run.loop, "run", Mock(side_effect=KeyboardInterrupt))
        resume(out, "--iters 20", status=130)
    resume(out, "--epochs 2")
    numbers, facts = read_metadata(out / CHECKPOINT)
    assert (numbers["step"], facts["lengths"]) == (18, [[4, 4], [9, 9]])


@pytest.fixture
def train_and_stop(train, monkeypatch):
    """Train as if a kill came after the last step, 4: step 3 is saved."""

    def start(words):
        with monkeypatch.context() as patch:
            patch.setattr(RunWriter, "end", Mock(side_effect=KeyboardInterrupt))
            train("--save-every 1", words, status=130)

    return start


def test_a_schedule_that_no_step_had_is_not_recorded(train_and_stop, out):
    train_and_stop("")
    for iters in (3, 5, 7):  # the first ends the run at once
        resume(out, f"--iters {iters}")
    text = (out / "train_config.toml").read_text()
    assert text.endswith("# up to step 3: iters = 4\n# up to step 5: iters = 5\n")
    card = (out / "README.md").read_text()
    assert "7 steps; up to step 3 with the schedule of 4 steps; up to step 5 with" in card


def test_epochs_are_steps(capsys):
    examples = [Example([1], [1])] * 30
    config = TrainConfig(batch_size=3, grad_accumulation_steps=2)
    for epochs, steps in ((2.5, 13), (2.2, 11)):
        assert steps_of_epochs(epochs, examples, config) == steps
    for n, iters, epochs in ((1, 10_000, "2,000.0"), (100, 1, "0.002")):
        print_length(examples * n, replace(config, iters=iters))
        end = f"sequences, {iters} steps of 6 sequences: {epochs} epochs\n"
        assert capsys.readouterr().out.endswith(end)


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations whose losses are these, one per evaluation after a step.

    Its `curves` are the title, the kept step and the number of evaluations of each curve.
    """

    def start(*losses):
        remaining = iter(losses)
        monkeypatch.setattr(
            "minilora.evaluation.loop.evaluate",
            lambda *_: {"loss": next(remaining), "exact_match": 0.5},
        )

    def draw(path, history, title, step):
        start.curves.append((title, step, sum("eval_loss" in row for row in history)))
        path.write_text("a figure")

    monkeypatch.setattr("minilora.cli.run.curve", draw)
    start.curves = []
    return start


def test_a_run_that_early_stopping_has_ended_keeps_the_best_step_and_says_so(train, out, scripted):
    scripted(1.0, 2.0, 3.0)
    train("--iters 8 --early-stopping-patience 2")
    trees = tensors(out / CHECKPOINT)
    best, last = (
        {w for name, w in trees.items() if name.startswith(tree)} for tree in ("best.", "adapters.")
    )
    assert {*tensors(out / WEIGHTS).values()} == best != last
    assert scripted.curves == [("base on rows.jsonl", 2, 4)]  # and the evaluation at step 0

    before = files(out)
    said = resume(out).out
    assert "resumed at step 6 of 8\n" in said
    assert f"early stopping has ended the run in {out}: no step is left\n" in said
    for words in ("--iters 9", "--epochs 9"):
        error = resume(out, words, status=2).err
        assert "early stopping has ended the run: leave out --iters and --epochs" in error
    assert files(out) == before


def test_a_run_that_ends_where_it_was_interrupted_has_its_last_evaluation(
    train_and_stop, out, monkeypatch
):
    train_and_stop("--steps-per-eval 2 --keep-best")
    evaluate_once = Mock(side_effect=[{"loss": 0.5, "exact_match": 0.5}])
    monkeypatch.setattr(cli_run, "evaluate", evaluate_once)
    for _ in range(2):  # the second has the evaluation already
        resume(out, "--iters 3")
        assert [row["step"] for row in metrics(out) if "eval_loss" in row] == [0, 2, 3]
        assert "loss 0.5," in (out / "README.md").read_text()


def test_the_curve_is_drawn_once_a_minute_and_at_the_end(train, out, scripted, monkeypatch):
    save, is_there = RunWriter.save, []

    def noting(writer, state):
        save(writer, state)
        is_there.append((out / "curve.png").exists())

    monkeypatch.setattr(RunWriter, "save", noting)
    clock = count(time.monotonic() + 25, 25)  # seconds; read at a save and after a drawing
    monkeypatch.setattr("minilora.cli.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    scripted(*range(8))
    train("--iters 7 --save-every 1 --steps-per-eval 1")
    # drawn 75 and 175 seconds after the start, and at the end
    assert [rows for *_, rows in scripted.curves] == [4, 7, 8]
    assert is_there == [False] * 2 + [True] * 5  # no later save removes it


def test_no_curve_and_no_card_of_an_earlier_run_remain(train, train_and_stop, out):
    train()
    names = "curve.png", "README.md"
    assert all((out / name).exists() for name in names)
    train_and_stop("--overwrite --lora-r 2")
    assert not any((out / name).exists() for name in names)


@pytest.mark.parametrize("steps, every, kept", [(0, 1, 0), (2000, 1, 6), (4001, 3, 6)])
def test_the_curve_has_the_losses_and_the_step_that_is_kept(steps, every, kept, monkeypatch):
    """It has at most 2000 points, and may have no step, no scores and no kept one."""
    rounds = (0, 6, 12) if kept else ()
    history = [{"step": n, "loss": n * n} for n in range(steps)]
    history += [{"step": n, "eval_loss": 2 + n, "eval_exact_match": n / 12} for n in rounds]
    axes = matplotlib.figure.Figure().subplots()
    figure = Mock(return_value=nullcontext(axes))
    monkeypatch.setattr(plot, "figure", figure)
    plot.curve("curve.png", history, "a run", kept)
    texts = "loss (nats per target token)", "a run"
    figure.assert_called_with("curve.png", "optimizer step", *texts)
    both = axes.figure.axes
    raw, means, *others = [line.get_xydata().tolist() for part in both for line in part.lines]
    assert raw == [[n, n * n] for n in range(0, steps, every)]
    for last, mean in means[-1:]:  # of ten steps, and not of ten points
        assert mean == np.mean(np.arange(last - 9, last + 1) ** 2)
    losses, matches = [[n, 2 + n] for n in rounds], [[n, n / 12] for n in rounds]
    # the empty line is in the legend
    assert others == ([losses, [], [[6, 0], [6, 1]], matches] if kept else [])
    assert {part.get_ylim()[0] for part in both} == {0}
    styles = [line.get_linestyle() for line in axes.lines[1:]]
    assert len({*styles}) == len(styles)  # in grey, a line differs from the others by its dashes
    names = ["training (mean of 10 steps)", "held out", "exact match (right)", "kept: step 6"]
    found = [text.get_text() for text in axes.get_legend().get_texts()]
    assert found == names[: len(styles)]


def test_patterns_and_regular_expressions_are_those_of_the_lora_config(tmp_path):
    """As PEFT writes them: one string is a regular expression, and a pattern is a table."""
    toml = tmp_path / "settings.toml"
    toml.write_text('target_modules = ".*q_proj"\n[rank_pattern]\n"0.*=?q_proj" = 3\n')
    words = (
        "--alpha-pattern q_proj=1.5 k_proj=2 --lora-alpha 4 --lora-r 3 --lora-dropout 0.25 "
        "--exclude-modules 0.self_attn.q_proj k_proj --use-rslora --init-lora-weights loftq"
    )
    found = make_adapter_config(parsed("train -c", toml, words))
    expected = LoraConfig(
        target_modules=".*q_proj", exclude_modules=["0.self_attn.q_proj", "k_proj"],
        rank_pattern={"0.*=?q_proj": 3}, alpha_pattern={"q_proj": 1.5, "k_proj": 2},
        r=3, lora_alpha=4, lora_dropout=0.25, use_rslora=True, init_lora_weights="loftq",
    )  # fmt: skip
    assert repr(found) == repr(expected)  # an alpha of 4 is not 4.0
    args = parsed("train --target-modules self_attn.q_proj --layers-to-transform 1")
    names = make_adapter_config(args)
    assert names.target_modules == ("self_attn.q_proj",)
    assert repr(names.layers_to_transform) == "[1]"  # and not [1.0]


def test_a_resume_takes_no_other_value_of_any_setting(out, monkeypatch):
    args = parsed("train --model micro --method ia3")
    metadata = run_folder.metadata(args, Source("micro", digest="0f"))
    monkeypatch.setattr(run_folder, "read_metadata", lambda path: (None, metadata))
    run_folder.check_same_run(out, metadata)
    may_change = {"adapter_path", "iters", "data", "model", "init_adapter"}
    names = vars(args).keys() - {*run_folder.NOT_SETTINGS, *may_change}
    assert len(names) > 35
    for name in names:
        changed = metadata | {"settings": metadata["settings"] | {name: "another"}}
        with refused(f"{flag(name)} is another, but the run in"):
            run_folder.check_same_run(out, changed)
    changed = metadata | {"digests": {"model": "another"}}
    with refused("the files of --model micro have changed"):
        run_folder.check_same_run(out, changed)


def test_the_digests_are_of_the_files_that_training_reads(base, tmp_path):
    """Other files may come into the folders of data and base; each file that is read counts."""
    rows, own = tmp_path / "notes", shutil.copytree(base, tmp_path / "base")
    rows.mkdir()
    train, valid = (write_rows(rows / f"{split}.jsonl") for split in ("train", "valid"))

    def digests():
        return stored_paths.digest("data", rows), pretrained.digest(pretrained.files(own))

    before = digests()
    assert load(own).model.source.digest == before[1]
    for path in (rows / "test.jsonl", own / "model-00002-of-00002.safetensors"):
        path.write_text("{}")
    assert digests() == before
    (templates := own / "additional_chat_templates").mkdir()
    names = "config.json", "model.safetensors", "tokenizer.json", templates / "default.jinja"
    for path in (train, valid, *(own / name for name in names)):
        path.write_bytes(b"other")
        assert digests() != before
        before = digests()
    valid.unlink()  # then some rows of train.jsonl are held out
    before = digests()
    shutil.copy(train, valid)
    assert digests() != before


def test_a_repeat_of_a_run_names_the_inputs_that_have_changed(base, train, data, out, tmp_path):
    """Of a path that the line replaces, there is nothing to name."""
    own, first, again = shutil.copytree(base, tmp_path / "own"), tmp_path / "first", tmp_path / "a"
    folders = {"--model": own, "--data": data, "--init-adapter": first}
    few = "--iters 1 --model", own
    train(*few, *at(first))
    train(*few, "--init-adapter", first)

    def assert_named(names, *more):
        words = "train --overwrite -c", out / "train_config.toml", *at(again), *more
        named = [line for line in run(*words).err.splitlines() if "since the run of" in line]
        since = f"have changed since the run of {out / 'train_config.toml'}"
        assert named == [f"warning: the files of {n} {folders[n]} {since}" for n in names]

    assert_named([])
    assert (again / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    train("--seed 7 --overwrite", *few, *at(first))  # other weights
    assert_named(["--init-adapter"])
    write_rows(data, sums(range(10, 30)))
    assert_named(["--data", "--init-adapter"])
    assert_named(["--init-adapter"], "--data", write_rows(tmp_path / "b.jsonl", sums(range(25))))
    change_json(own / "config.json", transformers_version="5")
    assert_named(["--data", "--init-adapter", "--model"], "--init-adapter", first)


def test_a_run_from_an_adapter_has_its_method_and_storage_also_on_another_base(train, tmp_path):
    """Its first evaluation is of the rounded adapter, which a step at a rate of zero leaves."""
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "other"
    write_base(other, seed=1)
    train(*at(first), "--method dora --also-train norm --quantize int8")
    more = "--init-adapter", first, "--adapter-dtype bfloat16 --iters 1 --warmup-ratio 0.5"
    warning = f"warning: the files of {other} are not those of the base that {first} was trained"
    for printed in (
        train(*at(second), *more, "--also-train head --model", other), resume(second),
    ):  # fmt: skip
        assert printed.err.count(warning) == 1
    assert read_source(second) == load(other, "int8").model.source
    scores = [row["eval_loss"] for row in metrics(second) if "eval_loss" in row]
    assert scores[0] == scores[1]
    entries = read_header(second / WEIGHTS)
    assert {entry.dtype for entry in entries.values()} == {"BF16"}
    assert all(name in str(entries.keys()) for name in ("lm_head", "model.norm"))
    assert "\n- dora\n" in (second / "README.md").read_text()
    run("train --overwrite -c", second / "train_config.toml")  # no value is refused as a flag
    twice = error_of(train, "--dry-run --also-train head head")
    assert "--also-train head has no effect: the adapter trains it already" in twice
    assert "--also-train norm has no effect" in error_of(train, *more, "--also-train norm")


def test_a_run_from_an_adapter_is_resumed_with_no_other_one(train, tmp_path):
    """Its vectors are in the checkpoint, but VeRA's frozen matrices are in the adapter's folder."""
    first, second, moved, copy = (tmp_path / name for name in ("first", "second", "moved", "copy"))
    vera = "--method vera --vera-r 3"
    train(*at(first), vera)
    train(*at(second), "--init-adapter", first)
    digests = read_metadata(second / CHECKPOINT)[1]["digests"]
    resume(first, "--iters 5")  # the same folder may have a longer run
    resume(second, "--iters 6 --init-adapter", first)
    assert read_metadata(second / CHECKPOINT)[1]["digests"] == digests  # of the run at the start
    shutil.copytree(first, moved)
    error = error_of(resume, second, "--iters 7 --init-adapter", moved)
    assert f"--init-adapter is {moved}, but the run in {second} has {first}, and the c" in error
    train(*at(first), vera, "--overwrite")  # the same bytes as at the start
    shutil.copytree(first, copy)
    resume(second, "--iters 7 --init-adapter", copy)
    assert settings_of(second)["init_adapter"] == str(copy)

    for name in SHARED_NAMES:  # each counts
        before = stored_paths.digest("init_adapter", copy)
        change_tensors(copy / WEIGHTS, lambda found, name=name: found | {name: -found[name]})
        assert stored_paths.digest("init_adapter", copy) != before
    before = stored_paths.digest("init_adapter", copy)
    change_json(copy / CONFIG, vera_dropout=0.5)
    assert stored_paths.digest("init_adapter", copy) != before
    train(*at(copy), vera, "--overwrite --seed 5")
    assert f"the files of --init-adapter {copy} have changed" in error_of(resume, second)
