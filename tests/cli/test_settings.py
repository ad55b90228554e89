"""Every setting of `train`, given in every place: the last one counts, and acts or is refused."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from outcomes import refused
from small_run import contents, exit_status, parsed, sums, write_base, write_chat_base, write_rows
from toy_models import tiny

from minilora import training
from minilora.batching import Example
from minilora.cli import arguments
from minilora.cli.arguments import RECIPES, as_parsed, flag, parse, parser
from minilora.cli.loading import load_for_training, unused_settings
from minilora.cli.run import RunWriter
from minilora.config import TrainConfig

DEFAULTS = vars(parser().parse_args(["train"]))
VALUES = {  # {setting: a value that is not the default and acts}; a list of values is a string
    "model": "{other}", "data": "{more}", "columns": ["prompt=question", "completion=answer"],
    "quantize": "fp4", "block_size": 32, "method": "ia3", "init_lora_weights": "pissa",
    "lora_alpha": 0.5, "lora_dropout": 0.2, "target_modules": [".*[01].*up_proj"],
    "exclude_modules": ["0.self_attn.q_proj"], "rank_pattern": ["q_proj=3", "1.*=2"],
    "alpha_pattern": ["q_proj=3"], "layers_to_transform": [0], "also_train": ["norm"],
    "iters": 4, "epochs": 0.2, "max_seq_length": 5, "optimizer": "muon", "learning_rate": 0.02,
    "lr_schedule": "constant", "max_grad_norm": 0.01, "adam_eps": 0.1, "loraplus_lr_ratio": 4.0,
    "compute_dtype": "bfloat16", "adapter_dtype": "bfloat16", "shards": 2,
    "chat_date": "2001-02-03", "adapter_path": "{run}", "init_adapter": "{adapter}",
}  # fmt: skip
for value, names in {
    0.5: "warmup_ratio weight_decay adam_beta1 adam_beta2 also_train_lr_scale layer_lr_decay",
    1: "steps_per_eval val_batches early_stopping_patience save_every",
    3: "num_virtual_tokens bottleneck_size vera_r lora_r batch_size grad_accumulation_steps seed",
}.items():
    VALUES |= dict.fromkeys(names.split(), value)
SWITCHES = "mask_prompt packing gradient_checkpointing keep_best use_rslora plain quiet dry_run"
VALUES |= dict.fromkeys(SWITCHES.split(), True)
OTHERS = {  # other values of the settings whose default is no value
    "columns": ["prompt=prompt", "completion=answer"], "block_size": 128,
    "init_lora_weights": "loftq", "exclude_modules": ["v_proj"], "rank_pattern": ["v_proj=2"],
    "alpha_pattern": [], "layers_to_transform": [0, 1], "epochs": 0.4, "shards": 1,
    "chat_date": "2002-02-03", "init_adapter": "another",
}  # fmt: skip
OF_THE_FOLDER = {"command", "config", "resume", "overwrite"}  # see test_folders.py
START = {
    "model": "{base}", "data": "{rows}", "iters": 3, "batch_size": 2, "save_every": 2,
    "steps_per_eval": 2, "learning_rate": 0.01, "adapter_path": "{run}",
}  # fmt: skip
CONTEXTS = (  # in each of them, other flags act
    {}, {"method": "dora", "also_train": ["norm"]}, {"method": "ia3"}, {"method": "prompt"},
    {"method": "bottleneck"}, {"method": "vera"}, {"quantize": "none"}, {"optimizer": "muon"},
    {"data": "{few}"}, {"data": "{texts}"}, {"packing": True}, {"init_adapter": "{adapter}"},
    {"model": "{chat}"}, {"early_stopping_patience": 2}, {"layers_to_transform": [1]},
)  # fmt: skip


@pytest.fixture(scope="module")
def place(place):
    """The folder with more bases and rows, and the names of all of them."""
    names = "base other chat rows few texts more adapter run"
    of = {name: str(place / name) for name in names.split()}
    write_base(place / "other", seed=1)
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    write_chat_base(place / "chat", template)
    rows = [row | {"question": f"{row['prompt']}?", "answer": "no"} for row in sums(range(60))]
    texts = [{"text": row["prompt"]} for row in rows]
    for name, some in {"rows": rows[:50], "few": rows[:3], "more": rows, "texts": texts}.items():
        write_rows(Path(of[name]), some)
    return SimpleNamespace(folder=place, of=of)


def as_words(settings, of):
    """Return settings as words of a command line."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, list):
            words += [flag(name), *(str(v).format(**of) for v in value)]
        else:
            words.append(f"{flag(name)}={value}".format(**of))
    return words


