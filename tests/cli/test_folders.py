"""Any two writers of the same folder: the second is refused, or its result is wholly its own."""

import shutil
from itertools import product

from faults import kill
from small_run import contents, exit_status, write_adapter

from minilora.config import InputError

STEPS = "--iters 2 --batch-size 2 --save-every 1 --steps-per-eval 2 --quiet"


def from_python(folder):
    try:
        write_adapter(folder / "run", folder / "base", r=5)
    except InputError:
        return 2
    return 0


def command(words):
    """Return a function that runs a command with the files of a folder."""
    return lambda folder: exit_status(words.format(f=folder))


def training(more):
    where = "--model {f}/base --data {f}/rows.jsonl --adapter-path {f}/run"
    return command(f"train {STEPS} {where} {more}")


def train(folder):
    return training("--overwrite --lora-r 4")(folder)


WRITERS = {
    "nothing": lambda folder: 0,
    "train": training(""),
    "train --overwrite": training("--overwrite --lora-r 3"),
    "train from Python": from_python,
    "merge": command("merge --model {f}/base --adapter-path {f}/adapter --out {f}/run"),
    "init-adapter": training("--init-adapter {f}/adapter --overwrite"),
    "init-adapter of itself": training("--quantize none --init-adapter {f}/run --overwrite"),
    "resume": command("train --resume --quiet --adapter-path {f}/run"),
    "kill": None,
}


def test_of_two_writers_of_a_folder_the_second_is_refused_or_leaves_only_its_own(place, rng, tries):
    def write(name):
        if name == "kill":
            return kill(place / "run", rng.randrange(80), train, place)
        return WRITERS[name](place)

    def found():
        return contents(place / "run") if (place / "run").exists() else {}

    def both(first, second):
        """Return the files that the first writer leaves, and the status of the second."""
        shutil.rmtree(place / "run", ignore_errors=True)
        write(first)
        return found(), write(second)

    whole = train(place) == 0 and found()  # without the kill
    cases = list(product(WRITERS, WRITERS))
    for first, second in rng.sample(cases, tries(15, len(cases))):
        case = first, second
        both("nothing", second)
        alone = found()
        before, status = both(first, second)
        now = found()
        if status == 2:  # refused
            assert now == before, case
        elif second == "resume":
            assert now == (whole if first == "kill" else before), case
        elif second == "init-adapter of itself":
            assert now.keys() == whole.keys(), case
        elif second not in ("kill", "nothing"):
            assert now == alone, case
        if "train_config.toml" in now:
            assert WRITERS["resume"](place) == 0, case
            killed = second == "kill" and now != before
            assert found() == (whole if killed else now) or first == "kill", case
