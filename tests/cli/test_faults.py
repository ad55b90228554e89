"""System errors and kills at every file operation of a run, and kills at any moment."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product

import pytest
from faults import Faults
from models import moved
from small_run import write_base_and_rows

import minilora
from minilora import cli
from minilora.config import InputError, LoraConfig
from minilora.formats.checkpoint import load_adapter, load_state, save_adapter
from minilora.formats.files import replace_text
from minilora.formats.pretrained import load
from minilora.formats.safetensors_file import read_header
from minilora.tree import flatten

STEPS = (
    "--iters 4 --batch-size 2 --save-every 2 --steps-per-eval 2 --learning-rate 0.01 "
    "--keep-best --keep-checkpoints"
)
LEFT_BY_A_KILL = (".lock", ".tmp")
TIMINGS = ("seconds", "peak_rss_mb")


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Skip drawing, which takes half the time of these runs, but write a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.cli.run.curve", lambda path, *_: replace_text(path, "figure"))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, rows, an older run in `old`, and the new one as it should be in `new`.

    Both are written under the name `run`, so that their settings are those of every other try.
    """
    folder = tmp_path_factory.mktemp("faults")
    write_base_and_rows(folder)
    for name, more in (("old", "--seed 5 --quantize none --lora-r 3 --save-every 1"), ("new", "")):
        assert train(folder, more) == 0
        (folder / "run").rename(folder / name)
    return folder


def train(folder, more=""):
    words = f"train --model {folder / 'base'} --data {folder / 'rows.jsonl'} {STEPS} {more}"
    return cli.main([*words.split(), "--adapter-path", str(folder / "run")])


def resume(folder):
    return cli.main(["train", "--resume", "--adapter-path", str(folder / "run")])


def contents(folder):
    """Return {file: something to compare} of the folder of a run, without timings."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name == "checkpoint.safetensors":
            adapters, state, facts = load_state(path)
            found[name] = repr([flatten(tree) for tree in (adapters, state)])
            found["facts"] = {k: v for k, v in facts.items() if k != "rows"}
            assert all(row["step"] <= state["step"] for row in facts.get("rows", ()))
        elif name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in r.items() if k not in TIMINGS} for r in rows]
        elif path.is_dir():
            found[name] = "a folder"
        elif path.suffix == ".safetensors":
            found[name] = {n: e.read().tobytes() for n, e in read_header(path).items()}
        elif not name.endswith(LEFT_BY_A_KILL):
            found[name] = path.read_bytes() if path.suffix != ".png" else "a figure"
    return found


def checkpoint_of(folder):
    """`old`, `new` or None: which run's checkpoint is in `run`; if old, all else is old, too."""
    path = folder / "run" / "checkpoint.safetensors"
    if not path.exists():
        return None
    if load_state(path)[2]["settings"]["seed"] == 5:
        assert contents(folder / "run") == contents(folder / "old")
        return "old"
    return "new"


def readable(folder, capsys):
    """Evaluate the adapter in `run`; an error must be one line that says how to continue."""
    capsys.readouterr()
    status = cli.main(["evaluate", "--split", "valid", "--adapter-path", str(folder / "run")])
    error = capsys.readouterr().err
    assert status == 0 or (status == 2 and error.count("\n") == 1), error
    return status == 0 or "--resume" in error or not (folder / "run").exists()


def end_well(folder, more, capsys):
    """Resume a new run or start it again; it must end like an undisturbed run."""
    which = checkpoint_of(folder)
    if which:
        assert readable(folder, capsys)
    assert (resume(folder) if which == "new" else train(folder, more)) == 0, capsys.readouterr()
    assert contents(folder / "run") == contents(folder / "new")
    names = {path.name for path in (folder / "run").rglob("*")}
    assert not [name for name in names if name.endswith(LEFT_BY_A_KILL)]


def started(folder, old):
    shutil.rmtree(folder / "run", ignore_errors=True)
    if old:
        shutil.copytree(folder / "old", folder / "run")


def operations(folder, more):
    """Return the numbers of all file operations of a run."""
    with Faults(folder / "run") as faults:
        assert train(folder, more) == 0
    return range(1, len(faults.seen) + 1)


RUNS = pytest.mark.parametrize(("old", "more"), [(False, ""), (True, "--overwrite")])