def as_file(settings, of, rng):
    """Return settings as TOML, with keys and tables as a person may write them."""
    lines = ""
    for name, value in settings.items():
        text = json.dumps(value)
        if name.endswith("pattern") and rng.random() < 0.5:
            pairs = (pair.split("=") for pair in value)
            text = "{" + ", ".join(f'"{regex}" = {number}' for regex, number in pairs) + "}"
        elif isinstance(value, str):
            text = json.dumps(value.format(**of))
        lines += f"{name.replace('_', rng.choice('_-'))} = {text}\n"
    return rng.choice(["", "\ufeff"]) + lines


@pytest.fixture
def outcome(place, monkeypatch, capsys):
    """Return a function that runs `train`: its error line, or what it wrote, did and printed.

    With `resumed`, it continues the run before it, as if a kill came after the first checkpoint.
    """
    loss, save = training.model_loss, RunWriter.save
    seen, saved = set(), set()
    folder, killed = place.folder / "run", place.folder / "killed"

    def spying_loss(adapters, model, batch, rng, checkpointing):
        seen.add((model.ops.__name__, checkpointing))
        return loss(adapters, model, batch, rng, checkpointing)

    def spying_save(writer, state):
        save(writer, state)
        if not saved:
            shutil.copytree(folder, killed)
        saved.add(state.step)

    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(training, "model_loss", spying_loss)
    monkeypatch.setattr(RunWriter, "save", spying_save)

    def train(line, resumed=False):
        saved.clear()
        shutil.rmtree(folder, ignore_errors=True)
        if resumed:
            killed.rename(folder)
            words = ["train --resume --adapter-path", folder]
        else:
            seen.clear()
            shutil.rmtree(killed, ignore_errors=True)
            words = ["train", *as_words(line, place.of)]
        capsys.readouterr()
        status = exit_status(*words)
        printed, said = capsys.readouterr()
        if status:
            return said.splitlines()[-1]
        found = contents(folder)
        return SimpleNamespace(files=found, did={*seen}, saved={*saved}, printed=printed)

    return train


def effects(outcome, name):
    """Return what a run wrote and did, without the settings that it records."""
    tensors, numbers, _, rows = outcome.files.get("checkpoint.safetensors", [None] * 4)
    weights = [outcome.files.get(f"adapter_{end}") for end in ("config.json", "model.safetensors")]
    did = outcome.did, name == "save_every" and outcome.saved, name == "quiet" and outcome.printed
    return tensors, numbers, rows, weights, did


def test_of_every_setting_the_last_place_counts(place, rng, monkeypatch):
    """The settings and the given flags are the same, wherever they were given last."""
    recipe, stored = place.of["rows"], {}
    folder, toml = place.folder / "adapters", place.folder / "settings.toml"
    folder.mkdir()
    (folder / "checkpoint.safetensors").touch()
    monkeypatch.setattr(arguments, "read_metadata", lambda path: (None, {"settings": stored}))

    def read(line, file=None, start=None):
        toml.write_text(as_file(file or {}, place.of, rng), encoding="utf-8")
        monkeypatch.setitem(RECIPES, recipe, " ".join(as_words(start or {}, place.of)))
        args = vars(parsed("train -c", toml, *as_words(line, place.of)))
        if args["epochs"]:
            del args["iters"]  # which a run computes from the epochs
        given = {word for word in args.pop("given") if word.startswith("--")}
        return args, given - {"--iters", "--epochs"}  # which always act

    others = DEFAULTS | OTHERS
    for name, value in VALUES.items():
        rest = {} if name == "data" else {"data": "{rows}"}
        own, earlier = {name: value}, {name: others[name]}
        if name in ("iters", "epochs"):  # they are one setting
            earlier = {"epochs": 0.4} if name == "iters" else {"iters": 5}
        expected = read(rest | own)
        settings, _ = expected
        assert settings != read(rest)[0], name
        assert read(rest, own) == expected, name
        assert read(rest | own, earlier) == expected, name
        assert read(rest | own, start=earlier) == expected, name
        if name not in ("adapter_path", "epochs"):  # a checkpoint has neither
            resumed = rest | {"resume": True, "adapter_path": str(folder)}
            expected = read(resumed | own)
            stored[name] = read(rest, {name: others[name]})[0][name]
            assert read(resumed | own) == read(rest, resumed | own) == expected, name
            stored[name] = settings[name]
            assert read(resumed)[0] == expected[0], name
            stored.clear()
    monkeypatch.chdir(place.folder)
    stored["adapter_path"] = "/home/adapters"  # the folder was moved since then
    assert parsed("train --resume").adapter_path == "adapters"


