"""Load the examples of a command, and say which rows they are, and which rows are missing."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..config import InputError, TrainConfig
from ..data.encoding import encode_row, encode_usable
from ..data.rows import existing_split, load_rows, read_rows, row_content, warn
from ..data.tasks import BUILTIN
from ..formats.files import errors_in
from ..methods.registry import num_virtual_tokens
from .arguments import parse
from .loading import merged_runs, read_run
from .stored_paths import digest, run_digest


class SplitData(NamedTuple):
    """The rows of a split that are not left out, and their examples."""

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
        return line


def read_split(name, split, loaded, pairs, train_config):
    """Return the SplitData of a split of the data; the split None is all rows of a file.

    pairs: of --columns. The SplitData has no rows if there are too few for a held-out split. Raises
    InputError naming the split.
    """
    columns = columns_of(pairs)
    rows = load_rows(name, split, columns) if split else read_rows(name, columns)
    length = train_config.max_seq_length
    if not rows:
        return SplitData(rows, [], {}, 0, length)
    with errors_in(f"{split} rows of {name}" if split else name):
        examples, cut, left_out, rows = encode_usable(rows, loaded.tokenizer, train_config)
    limit = loaded.model.config.max_position_embeddings - num_virtual_tokens(loaded.adapter_config)
    # the last token of a row is only a target
    lengths = [len(example.tokens) - 1 for example in examples]
    too_long = [n for n in lengths if n > limit]
    if too_long:
        what = f"{split} rows" if split else "rows"
        warn(
            f"{len(too_long)} of {len(lengths)} {what} are longer than the {limit} tokens that the "
            f"model can read (max_position_embeddings); the longest has {max(too_long)}: "
            f"cut them with --max-seq-length {limit + 1}"
        )
    return SplitData(rows, examples, left_out, cut, length)


def columns_of(pairs):
    """Return {key: column} of the values of --columns, "KEY=COLUMN"; {} if there are none."""
    columns: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, column = pair.partition("=")
        if not equals:
            raise InputError(f"--columns: must be KEY=COLUMN, got {pair}")
        if key in columns:
            raise InputError(f"--columns: {key} is given twice, as {columns[key]} and {column}")
        columns[key] = column
    return columns


def warn_of_common_rows(rows, trained, which, where):
    """Warn if the content of some rows is that of `trained` rows; return their number."""
    known = {row_content(row) for row in trained}
    n = sum(row_content(row) in known for row in rows)
    if n:
        warn(
            f"{n} of {len(rows)} {which} are among {where}: "
            "rows that the model has not seen can score lower"
        )
    return n


def load_examples(args, loaded, split):
    """Return (SplitData, which rows they are): of a split of the data.

    The default data are those that the adapter was trained on. Without --split, a file that --data
    names is read whole. `inspect` has the defaults of `train`.
    """
    settings = loaded.run[0]
    if args.command == "inspect" and not settings:
        settings = vars(parse(["train", f"--data={args.data}"]))
    name = args.data or settings.get("data") or "questions"
    columns = args.columns
    if columns is None and name not in BUILTIN:
        columns = settings.get("columns")
    is_file = name not in BUILTIN and Path(name).is_file()
    if args.data and is_file and "--split" not in args.given:
        split = None
        described = f"all rows of {name}"
    else:
        split = existing_split(name, split)
        described = f"{split} split of {name}"
    length = args.max_seq_length or settings.get("max_seq_length", 2048)
    masked = args.mask_prompt
    if masked is None:
        masked = settings.get("mask_prompt", not settings)  # a run without it had only texts
    config = TrainConfig(max_seq_length=length, mask_prompt=masked)
    data = read_split(name, split, loaded, columns, config)
    if not data.rows:
        raise InputError(
            f"{name} has no {split} rows: give a folder, or a file of ten rows or more"
        )
    return data, described


def compare_with_run(data, loaded):
    """Return {"trained_on": the number of these rows that the model was trained on}, and warn.

    Without the data of all its runs, the number is unknown: {}.
    """
    n, is_known = warn_of_trained_rows(data.rows, "rows", loaded)
    return {"trained_on": n} if is_known else {}


def warn_of_trained_rows(rows, which, loaded):
    """Warn if the model was trained on some of the rows; return (number, whether it is known)."""
    trained, are_all, have_changed = trained_rows(loaded, rows)
    was = "may have been" if have_changed else "was"
    n = warn_of_common_rows(rows, trained, which, f"the rows that the model {was} trained on")
    return n, are_all


def trained_rows(loaded, rows):
    """Return (rows that a model was trained on, whether these are all, whether data has changed).

    They are only those whose content is that of one of `rows`. Its runs are that of its adapter,
    those that this one began with (--init-adapter), and those whose adapters were merged into the
    base. Warns of data that is not there.
    """
    contents = {row_content(row) for row in rows}
    runs = merged_runs(loaded.model)
    if loaded.adapter_config:
        runs.append(loaded.run)
    are_all = bool(runs)
    have_changed = False
    trained = []
    for settings, digests in runs:  # it grows
        are_all &= "data" in settings
        try:
            if "data" in settings:
                name = settings["data"]
                given = load_rows(name, "train", columns_of(settings.get("columns")))
                given = [row for row in given if row_content(row) in contents]
                trained += used_rows(given, loaded.tokenizer, settings)
                if digests.get("data") != digest("data", name):
                    are_all = False
                    have_changed = True
                    other = "its rows may not be those that the model was trained on"
                    warn(f"{name} has changed since the run: {other}")
            folder = settings.get("init_adapter")
            if folder:
                now = run_digest(folder)
                if not now or now != digests.get("init_run"):
                    raise InputError(f"{folder} does not have the run of that adapter")
                run = read_run(folder)
                if run not in runs:
                    runs.append(run)
        except InputError as error:
            warn(f"the model may have been trained on these rows; its data cannot be read: {error}")
            are_all = False
    return trained, are_all, have_changed


def used_rows(rows, tokenizer, settings):
    """Return those of the rows that a run with these settings does not leave out."""
    names = settings.keys() & {"max_seq_length", "mask_prompt"}
    config = TrainConfig(**{name: settings[name] for name in names})
    tokenizer = replace(tokenizer, chat_date=settings.get("chat_date"))
    return [row for row in rows if not encode_row(row, tokenizer, config)[-1]]
