"""Damaged files, unusual names and an ASCII terminal give a one-line error and status 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from small_run import write_base_and_rows

from minilora import cli
from minilora.formats import safetensors_file
from minilora.formats.checkpoint import load_adapter, load_state
from minilora.formats.files import append
from minilora.formats.pretrained import load

STEPS = "--iters 2 --batch-size 2 --save-every 1 --steps-per-eval 1"
READING = {
    "resume": "train --resume", "evaluate": "evaluate --split valid",
    "generate": "generate --prompt 1+1= --max-tokens 2", "inspect": "inspect",
    "merge": "merge --out {out}",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Skip drawing, which takes half the time of these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.cli.run.curve", lambda path, *_: path.write_text("a figure"))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A base, rows, and a valid run of two steps."""
    folder = tmp_path_factory.mktemp("damaged")
    write_base_and_rows(folder)
    assert train(folder, folder / "run") == 0
    return folder


def train(folder, out, *more, steps=STEPS):
    words = f"train --model {folder / 'base'} --data {folder / 'rows.jsonl'} {steps}"
    return cli.main([*words.split(), "--adapter-path", str(out), *more])


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the valid run, which a test may damage."""
    return Path(shutil.copytree(whole / "run", tmp_path / "run"))


def refused(capsys, status):
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and error.startswith("error: "), error
    return error


def command(name, run):
    words = READING[name].format(out=run.parent / "merged").split()
    return cli.main([*words, "--adapter-path", str(run)])


# ------------------------------------------------------------------------------- damaged files


def change_facts(run, **facts):
    change(run, lambda header: header.update(facts=json.dumps(json.loads(header["facts"]) | facts)))


def change_state(run, **numbers):
    name = "minilora_run"
    change(
        run, lambda header: header.update({name: json.dumps(json.loads(header[name]) | numbers)})
    )


def change(run, edit, tensors=lambda entries: None, name="checkpoint.safetensors"):
    """Rewrite a safetensors file with other metadata or other tensors."""
    entries = safetensors_file.read_header(run / name)
    metadata = safetensors_file.read_json_header(run / name)[0]["__metadata__"]
    entries = {n: safetensors_file.entry(e.dtype, e.read()) for n, e in entries.items()}
    edit(metadata)
    tensors(entries)
    safetensors_file.write(run / name, entries, metadata)


def transposed(entries):
    """Change every factor and its moments, so that the file is consistent."""
    for name, found in entries.items():
        if "lora_A" in name:
            entries[name] = safetensors_file.entry("F32", np.ascontiguousarray(found.read().T))


METRICS = {
    "a number": b"3\n", "a list": b"[1]\n", "null": b"null\n", "no step": b'{"loss": 1.0}\n',
    "a text": b'{"step": "1", "loss": 1.0}\n', "a loss that is text": b'{"step": 1, "loss": "a"}\n',
    "half an evaluation": b'{"step": 1, "eval_loss": 1.0}\n', "no JSON": b"{\n",
    "no UTF-8": b"\xff\n", "deep": b"[" * 10**5 + b"\n", "a step that is true": b'{"step": true}\n',
}  # fmt: skip


@pytest.mark.parametrize("what", METRICS)
def test_a_line_of_the_metrics_that_is_no_row(run, capsys, what):
    path = run / "metrics.jsonl"
    sound = path.read_bytes()
    first, *rest = sound.splitlines(keepends=True)
    path.write_bytes(first + METRICS[what] + b"".join(rest))
    change_facts(run, rows=[])
    assert f"{path}, line 2: " in refused(capsys, command("resume", run))
    path.write_bytes(sound + METRICS[what])  # behind the checkpoint's step: a kill left it
    assert command("resume", run) == 0 and path.read_bytes() == sound


CHECKPOINTS = {
    "another version": lambda run: change_facts(run, version=1),
    "no version": lambda run: change_facts(run, version=None),
    "settings in a list": lambda run: change_facts(run, settings=[1]),
    "an unknown setting": lambda run: change_facts(run, settings={"x": 1}),
    "a setting of another type": lambda run: change_facts(run, settings={"iters": "two"}),
    "a setting with a NUL": lambda run: change_facts(run, settings={"model": "a\0b"}),
    "digests in a list": lambda run: change_facts(run, digests=[]),
    "threads in a text": lambda run: change_facts(run, threads="2"),
    "rows in a text": lambda run: change_facts(run, rows="x"),
    "facts in a list": lambda run: change(run, lambda m: m.update(facts="[1]")),
    "a step beyond the last": lambda run: change_state(run, step=3),
    "a step that is true": lambda run: change_state(run, step=True),
    "a step in a text": lambda run: change_state(run, step="2"),
    "a best loss in a text": lambda run: change_state(run, best_loss="2"),
    "a count in a list": lambda run: change_state(run, worse=[]),
    "transposed factors": lambda run: change(run, lambda m: None, transposed),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_by_name(run, capsys, what):
    CHECKPOINTS[what](run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert str(run / "checkpoint.safetensors") in refused(capsys, command("resume", run))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


STRANGE = (None, True, -1, 1e400, "x", "", [], [1], [[]], {}, {"x": 1}, {"x": [{}]}, "\0", "\ud800")


def test_an_adapter_config_of_strange_types_is_read_or_refused(whole, run, rng, tries):
    _, base, _ = load(whole / "base")
    path = run / "adapter_config.json"
    sound = json.loads(path.read_text())
    for name in (*sound, "minilora_method", "num_virtual_tokens", "bottleneck_size"):
        for value in rng.sample(STRANGE, tries(2, len(STRANGE))):
            for more in ({}, {"peft_type": None, "minilora_method": "bottleneck"}):
                path.write_text(json.dumps({**sound, **more, name: value}))
                try:
                    load_adapter(run, base)
                except cli.InputError as error:
                    assert str(run) in str(error), (name, value)


SETTINGS = {
    "model = 3": "3", "quantize = 4": "--quantize", 'block_size = "a"': "--block-size",
    "max_seq_length = [1, 2]": "--max-seq-length", 'mask_prompt = "yes"': "--mask-prompt",
    "data = {}": "data",
    "x = 1": "x", "model = ": "TOML", 'model = "a\\u0000b"': "NUL", "block_size = true": "block",
}  # fmt: skip
FORMAT = "format_version = 2\n"
DAMAGE = {
    **{f"settings: {line}": ("train_config.toml", f"{FORMAT}{line}".encode()) for line in SETTINGS},
    "weights that are none": ("adapter_model.safetensors", b"\xff" * 40),
    "a config that is none": ("adapter_config.json", b"[]"),
    "a start that is a list": ("adapter_config.json", b'{"init_lora_weights": [[]]}'),
    "a method that is a list": ("adapter_config.json", b'{"minilora_method": [[]]}'),
}


@pytest.mark.parametrize("name", ["evaluate", "generate", "inspect", "merge"])
def test_every_command_refuses_damaged_files_by_name(run, capsys, name):
    for what, (file, raw) in DAMAGE.items():
        sound = (run / file).read_bytes()
        (run / file).write_bytes(raw)
        error = refused(capsys, command(name, run))
        assert SETTINGS.get(what.removeprefix("settings: "), file) in error, what
        (run / file).write_bytes(sound)
    change(run, lambda m: None, transposed, "adapter_model.safetensors")
    assert "lora_A" in refused(capsys, command(name, run))


# --------------------------------------------------------------------------- names and folders

NAMES = {
    "a NUL": "a\0b", "too long": "a" * 300, "no UTF-8": "a\udcff",
    "too long a folder": "a" * 300 + "/b",
}  # fmt: skip


@pytest.mark.parametrize("what", NAMES)
def test_a_name_that_cannot_be_is_refused_by_every_command(whole, run, tmp_path, capsys, what):
    path = tmp_path / NAMES[what]
    refused(capsys, train(whole, path))
    for setting in ("--data", "--model", "--init-adapter", "-c"):
        refused(capsys, train(whole, tmp_path / "new", setting, str(path)))
    for name in READING:
        refused(capsys, command(name, path))
    if what != "no UTF-8":  # which is a name for a folder where nothing has to be written down
        refused(capsys, cli.main(["merge", "--adapter-path", str(run), "--out", str(path)]))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a\nb\x7f", 'ä\u2028"\\\U0001f600'])
def test_an_odd_name_comes_back(whole, tmp_path, name, capsys):
    shutil.copytree(whole / "base", tmp_path / name)
    assert train(whole, tmp_path / f"{name}.run", "--model", str(tmp_path / name)) == 0
    for command_ in READING:
        assert command(command_, tmp_path / f"{name}.run") == 0, capsys.readouterr().err


def test_a_dangling_link_is_no_folder(whole, tmp_path, capsys):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert f"{link} is not a folder" in refused(capsys, train(whole, link))
    for name in READING:
        assert str(link) in refused(capsys, command(name, link))


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_folder_that_goes_away_during_the_run(whole, tmp_path, capsys, monkeypatch, becomes):
    out = tmp_path / "run"

    def gone(*args):
        if out.is_dir():
            shutil.rmtree(out)
            if becomes == "a file":
                out.write_text("")
        return append(*args)

    monkeypatch.setattr("minilora.cli.run.append", gone)
    error = refused(capsys, train(whole, out))
    assert f"{out}/metrics.jsonl cannot be written: N" in error  # No such file, Not a directory


def test_a_folder_that_may_not_be_written(whole, run, capsys, monkeypatch):
    """A real one where permissions hold, that is, not for root."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    run.chmod(0o500)
    try:
        if os.access(run, os.W_OK):
            pytest.skip("permissions do not hold for this user")
        for more in ("--overwrite", "--resume"):
            assert f"{run}/.lock" in refused(capsys, train(whole, run, more))
        new = run / "new"
        assert f"{new} cannot" in refused(capsys, train(whole, new))
    finally:
        run.chmod(0o700)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# ------------------------------------------------------------------------ the date, the terminal

