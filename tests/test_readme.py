"""The README and the guide: their Python code runs, and their numbers are correct."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from models import moved
from outcomes import run

import minilora
from minilora import tree
from minilora.cli.arguments import Parser, parser
from minilora.course.commands import add_commands
from minilora.data.tasks import RECIPES
from minilora.kernels import weights
from minilora.lessons.helpers import common, compare, real_run
from minilora.methods.registry import METHODS
from minilora.quant.schemes import quantize_leaf

ROOT = Path(__file__).parents[1]
LESSONS, GUIDE = ROOT / "lessons", ROOT / "lessons/guide"
PAGES = [ROOT / "README.md", LESSONS / "README.md", *sorted(LESSONS.glob("*/*.md"))]
EXERCISES = tomllib.loads((LESSONS / "exercises.toml").read_text("utf-8"))["exercise"]


def page(path):
    """The text of a page, from its place in the repository or its name in the guide."""
    path = ROOT / path if (ROOT / path).exists() else GUIDE / path
    return path.read_text("utf-8")


def table(name, head):
    """The rows of the page's table whose first line begins with `head`: lists of cells."""
    lines = page(name).split(f"| {head}", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def block(name, language="python", heading="# "):
    """The first block in this language after a heading."""
    return page(name).split(heading, 1)[1].split(f"```{language}\n", 1)[1].split("```")[0]


# ------------------------------------------------------------------------------------ the README


def test_the_dozen_lines(tmp_path, monkeypatch):
    """With fewer steps, they learn, and save the adapter and the base that it needs."""
    lines = block("README.md", heading="## In a dozen lines")
    assert textwrap.indent(lines, "    ") in minilora.__doc__
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines.replace("iters=200", "iters=8"), names)
    losses = [row["loss"] for row in names["history"] if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0] - 1
    run("evaluate --adapter-path my_adapter --data questions")


@pytest.mark.long
def test_the_output_of_the_first_run(tmp_path, monkeypatch):
    """`minilora train` without flags; training magnifies how a processor rounds, so the last loss
    is known to some percent only."""
    monkeypatch.chdir(tmp_path)
    printed = run("train").out
    shown = block("README.md", "text")
    pattern = r"after: held-out loss ([\d.]+) nats per token, exact match (.*)"
    said, found = (re.search(pattern, text) for text in (shown, printed))
    assert float(found[1]) == pytest.approx(float(said[1]), rel=0.2)
    assert found[2] == said[2]
    assert {*shown.splitlines()} - {said[0]} <= {*printed.splitlines()}


def test_the_readme_is_the_projects():
    project = tomllib.loads(page("pyproject.toml"))["project"]
    text = page("README.md")
    assert f"version {minilora.__version__}.\n" in text
    assert f"the {project['license']} licence" in text
    assert f"Python {project['requires-python'][2:]} or newer" in text
    assert text.count("```sh\n") == 2  # `.ci/run` runs the second


def test_the_readme_repeats_numbers_of_the_guide():
    text = page("README.md").replace("\n", " ")
    proven = {tuple(row[:2]): row[2:4] for row in table("proofs.md", "here | against")}
    cases, _ = proven["NF4 and FP4: codes, absmax, dequantized values", "bitsandbytes"]
    four_bits = "SmolLM2 in NF4: gradient of each factor", "PyTorch + PEFT + bitsandbytes"
    assert f"equal bit for bit in {cases} cases" in text
    assert f"in NF4 differ by {proven[four_bits][1]} of their size at most" in text
    assert f"our adapters in PEFT by {proven['our adapters in PEFT: logits', 'PEFT'][1]}." in text
    fast = [row[1].split()[0] for row in table("speed-and-memory.md", "training step | ratio")]
    assert f"a LoRA step takes {fast[0]} times as long" in text
    assert f"{fast[7]} times with products and weights in bfloat16 on both sides" in text
    said = re.search(r"takes [\d.]+ s, and a QLoRA step [\d.]+ s(?=:)", page("faq.md"))[0]
    speed = page("speed-and-memory.md").replace("\n", " ")
    assert f"A LoRA step on q and v {said}." in speed


