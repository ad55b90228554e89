"""System errors and kills at every file operation of a run."""

import errno
import os
import shutil

import pytest
from faults import KILLED, Faults, apart, kill
from small_run import LEFT_BY_A_KILL, contents, exit_status, resume, training, write_adapter

from minilora import cli
from minilora.config import InputError
from minilora.formats.checkpoint import (
    CHECKPOINT,
    CONFIG,
    SETTINGS,
    WEIGHTS,
    load_adapter,
    read_metadata,
)
from minilora.formats.pretrained import load


@pytest.fixture(scope="module")
def place(place):
    """The folder with an older run in `old`, too, and the new one as it should be in `new`.

    Both are written under the name `run`, so that their settings are those of every other try.
    """
    for name, more in (("old", "--seed 5 --quantize none --lora-r 3 --save-every 1"), ("new", "")):
        assert train(place, more) == 0
        (place / "run").rename(place / name)
    return place


def train(folder, more=""):
    words = "--lora-dropout 0.2 --keep-best", more
    return cli.main(training(folder / "base", folder / "rows.jsonl", folder / "run", *words))


def checkpoint_of(folder):
    """`old`, `new` or None: which run's checkpoint is in `run`; if old, all else is old, too."""
    path = folder / "run" / "checkpoint.safetensors"
    if not path.exists():
        return None
    if read_metadata(path)[1]["settings"]["seed"] == 5:
        assert contents(folder / "run") == contents(folder / "old")
        return "old"
    return "new"


def end_well(folder, more, capsys):
    """Evaluate, then resume a new run or start it again; it must end like an undisturbed run."""
    which = checkpoint_of(folder)
    capsys.readouterr()
    if which:  # an error must be one line that says how to continue
        status = exit_status("evaluate --split valid", "--adapter-path", folder / "run")
        error = capsys.readouterr().err
        assert status == 0 or (error.count("\n") == 1 and "train --resume" in error), error
    if which == "new":
        resume(folder / "run")
    else:
        assert train(folder, more) == 0, capsys.readouterr()
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
    # the card of an earlier run is removed, and the other files are renamed
    changes = [name for act, name in faults.seen if act == "replace" or name == "README.md"]
    # all files are derived from the first one; the last one tells whether all of them are new
    save = [CHECKPOINT, "metrics.jsonl", "README.md", CONFIG, WEIGHTS, SETTINGS]
    assert [".".join(name.split(".")[:2]) for name in changes] == [*save, *save, "README.md"]
    return range(1, len(faults.seen) + 1)


def fail(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


RUNS = pytest.mark.parametrize("old, more", [(False, ""), (True, "--overwrite")])


@RUNS
def test_an_error_at_any_file_operation_is_one_line_and_its_advice_works(
    place, old, more, rng, tries, capsys
):
    started(place, old)
    every = operations(place, more)
    for at in rng.sample(every, tries(3, len(every))):
        started(place, old)
        capsys.readouterr()
        with Faults(place / "run", at, fail) as faults:
            status = train(place, more)
        error, where = capsys.readouterr().err, (at, faults.seen[at - 1])
        if status == 0:  # what is left over does no harm, and another run removes it
            assert contents(place / "run") == contents(place / "new"), where
            continue
        assert status == 2 and error.count("\n") == 1 and error.startswith("error: "), where
        assert str(place / "run") in error and os.strerror(errno.ENOSPC) in error, (where, error)
        assert ("train --resume" in error) <= (checkpoint_of(place) == "new"), (where, error)
        end_well(place, more, capsys)


@RUNS
def test_a_kill_at_any_file_operation_loses_nothing(place, old, more, rng, tries, capsys):
    started(place, old)
    every = apart(operations, place, more)
    for at in rng.sample(every, tries(3, len(every))):
        started(place, old)
        assert kill(place / "run", at, train, place, more) == KILLED, at
        end_well(place, more, capsys)


def save(folder, base, r):
    write_adapter(folder, base, r=r)


def test_a_kill_in_a_save_leaves_the_old_adapter_or_the_new_one(place, tmp_path, rng, tries):
    """Between the two renames there are no weights, which is an error; saving again works."""
    base = place / "base"
    model, _ = load(base)
    folder = tmp_path / "run"

    def loaded():
        try:
            return load_adapter(folder, model).adapter_config.r
        except InputError as error:
            assert "adapter_model.safetensors cannot be read: No such file" in str(error)

    save(folder, base, 2)
    with Faults(folder) as faults:
        save(folder, base, 5)
    names = [name for name, _ in faults.seen]
    gone, first = names.index("unlink") + 1, names.index("replace") + 1
    every = range(1, len(names) + 1)
    for number in [first, first + 1, *rng.sample(every, tries(9, len(every)))]:
        save(folder, base, 2)
        assert kill(folder, number, save, folder, base, 5) == KILLED
        assert loaded() in ((2,) if number <= gone else (None, 5)), number
        save(folder, base, 5)
        assert loaded() == 5