DATED = "{{ strftime_now('%d %b %Y') }}|{% for m in messages %}{{ m['content'] }}|{% endfor %}"


def test_the_date_of_a_chat_template_is_the_date_of_the_run(whole, run, monkeypatch, tmp_path):
    """A run that is resumed or evaluated on another day reads the same bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    base = shutil.copytree(whole / "base", tmp_path / "base")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:255]
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, "<end>"])}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.save(str(base / "tokenizer.json"))
    (base / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (base / "chat_template.jinja").write_text(DATED)
    seen = []
    from minilora.data import rows

    real = rows.encode

    def spy(row, tokenizer, *mask):
        seen.append(rows.split_row(row, tokenizer)[0][:11])
        return real(row, tokenizer, *mask)

    monkeypatch.setattr(rows, "encode", spy)
    day = "--chat-date", "2001-02-03"
    assert train(whole, tmp_path / "dated", "--model", str(base), *day) == 0
    assert set(seen) == {"03 Feb 2001"}
    seen.clear()
    assert cli.main(["train", "--resume", "--adapter-path", str(tmp_path / "dated")]) == 0
    assert command("evaluate", tmp_path / "dated") == 0
    assert set(seen) == {"03 Feb 2001"}
    seen.clear()
    assert train(whole, tmp_path / "today", "--model", str(base)) == 0
    assert set(seen) == {date.today().strftime("%d %b %Y")}


def test_a_terminal_that_knows_only_ascii(whole, tmp_path):
    """Every command prints, with escapes for characters that the terminal lacks."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "é 漢 \U0001f600", "completion": "ü→"}\n' * 20, encoding="utf-8")
    words = {
        "train": ["--model", whole / "base", "--data", data, *STEPS.split()],
        "evaluate": [], "generate": ["--prompt", "é", "--max-tokens", "9"],
        "inspect": ["--data", data],
    }  # fmt: skip
    calls = [[k, *map(str, w), "--adapter-path", str(tmp_path / "ä")] for k, w in words.items()]
    calls += [["learn", "init"], ["learn", "list"], ["learn", "hint", "nearest-code"]]
    script = (
        "import sys, json\nfrom minilora import cli\n"
        "assert sys.stdout.encoding == 'ascii', sys.stdout.encoding\n"
        "for words in json.loads(sys.argv[1]):\n    assert cli.main(words) == 0, words\n"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(calls)],
        env=environment, cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.stdout.isascii() and rb"\xe9" in done.stdout