def test_the_runs_of_a_real_model():
    """The table is that of real_run.csv: seeds below 9; the fastest run, as others ran beside."""
    read = {"delimiter": ",", "names": True, "dtype": None, "encoding": "utf-8"}
    runs = np.genfromtxt(real_run.TABLE, **read)
    for method, row in zip(("full", "lora", "qlora"), table("README.md", "SmolLM2, 135 million")):
        own = runs[runs["method"] == method]
        counted = own[own["seed"] < 9]
        loss, peak = counted["loss"], counted["peak_mb"]
        assert row[2] == f"{loss.mean():.4f} ({loss.min():.4f} to {loss.max():.4f})"
        assert row[3] == f"{peak.max():,} MB"
        assert row[4] == f"{own['seconds_per_step'].min():.1f} s"
        assert all(counted["exact_match"] == 1) and len(counted) == 3


def test_the_counts_and_the_tables_of_the_lessons_and_exercises():
    text = page("README.md")
    mistakes = sum(len(exercise["mistake"]) for exercise in EXERCISES)
    assert f"There are {len(EXERCISES)} [exercises]" in text and f"{mistakes} typical" in text
    rows = []
    for e in EXERCISES:
        lesson, n = e["lesson"].removeprefix("studies/"), len(e["mistake"])
        numbers = (str(e[key]) for key in ("difficulty", "minutes", "points"))
        rows.append([e["id"], lesson, *numbers, f"{n} of {n}"])
    assert sorted(table("lessons/README.md", "exercise | lesson")) == sorted(rows)
    row = r"^\| \[.*\]\(([\w/]+\.py)\) .* \| (.*) \|$"
    times = dict(re.findall(row, page("lessons/README.md"), re.MULTILINE))
    studies = [path for path in LESSONS.glob("studies/*/*.py") if "_sweep" not in path.name]
    files = [*LESSONS.glob("[0-9]*.py"), *studies]
    assert sorted(times) == sorted(str(path.relative_to(LESSONS)) for path in files)
    for file, time in times.items():
        text = (LESSONS / file).read_text("utf-8").replace("\n# ", " ")
        assert f"**Time:** {time} to run" in text, file


# ------------------------------------------------------------------------------------- the guide


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = (path.parent / name) if name else path
            assert file.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)", file.read_text("utf-8"), re.MULTILINE)
                assert anchor in map(slug, headings), target


def test_the_flags_of_train():
    commands = parser()._actions[-1].choices
    rows = {row[0].strip("`"): row[1:] for row in table("command-line.md", "flag |")}
    actions = commands["train"]._actions[1:]
    assert len(rows) == len(actions)
    for action in actions:
        (flag,) = rows.keys() & action.option_strings
        default, meaning = rows[flag]
        value = " ".join(action.default) if isinstance(action.default, list) else action.default
        if flag != "--chat-date":  # the day of the run
            assert default.strip("`") == ("none" if value in (None, "") else str(value)), flag
        if action.choices and action.dest != "method":  # the page "Methods" lists those
            assert set(re.findall(r"`([^`]*)`", meaning)) == set(action.choices), flag
    course = Parser(prog="minilora")
    add_commands(course)
    listed = {row[0].strip("`").split()[0]: row[1] for row in table("command-line.md", "command |")}
    assert listed.keys() == commands.keys()
    for name, sub in course._actions[-1].choices.items():
        assert re.findall(r"`(\w+)`", listed[name]) == list(sub._actions[-1].choices)
    assert dict(re.findall(r"^- `(\w+)`: `(--.*)`[,.]$", page("command-line.md"), re.M)) == RECIPES


