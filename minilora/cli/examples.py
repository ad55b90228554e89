"""Load the examples of a command, and say which rows they are, and which rows are missing."""

from typing import NamedTuple

from ..config import InputError
from ..data.rows import TARGET_WITHIN, encode_rows, load_usable, read_usable, row_content
from ..formats.files import errors_in
from .loading import warn


class SplitData(NamedTuple):
    """The rows of a split, and their examples."""

    rows: list
    examples: list
    left_out: dict  # {reason: number of rows}
    cut: int  # number of examples that are cut to --max-seq-length
    length: int  # --max-seq-length

    def summary(self, what):
        """Return a line that counts the rows; `what` follows the number of examples."""
        n = len(self.examples)
        line = f"{n} row{what}" if n == 1 else f"{n} rows{what}"
        for reason, n in self.left_out.items():
            line += f"; {n} left out ({reason})"
        if self.cut:
            line += f"; {self.cut} cut to --max-seq-length {self.length}"
        return line


def read_split(name, split, loaded, columns, train_config):
    """Return the SplitData of a split of the data, or of all rows of a file if `split` is None.

    It has no rows if there are too few for a held-out split. Raises InputError naming the split.
    """
    tokenizer, length = loaded.tokenizer, train_config.max_seq_length
    if split is None:
        rows, left_out = read_usable(name, tokenizer, columns)
    else:
        rows, left_out = load_usable(name, split, tokenizer, columns)
    examples: list = []
    cut = 0
    if rows:
        with errors_in(f"{split} rows of {name}" if split else name):
            examples, cut = encode_rows(rows, tokenizer, train_config)
    if len(examples) < len(rows):
        left_out[f"no {TARGET_WITHIN} {length}"] = len(rows) - len(examples)
    warn_of_positions(examples, loaded.model_config)
    return SplitData(rows, examples, left_out, cut, length)


def columns_of(pairs):
    """Return {key: column} of the values of --columns, "KEY=COLUMN"; None if there are none."""
    if not pairs:
        return None
    columns = dict(pair.split("=", 1) for pair in pairs)
    if len(columns) < len(pairs):
        raise InputError(f"--columns {' '.join(pairs)}: a key occurs twice")
    return columns


def warn_of_positions(examples, model_config):
    """Warn of examples that are longer than the texts that the model was trained on."""
    limit = model_config.max_position_embeddings
    # the last token of an example is only a target
    long = [len(e.tokens) for e in examples if len(e.tokens) - 1 > limit]
    if long:
        which = f"{len(long)} of {len(examples)} rows have up to {max(long)} tokens"
        advice = f"give --max-seq-length {limit}, or shorter rows"
        warn(f"{which}, but the model was trained on texts of at most {limit}: {advice}")


def compared(rows):
    """Return what exact match compares in these rows."""
    kinds = {"text" in row for row in rows}
    if kinds == {False}:
        return "answers"
    return "whole texts" if kinds == {True} else "answers and whole texts"


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
