"""Read the rows of a file: JSON Lines, one JSON list, or CSV. `rows.py` checks their contents."""

import csv
import io
import json
from pathlib import Path

from ..config import InputError

SUFFIXES = (".jsonl", ".json", ".csv")  # of the files in a folder
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_values(path):
    """Yield (value, place) of each row of a file; the place is "FILE, line N" or "FILE, row N".

    A name that ends with .csv is CSV. Another file is a JSON list if it begins with a bracket,
    otherwise it has one JSON value per line. Raises InputError naming the malformed place.
    """
    data = read_bytes(path)
    if Path(path).suffix.lower() == ".csv":
        return parse_csv(path, data)
    if data.lstrip().startswith(b"["):
        return parse_list(path, data)
    return parse_lines(path, data)


def read_jsonl(path):
    """Yield (value, place) of each line of a JSONL file; the place is "FILE, line N"."""
    return parse_lines(path, read_bytes(path))


def read_bytes(path):
    """Return the contents of a file without a byte-order mark; refuse a Git LFS pointer."""
    try:
        data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if data.startswith(LFS_POINTER):
        what = "a Git LFS pointer, which only names the file"
        raise InputError(f"{path} is {what}: run `git lfs pull` in its repository")
    return data


def parse_lines(path, data):
    """Yield (value, place) of each line that is not blank; each holds one JSON value."""
    for n, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {n}"
            yield parse_json(decode(path, line, n), f"{where}: not JSON"), where


def parse_list(path, data):
    """Yield (value, place) of each element of a JSON list."""
    values = parse_json(decode(path, data), f"{path}: not a JSON list of rows")
    for n, value in enumerate(values, 1):
        yield value, f"{path}, row {n}"


def parse_csv(path, data):
    """Yield ({column: cell}, place) of each row of a CSV file; its first row names the columns."""
    reader = csv.reader(io.StringIO(decode(path, data), newline=""), strict=True)
    header = list[str]()
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where}: not CSV: {error}") from error
        if cells is None:
            return
        if not cells:  # an empty line
            continue
        if not header:
            header = cells
        elif len(cells) == len(header):
            yield dict(zip(header, cells)), where
        else:
            counts = f"{len(cells)} cells, but the header has {len(header)}"
            raise InputError(f"{where}: {counts}: put a cell with a comma into double quotes")


def decode(path, data, line=1):
    """Return the text of bytes that begin in this line; raise InputError if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from error


def parse_json(text, complaint):
    """Return the value of a JSON text; raise InputError with the complaint if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        says = str(error).replace("line 1 column", "column")  # a row of a file has its own number
        raise InputError(f"{complaint}: {says}") from error
