"""Read the rows of a file: JSON Lines, one JSON list, or CSV. `rows.py` checks their contents."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

from ..config import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")  # for messages; other files are read as .jsonl
OTHERS = {  # names of files that are often given but not read: what to do
    ".tsv": "save the table as .csv, with commas",
    ".txt": 'write each text as a line {"text": …} of a .jsonl file',
    ".gz": "unpack it",
    ".parquet": "convert it with datasets: Dataset.from_parquet(FILE).to_json('rows.jsonl')",
}


def read_values(path):
    """Yield (value, place) of each row of a file; the place is "FILE, line N" or "FILE, row N".

    A name that ends with .csv is CSV. Another file is a JSON list if it begins with a bracket,
    otherwise it has one JSON value per line. Raises InputError naming the malformed place.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    suffix = Path(path).suffix.lower()
    if suffix in OTHERS and data.strip()[:1] not in (b"{", b"["):
        raise InputError(f"{path}: a {suffix} file is not read as rows: {OTHERS[suffix]}")
    text = decode(path, data)
    if suffix == ".csv":
        return parse_csv(path, text)
    if text.lstrip().startswith("["):
        values = parse_json(text, f"{path}: not a JSON list of rows")
        return ((value, f"{path}, row {n}") for n, value in enumerate(values, 1))
    return parse_lines(path, text)


def parse_lines(path, text):
    """Yield (value, place) of each line that is not blank; each holds one JSON value."""
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {n}"
            yield parse_json(line, f"{where}: not JSON"), where


def parse_csv(path, text):
    """Yield ({column: cell}, place) of each row of a CSV file; its first row names the columns."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(len(text))  # the default is 131,072 characters per cell
    try:
        columns = reader.fieldnames or ()
        if len(columns) == 1 and set(";\t|") & set(columns[0]):
            advice = "save the table with commas between the cells"
            raise InputError(f"{path}, line 1: the only column is {columns[0]!r:.60}: {advice}")
        named = Counter(filter(None, columns))
        for name, n in named.items():
            if n > 1:
                raise InputError(f"{path}, line 1: {n} columns are named {name!r}: rename one")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():  # more cells than columns, or fewer
                raise InputError(
                    f"{where}: more or fewer cells than the header has: "
                    "put a cell with a comma into double quotes"
                )
            yield row, where
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def decode(path, data):
    """Return the text of bytes without a byte-order mark; raise InputError if not in UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from error


def parse_json(text, complaint):
    """Return the value of a JSON text; raise InputError with the complaint if it is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        says = str(error).replace("line 1 column", "column")  # a row of a file has its own number
        raise InputError(f"{complaint}: {says}") from error


def without_repeats(pairs):
    """Return the object of a JSON text; raise ValueError if it has a key twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name!r} is there twice")
    return row