def test_the_methods():
    assert [row[0].strip("`") for row in table("methods.md", "`--method` |")] == list(METHODS)
    rows = table("methods.md", "200 steps")
    assert [row[0].partition(",")[0] for row in rows] == list(compare.TABLE)
    assert f"{compare.BUDGET:,} parameters" in page("methods.md")
    # the columns of sizes follow from the methods alone, the others from the runs of the sweep
    model, _ = minilora.load("micro")
    stored = common.read_sweep("siblings")
    for (method, entry), (_, *sizes, _, loss, exact, notes) in zip(compare.TABLE.items(), rows):
        config = compare.sized(entry, model, compare.BUDGET)
        adapters, adapted = minilora.get_peft_model(model, config)
        n, size = tree.num_parameters(adapters), compare.file_bytes(adapters, adapted, config)
        assert sizes == [f"{number:,}" for number in (n, size, 2 * 4 * n)], method
        scores = ("loss", 1, loss), ("exact_match", 100, exact), ("notes_after", 1, notes)
        for name, unit, cell in scores:
            seen = unit * np.array(common.of(stored, name, method=method))
            digits = len(cell.split()[0].partition(".")[2])
            assert cell == f"{seen.mean():.{digits}f} ± {seen.std(ddof=1):.{digits}f}", method


def test_the_bits_of_the_storage_schemes():
    w = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    for scheme, bits, _ in table("data-and-models.md", "scheme | bits"):
        stored = quantize_leaf("model.layers.0.mlp.up_proj.weight", w, scheme.strip("`"))
        rows = 32 * len(w) if scheme == "`int8`" else 0  # said apart
        assert float(bits.split(",")[0]) == round((8 * stored.nbytes - rows) / w.size, 3), scheme


def test_the_small_models_and_their_losses_on_their_language():
    pattern = r"([\d.]+) nats per byte.*`tiny` reaches ([\d.]+) and `micro` reaches (\S+)\."
    said = re.search(pattern, page("data-and-models.md").replace("\n", " "))
    described = dict(table("data-and-models.md", "name | model"))
    for name, said_loss in zip(("tiny", "micro"), said.groups()[1:]):
        model, tokenizer = minilora.load(name)
        size = f"{tree.num_parameters(model.base):,} parameters"
        assert described[f"`{name}`"].startswith(size)
        notes, entropy = common.held_out_notes(tokenizer, minilora.TrainConfig())
        loss = minilora.evaluate({}, model, notes)["loss"]
        assert (said[1], said_loss) == (f"{entropy:.4f}", f"{loss:.4f}"), name


def test_several_adapters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model, _), config = minilora.load("tiny"), minilora.LoraConfig()
    for seed, folder in enumerate("ab"):
        adapters, _ = minilora.get_peft_model(model, config, seed)
        adapters = moved(adapters, lambda w: w + np.float32(0.01))  # B, too
        minilora.save_adapter(folder, adapters, model, config)
    names: dict = {}
    exec(block("several-adapters.md"), names)
    assert max(names["errors"].values()) < 1e-6
    assert minilora.load_adapter("both", names["model"]).adapter_config.r == 16


def test_the_numbers_of_several_adapters():
    runs = common.read_sweep("combining")

    def mean(name):
        return np.mean(common.of(runs, name))

    errors = {row[0].strip('`"'): row[2] for row in
              table("several-adapters.md", "`combination_type` |")}  # fmt: skip
    assert mean("off_other_cat") < 1e-7 and "below 1e-7" in errors["cat"]
    rows = table("several-adapters.md", "| Who, what, where?")
    cells = [errors["svd"], errors["linear"], *(cell for row in rows for cell in row[1:])]
    names = ["off_other_svd", "off_other_linear", "one", "turned", "there_0.5", "back_0.5",
             "there_1.0", "back_1.0", "stack_there", "stack_back"]  # fmt: skip
    for cell, name in zip(cells, names, strict=True):
        assert float(cell) == pytest.approx(mean(name), abs=0.0051), name


ASSERTED = [  # per rule of thumb, what its lessons assert about it
    ("NF4's bin shares",),
    ("every ΔW must be nearer to low rank than a random", "about a third of the directions"),
    ("bfloat16 must be worse than float32, float16 like it",),
    ("the same α·η at low rates (0.016): the same loss",),
    ("lower with four of five seeds", "a constant rate must be better"),
    ("different starts: a high loss", "the same start: a low one"),
    ("at the same rate: no effect", "at ten times: forgotten"),
    ("without outliers, every block size", "with outliers, large blocks must cost more"),
]


