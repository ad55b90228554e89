"""Shared file helpers: errors that name the file, and files and folders written as a whole."""

import errno
import json
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from ..config import InputError
from ..data.row_files import parse_json


def read_text(path):
    """Return the text of a UTF-8 file; raise InputError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: save it as UTF-8") from error


def check_start(path, start):
    """Raise InputError if the first bytes of a file show that something else is in its place."""
    if not start:
        raise InputError(f"{path} is empty: copy or download it again")
    if start.startswith(b"version https://git-lfs.github.com/spec/v1"):
        what = "a Git LFS pointer, which only names the file"
        raise InputError(f"{path} is {what}: run `git lfs pull` in its repository")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{path} is a web page (HTML): download the file itself")


def read_json(path, default=None):
    """Return the object in a JSON file, or `default` if the file does not exist."""
    if not Path(path).exists():
        if default is None:
            raise InputError(f"{path} is missing")
        return default
    text = read_text(path)
    check_start(path, text.encode())
    value = parse_json(text, f"{path} is not JSON")
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one JSON object")
    return value


def write_json(path, value):
    """Write an object as indented JSON in UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def pickle_refusal(path):
    """Return the message for a folder whose weights are in a pickle."""
    why = "a pickle, which can run any program: save the weights as safetensors"
    return f"{path.parent} has only {path.name}, {why}"


@contextmanager
def write_errors(path):
    """Turn an OSError in the block into an InputError: `path` cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        way = "check that its folder exists and that you may write to it"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way = "free space on its disk"
        what = f"{path} cannot be written: {error.strerror or error}"
        raise InputError(f"{what}: {way}, or choose another folder") from error


@contextmanager
def errors_in(path):
    """Put the file's name before the message of an InputError in the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except RecursionError as error:  # in a message that shows a value
        raise InputError(f"{path}: a value in it is nested too deeply") from error


def require_new(path):
    """Raise InputError unless `path` is new or an empty folder; return whether it is the latter."""
    path = Path(path)
    empty = path.is_dir() and not any(path.iterdir())
    if os.path.lexists(path) and not empty:
        raise InputError(f"{path} exists already: choose a new folder")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise InputError(f"{path} cannot be written: no permission to write {place}")
    return empty


@contextmanager
def new_folder(path):
    """Yield a temporary folder that becomes `path` if the block succeeds, and is removed otherwise.

    Raises InputError if `path` exists and is not an empty folder, so that no user's file is lost.
    """
    path, empty = Path(path), require_new(path)
    with write_errors(path), temporary_folder(path) as temporary:
        yield temporary
        if empty:
            path.rmdir()
        for name in temporary.rglob("*"):
            if name.is_file():
                sync(name)
        temporary.rename(path)
        sync(path.parent)


@contextmanager
def temporary_folder(path):
    """Yield a new folder on the file system of `path`; remove it at the end of the block.

    Folders that killed processes left for the same path are removed, too. The folder is
    .NAME.RANDOM.tmp/minilora.new, and .NAME.RANDOM.tmp is locked before minilora.new exists in it.
    So one that has a minilora.new and is not locked belongs to a process that has ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp/minilora.new"):
        with suppress(OSError), locked(left.parent) as free:
            if free:
                shutil.rmtree(left)
                left.parent.rmdir()  # fails if it has a file that minilora did not write
    outer = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    try:
        with locked(outer):
            inner = outer / "minilora.new"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@contextmanager
def locked(folder):
    """Lock a folder in the block; yield whether the lock was free.

    The system releases the lock when the process ends, also after a kill. Where there are no such
    locks, none is free.
    """
    free = False
    number = None
    try:
        with suppress(ImportError, OSError):  # only POSIX has such locks
            import fcntl

            number = os.open(folder, os.O_RDONLY)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free
    finally:
        if number is not None:
            os.close(number)


@contextmanager
def atomic_write(*paths):
    """Yield a temporary name per path; if the block succeeds, these files replace the paths."""
    temporary = [path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        with write_errors(paths[0]):
            yield temporary
            for name in temporary:
                sync(name)
            for name, path in zip(temporary, paths):
                os.replace(name, path)
            sync(paths[0].parent)
    finally:
        for name in temporary:
            with suppress(OSError):
                name.unlink()


def replace_text(path, text):
    """Write a text file completely or not at all."""
    with atomic_write(Path(path)) as (temporary,):
        temporary.write_text(text, encoding="utf-8")


def append(path, size, text):
    """Cut a file to `size` bytes, append `text`, and flush the file to the disk."""
    with write_errors(path), open(path, "r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def sync(path):
    """Flush a file to the disk before it is renamed, or the names in a folder (on POSIX only)."""
    posix = os.name == "posix"
    if posix or path.is_file():
        number = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)
