"""Load the examples of a command, and say which rows they are, and which rows are missing."""

from pathlib import Path
from typing import NamedTuple

from ..config import InputError, TrainConfig
from ..data.rows import encode_usable, existing_split, load_rows, read_rows, row_content
from ..data.tasks import BUILTIN
from ..formats.files import errors_in
from .loading import warn
from .stored_paths import digest


class SplitData(NamedTuple):
    """The rows of a split, and their examples."""

    rows: list
    examples: list
    left_out: dict  # {reason: number of rows}
    cut: int  # number of examples that are cut to --max-seq-length
    length: int  # --max-seq-length

    def summary(self, what):
        """Return a line that counts the rows; `what` follows the number of examples."""
        line = f"{len(self.examples)} {'row' if len(self.examples) == 1 else 'rows'}{what}"
        for reason, n in self.left_out.items():
            line += f"; {n} left out ({reason})"
        if self.cut:
            line += f"; {self.cut} cut to --max-seq-length {self.length}"
        if self.answers_cut_off:
            line += f", {self.answers_cut_off} of them without any of the answer"
        return line

    @property
    def answers_cut_off(self):
        """The number of examples without a token of the answer; they are never an exact match."""
        return sum(not any(example.answer) for example in self.examples)


def read_split(name, split, loaded, columns, train_config):
    """Return the SplitData of a split of the data; the split None is all rows of a file.

    It has no rows if there are too few for a held-out split. Raises InputError naming the split.
    """
    rows = load_rows(name, split, columns) if split else read_rows(name, columns)
    length = train_config.max_seq_length
    if not rows:
        return SplitData(rows, [], {}, 0, length)
    with errors_in(f"{split} rows of {name}" if split else name):
        examples, cut, left_out = encode_usable(rows, loaded.tokenizer, train_config)
    return SplitData(rows, examples, left_out, cut, length)


def columns_of(pairs):
    """Return {key: column} of the values of --columns, "KEY=COLUMN"; None if there are none."""
    if not pairs:
        return None
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--columns: must be KEY=COLUMN, got {pair}")
    columns = dict(pair.split("=", 1) for pair in pairs)
    if len(columns) < len(pairs):
        raise InputError(f"--columns {' '.join(pairs)}: a key occurs twice")
    return columns


def compared(rows):
    """Return what exact match compares in these rows."""
    kinds = {"text" in row for row in rows}
    if kinds == {False}:
        return "answers"
    return "whole texts" if kinds == {True} else "answers and whole texts"


def exact_match_of(rows):
    """Return what exact match compares, in the words of a printed line."""
    part = compared(rows)
    return part if part == "answers" else f"{part} (all tokens of a text must be right)"


def common_rows(rows, others):
    """Count the rows whose content is that of one of the `others`."""
    known = {row_content(row) for row in others}
    return sum(row_content(row) in known for row in rows)


def warn_of_common_rows(rows, trained, which, where):
    """Warn if some of the rows are among the `trained` rows; return their number."""
    n = common_rows(rows, trained)
    if n:
        advice = "rows that the model has not seen can score lower"
        warn(f"{n} of {len(rows)} {which} are among {where}: {advice}")
    return n


def load_examples(args, loaded, split):
    """Return (SplitData, facts): all rows of the file --data, or a split of the data.

    The default is the data that the adapter was trained on. The facts say which rows they are, and
    which of their tokens the scores compare.
    """
    settings = loaded.run[0]
    name = args.data or settings.get("data") or "questions"
    columns = args.columns
    if columns is None and name not in BUILTIN:
        columns = settings.get("columns")
    if args.data and Path(args.data).is_file():
        split = None
        described = f"all rows of {name}"
    else:
        split = existing_split(name, split)
        described = f"{split} split of {name}"
    length = args.max_seq_length or settings.get("max_seq_length", 2048)
    masked = args.mask_prompt
    if masked is None:
        masked = settings.get("mask_prompt", True)
    config = TrainConfig(max_seq_length=length, mask_prompt=masked)
    data = read_split(name, split, loaded, columns_of(columns), config)
    if not data.rows:
        raise InputError(
            f"{name} has no {split} rows: give a folder, or a file of ten rows or more"
        )
    part = compared(data.rows)
    facts = {"rows": len(data.examples), "data": described, "left_out": data.left_out}
    facts |= {"max_seq_length": length, "cut": data.cut, "answers_cut_off": data.answers_cut_off}
    facts |= {"loss_of": part if masked else "all tokens", "exact_match_of": part}
    return data, facts


def compare_with_run(data, loaded):
    """Return {"trained_on", "held_out_by_the_run"}: the number of rows that the run used so.

    Warns of rows that the adapter was trained on. Without a run's data, the counts are unknown: {}.
    """
    settings, digests = loaded.run
    if "data" not in settings:
        return {}
    name = settings["data"]
    columns = columns_of(settings.get("columns"))
    try:
        trained, held_out = (load_rows(name, split, columns) for split in ("train", "valid"))
    except InputError as error:
        warn(f"the adapter may have been trained on these rows; its data cannot be read: {error}")
        return {}
    if "data" in digests and digests["data"] != digest("data", name):
        warn(f"{name} has changed since the run: it may lack rows that the adapter was trained on")
    which = "the rows that the adapter was trained on"
    n = warn_of_common_rows(data.rows, trained, "rows", which)
    return {"trained_on": n, "held_out_by_the_run": common_rows(data.rows, held_out)}