FINDINGS = {  # per finding since 2023, what its lesson asserts: how its verdict begins
    "the factor must not be 7 to 15": "does not hold here",
    "the rank hardly matters": "holds here",
    "a larger factor in short runs must not be shown": "not shown either way",
    "must be behind after 100 steps": "does not hold here",
    "LoRA must not lose more with the larger batch": "does not hold here",
    "on facts, the MLP must win": "holds here",
    "0.6 and 0.9 bits": "not shown either way",
    "int8 keeps 90 %": "holds here",
    "full adds some": "does not hold here",
    "the whole update must bring back more": "does not hold here",
    "the smaller the update, the larger the share that way 2 loses": "not shown either way",
    "NVFP4 must be better than MXFP4": "holds here",
    "a power of two is coarse": "holds here",
    "all seeds lose ΔW": "holds here",
    "a small update must survive stochastically": "holds here",
    "the best α must grow less than as √r": "does not hold here",
    "a late one has a higher loss": "does not hold here",
    "must be shown to be better or worse": "not shown either way",
    "must be shown to be close or far": "not shown either way",
    "must have a lower loss than {b}": "holds here",
    'near == {"r = 1": HOLDS, "r = 8": OPEN}': "holds here",
    "noise must raise the entropy": "holds here",
    "no format is shown to help, and none to harm": "not shown either way",
    "verdicts == [HOLDS, HOLDS] and same == HOLDS": "holds here",
    "forgetting must follow the divergence": "holds here",
    "with the weight, more must be forgotten": "does not hold here",
    "the reference may not change": "holds",
    "at each rate and seed, less likely at the end": "holds here",
    "alone == common.FAILS": "does not hold here",
    "the merged weights must be those of the forward pass, exactly": "holds",
    "above through W": "not shown either way",
    "the better factor must depend on the rate": "holds here",
    "close == common.FAILS": "does not hold here",
    "a higher curvature, a lower best rate": "holds here",
    "with other kernels, a difference is not shown": "not shown either way",
    "the whole fall must be at the ends of epochs": "holds here",
    "as good as new rows": "holds here",
    "the first task must be lost": "does not hold here",
    "off-policy: answers the trained form": "holds here",
    "on-policy, reverse KL: knows less than off-policy": "does not hold here",
    "verdicts == [HOLDS, OPEN, HOLDS, HOLDS, HOLDS]": "does not hold here",
}


def test_the_lessons_of_a_rule_of_thumb_or_a_finding_assert_it():
    rows = table("faq.md", "rule | what") + table("faq.md", "claim | source")
    asserted = [("", messages) for messages in ASSERTED]
    asserted += [(verdict, (message,)) for message, verdict in FINDINGS.items()]
    for row, (verdict, messages) in zip(rows, asserted, strict=True):
        links = re.findall(r"\(\.\./(.*?\.py)\)", row[-1])
        lessons = [(LESSONS / link).read_text("utf-8") for link in links]
        assert row[2].startswith(verdict), row
        assert all(any(message in lesson for lesson in lessons) for message in messages), links
        assert all(any(message in lesson for message in messages) for lesson in lessons), links


def test_the_merge_table_of_the_faq_is_that_of_its_study(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "FIGURES", tmp_path)
    lesson = (LESSONS / "studies/serving/merging_into_four_bits.py").read_text("utf-8")
    names: dict = {}
    exec(lesson.split("# %% [markdown]\n# ## What the task says")[0], names)
    again, original = (names["error"][way] for way in ("4 bits again", "original W"))
    # the second column is the weight that the others are compared with
    shown = {
        size: ["0", f"{a:.2f}", f"{b:.2f}"]
        for size, a, b in zip(names["SIZES"], again, original)
        if size in (0.01, 0.03, 0.1, 0.3)
    }
    rows = {float(size): cells for size, *cells in table("faq.md", "size of the update")}
    assert rows == shown


NUMBER = r"[−+]?\d[\d.]*"
RANGE = rf"({NUMBER}) to ({NUMBER})(?= times| points| \((?:LoRA\+|PiSSA|DoRA)\))"


def rounds_to(values, said):
    """Return whether one of the values, of three digits, rounds to the number that a text says."""
    digits = len(said.partition(".")[2])
    said = float(said.replace("−", "-"))
    return any(abs(float(value) - said) < 0.501 * 10**-digits for value in values)