def test_a_value_of_another_type_or_an_empty_one_or_two_are_refused_in_every_place(place):
    """An empty list is a value in a file, but not on the line: a variable of the shell is empty."""
    for name, default in DEFAULTS.items():
        is_switch = isinstance(default, bool)
        if name in ("command", "config"):
            continue
        value = VALUES.get(name, True)
        words = as_words({name: value}, place.of)
        again = [flag(f"no_{name}")] if is_switch else words
        with refused(f"{flag(name)} is given 2 times"):
            parse(["train", *words, *again])
        for wrong in ["x", 1, []] if is_switch else [True, False]:
            with refused(f"^a file: `{name}` must"):
                as_parsed({name: wrong}, "a file")
        if is_switch:
            continue
        for empty in ([flag(name)], [flag(name), ""], [f"{flag(name)}="]):
            with refused(flag(name)):
                parse(["train", *empty])
        if isinstance(value, list):
            with refused(f"{flag(name)}: "):
                parse(["train", *words, ""])


def test_a_date_is_stored_in_one_form(monkeypatch):
    assert parsed("train --chat-date 20240301").chat_date == "2024-03-01"
    # a process can outlive a day
    monkeypatch.setattr(arguments, "date", SimpleNamespace(today=lambda: "1999-01-02"))
    assert parsed("train").chat_date == "1999-01-02"


def test_the_date_of_a_template_for_tools_is_stored_even_of_a_run_on_texts(place):
    args = parsed("train --chat-date 2001-02-03 --model", place.of["base"])
    tokenizer = replace(tiny(), for_tools="{{ strftime_now('%Y') }}")
    loaded = load_for_training(args)._replace(tokenizer=tokenizer)
    examples = [Example([1, 2], [1, 1], [1, 1])]
    assert "chat_date" not in unused_settings(args, loaded, TrainConfig(), examples, [])


LORA = (
    "lora_r lora_alpha lora_dropout target_modules exclude_modules rank_pattern alpha_pattern "
    "layers_to_transform use_rslora init_lora_weights"
)
SIZES = "num_virtual_tokens bottleneck_size vera_r"
NO_FACTORS = f"{LORA} loraplus_lr_ratio"
UNUSED = {  # flags: the settings that have no effect with them
    "--method prefix": f"{NO_FACTORS} bottleneck_size vera_r",
    "--method full --quantize none": f"{NO_FACTORS} {SIZES} compute_dtype",
    "--method head": f"{NO_FACTORS} {SIZES} layer_lr_decay gradient_checkpointing",
    "--init-adapter {adapter}": f"method {LORA} {SIZES}",
    "--layers-to-transform 1": f"{SIZES} layer_lr_decay",
    "--optimizer muon": f"{SIZES} adam_beta1 adam_beta2 adam_eps",
    "--optimizer muon --also-train norm": SIZES,
    "--alpha-pattern .*=2 --rank-pattern q_proj=2": f"{SIZES} lora_alpha",
}


@pytest.mark.parametrize("flags", UNUSED)
def test_which_settings_have_no_effect(place, flags):
    """A command line that has the flag of such a setting is refused."""
    args = parsed("train --model", place.of["base"], flags.format(**place.of))
    loaded = load_for_training(args)
    config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    text, with_prompt = (Example([1, 2], [1, 1], [of_answer, 1]) for of_answer in (1, 0))

    def unused(*examples):
        return {*unused_settings(args, loaded, config, *examples)}

    found = unused([text, with_prompt], [text])
    expected = {*UNUSED[flags].split(), "chat_date"}
    if not args.also_train:
        expected.add("also_train_lr_scale")
    assert found == expected
    assert unused([text], [with_prompt]) == found
    assert unused([text], [text]) == found | {"mask_prompt"}
    assert unused([with_prompt], []) == found | {"steps_per_eval", "val_batches"}
    for name in found:
        args.given = [flag(name)]
        with refused(f"^{flag(name)} has no effect .*: leave it out"):
            unused([with_prompt], [text])


def test_every_setting_acts_or_is_refused_and_a_resumed_run_has_it(place, outcome, rng, tries):
    """Each case is a setting and other settings, with which it may have no effect."""
    known = DEFAULTS.keys() - OF_THE_FOLDER
    assert known == VALUES.keys()
    cases = [(name, context) for name in VALUES for context in CONTEXTS]
    for name, context in rng.sample(cases, tries(10, 400)):
        rest = START | context
        rest.pop("iters" if name == "epochs" else name, None)
        value = VALUES[name]
        line = rest | {name: value}
        expected = outcome(line)
        if isinstance(expected, str):
            words = [name, *map(flag, (name, *context))]
            if "{" in str(value):
                words.append(value.format(**place.of))  # an error of a file names the file
            named = any(word in expected for word in words)
            assert named or isinstance(outcome(rest), str), (name, context, expected)
            continue
        if name not in ("quiet", "dry_run"):
            found = outcome(line, resumed=True)
            assert (found.files, found.did) == (expected.files, expected.did), (name, context)
        if name not in ("adapter_path", "iters", "epochs", *context):
            assert effects(expected, name) != effects(outcome(rest), name), (name, context)