@RUNS
def test_an_error_at_any_file_operation_is_one_line_and_its_advice_works(
    place, old, more, rng, tries, capsys
):
    started(place, old)
    cases = list(product(operations(place, more), (errno.ENOSPC, errno.EACCES)))
    for at, number in rng.sample(cases, tries(2, len(cases))):

        def fail(path, number=number):
            raise OSError(number, os.strerror(number), path)

        started(place, old)
        capsys.readouterr()
        with Faults(place / "run", at, fail) as faults:
            status = train(place, more)
        error, where = capsys.readouterr().err, (at, number, faults.seen[at - 1])
        if status == 0:  # what is left over does no harm, and another run removes it
            assert contents(place / "run") == contents(place / "new"), where
            continue
        assert status == 2 and error.count("\n") == 1 and error.startswith("error: "), where
        assert str(place / "run") in error and os.strerror(number) in error, (where, error)
        which = checkpoint_of(place)
        assert ("train --resume" in error) <= (which == "new"), (where, error)
        end_well(place, more, capsys)


@RUNS
def test_a_kill_at_any_file_operation_loses_nothing(place, old, more, rng, tries, capsys):
    started(place, old)
    every = operations(place, more)
    for at in rng.sample(every, tries(2, len(every))):
        started(place, old)
        child = os.fork()
        if child == 0:
            with Faults(place / "run", at, lambda path: os._exit(9)):
                train(place, more)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, at
        end_well(place, more, capsys)


def test_a_fault_in_a_save_leaves_the_old_adapter_or_the_new_one(place, tmp_path, rng, tries):
    """A fault between the two renames is an error when loading, and saving again works."""
    _, base, _ = load(place / "base")
    saved = {}
    for name, r in (("old", 2), ("new", 5)):
        config = LoraConfig(r=r)
        adapters, _ = minilora.get_peft_model(base, config, r)
        saved[name] = moved(adapters, lambda w: w + 1), config

    def save(name):
        adapters, config = saved[name]
        save_adapter(tmp_path / "run", adapters, base, config, "a base")

    def loaded():
        found = flatten(load_adapter(tmp_path / "run", base)[0])
        same = [n for n, p in saved.items() if repr(flatten(p[0])) == repr(found)]
        assert len(same) == 1
        return same[0]

    save("old")
    with Faults(tmp_path / "run") as faults:
        save("new")
    between = faults.seen.index(("replace", f"adapter_model.safetensors.{os.getpid()}.tmp")) + 1
    kinds = "ENOSPC", "EACCES", "kill"
    others = [
        (at, kind) for at in range(1, len(faults.seen) + 1) for kind in kinds if at != between
    ]
    drawn = rng.sample(others, tries(9, len(others)))
    for at, kind in [*((between, kind) for kind in kinds), *drawn]:
        save("old")
        error = None
        if kind == "kill":
            child = os.fork()
            if child == 0:
                with Faults(tmp_path / "run", at, lambda path: os._exit(9)):
                    save("new")
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        else:
            number = getattr(errno, kind)

            def fail(path, number=number):
                raise OSError(number, os.strerror(number), path)

            try:
                with Faults(tmp_path / "run", at, fail):
                    save("new")
            except (InputError, OSError) as caught:
                error = str(caught)
                assert str(tmp_path / "run") in error and os.strerror(number) in error
        if at == between:
            with pytest.raises(InputError, match="not saved together: save the adapter again"):
                loaded()
        else:
            before = at < between and (error or kind == "kill")
            assert loaded() == ("old" if before else "new"), (at, kind)
        save("new")
        assert loaded() == "new"


@pytest.mark.long
def test_kills_at_random_moments(place, rng, tries, capsys):
    """Half of the runs overwrite another run; each ends like a run that was not killed."""
    found = {}
    words = f"train --model {place / 'base'} --data {place / 'rows.jsonl'} {STEPS}"
    command = [sys.executable, "-m", "minilora", *words.split(), "--adapter-path", place / "run"]
    began = time.perf_counter()
    started(place, False)
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - began
    for n in range(tries(2, 200)):
        old, more = (True, "--overwrite") if n % 2 else (False, "")
        started(place, old)
        process = subprocess.Popen(
            [*command, *more.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # most of the time goes into imports: wait for the first sign of the run itself
        while not (place / "run" / ".lock").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3 * whole))
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        kind = more or "new", checkpoint_of(place), "killed" if killed else "had ended"
        found[kind] = found.get(kind, 0) + 1
        if killed:
            end_well(place, more, capsys)
        else:
            assert contents(place / "run") == contents(place / "new")
    with capsys.disabled():
        print("\n", found)