@pytest.mark.long
@pytest.mark.parametrize("name", [
    "08_the_settings", "dropout_and_wrong_choices", "norms_and_biases", "lora_without_regret",
    "how_much_fits_into_an_adapter", "methods_at_their_best_rate",
])  # fmt: skip
def test_a_range_of_a_lesson_has_ends_of_intervals_that_it_prints(name, monkeypatch, capsys):
    """In its text and in its rows of the FAQ. A range may span two intervals."""
    monkeypatch.setattr(common, "QUICK", True)  # the intervals are of the sweep, in both kinds
    (path,) = LESSONS.rglob(f"{name}.py")
    lesson = path.read_text("utf-8")
    exec(lesson, {})
    printed = re.findall(r"\(([-\d.]+) to ([-\d.]+)\), \d+ seeds:", capsys.readouterr().out)
    lows, highs = zip(*printed)
    text = " ".join(re.findall(r"^# (.*)", lesson, re.MULTILINE))
    text += "".join(line for line in page("faq.md").splitlines() if f"/{path.name})" in line)
    ranges = re.findall(RANGE, " ".join(text.split()))
    assert ranges
    for low, high in ranges:
        assert rounds_to(lows, low) and rounds_to(highs, high), f"{low} to {high}"


def test_the_table_of_peers_adds_up():
    rows = table("proofs.md", "here | against")
    cases = sum(int(row[2].replace(",", "")) for row in rows)
    assert f"{cases:,} cases" in page("proofs.md")
    for what, _, _, largest, bound, *_ in rows:
        assert largest == bound == "equal" or float(largest) <= float(bound), what


def test_the_debugger_stops_where_the_guide_says(tmp_path):
    first, *others = block("design.md", "text").splitlines()
    command, typed = shlex.split(first), [line.removeprefix("(Pdb) ") for line in others]
    typed += ["p type(x).__name__", "where", *["continue"] * 3, "p type(x).__name__", "quit"]
    few = tmp_path / "few.jsonl"  # a debugger slows the reading of rows, too
    few.write_text('{"text": "Ada keeps a red ball."}\n' * 3)
    printed = subprocess.run(
        [sys.executable, *command[1:], "--data", few], cwd=tmp_path, input="\n".join(typed),
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    ).stdout  # fmt: skip
    inside = printed.split("gradient_at()", 1)[1]
    assert "layers.py" in inside and "linear()" in inside
    assert re.findall(r"'(ndarray|ArrayBox)'", inside) == ["ndarray", "ArrayBox"]


def test_the_tile_of_the_logits():
    text = page("speed-and-memory.md")
    assert f"at most {weights.TILE:,} tokens of the vocabulary" in text
    assert f"an array of {4 * 128 * 49_152 * 4 / 1e6:.0f} MB" in text


def test_each_difference_of_a_library_has_a_test():
    tests = page("tests/peers/test_disagreements.py").count("\ndef test_")
    assert len(table("proofs.md", "point | paper")) == tests


def test_the_minutes_of_the_plans():
    by_name = {exercise["id"]: exercise for exercise in EXERCISES}

    def minutes(exercises):
        return sum(exercise["minutes"] for exercise in exercises)

    capstone = int(re.search(r"`minilora learn train` \((\d+) minutes\)", page("teachers.md"))[1])
    order, totals = [], []
    for *_, names, total in (row[:5] for row in table("teachers.md", "week |")[:9]):
        names_of_week = names.partition(", and the capstone")[0].split(", ")
        week = [by_name[name] for name in names_of_week]
        in_class = capstone if "train" in names else 0
        levels = [exercise["difficulty"] for exercise in week]
        assert levels == sorted(levels)
        assert int(total) == minutes(week) + in_class
        order += week
        totals.append(int(total))
    assert order == EXERCISES  # one order: that of `learn next` and of the path
    assert max(totals) <= 1.3 * min(totals)
    for _, _, day in table("teachers.md", "day |"):
        assert minutes(by_name[name] for name in day.split(", ")) < 120