def test_a_closed_standard_output_and_error(whole, tmp_path):
    command = f"{sys.executable} -m minilora train --model {whole / 'base'} {STEPS}"
    more = f"--data {whole / 'rows.jsonl'} --adapter-path {tmp_path / 'run'}"
    assert subprocess.run(f"{command} {more} >&- 2>&-", shell=True, check=False).returncode == 0


def test_environment_variables_that_cannot_be_used(whole, tmp_path):
    """A run reads, trains and draws; standard error names the variable, and has no traceback."""
    unusable = {
        "MPLBACKEND": "nonsense", "NUMBA_NUM_THREADS": "0", "TERM": "dumb", "COLUMNS": "x",
        "OMP_NUM_THREADS": "x", "HOME": "/dev/null", "MPLCONFIGDIR": "/dev/null",
        "NUMBA_CACHE_DIR": "/dev/null",
    }  # fmt: skip
    words = f"train --model {whole / 'base'} --data {whole / 'rows.jsonl'} {STEPS}"
    done = subprocess.run(
        [sys.executable, "-m", "minilora", *words.split(), "--adapter-path", tmp_path / "run"],
        env={**os.environ, **unusable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "NUMBA_NUM_THREADS=0 is not a number of threads: it is ignored" in done.stderr
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


# ----------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)],
)
def test_a_second_interrupt_does_no_harm(whole, tmp_path, number, status):
    """Further signals during the handling of the first cause no traceback and damage no file."""
    out = tmp_path / "run"
    words = f"train --model {whole / 'base'} --data {whole / 'rows.jsonl'} {STEPS} --iters 99999"
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", *words.split(), "--adapter-path", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (out / "train_config.toml").exists():
        assert process.poll() is None
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.002)
    errors = process.stderr.read()
    assert process.returncode == status and "Traceback" not in errors, errors
    assert errors.count("\n") == 1 and "minilora train --resume" in errors
    assert not list(out.glob("*.tmp")) and not (out / ".lock").exists()
    step = load_state(out / "checkpoint.safetensors")[1]["step"]
    steps = {json.loads(x)["step"] for x in (out / "metrics.jsonl").open()}
    assert steps == set(range(step + 1))  # step 0 is the evaluation before the first step
