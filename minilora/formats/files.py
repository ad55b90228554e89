"""Shared file helpers: errors that name the file, and files and folders written as a whole."""

import errno
import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from ..config import InputError


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


def parse_object(text, what):
    """Return the object of a JSON text; raise InputError naming `what` if it is not one."""
    try:
        value = json.loads(text, parse_int=whole_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} must hold one JSON object")
    return value


def whole_number(digits):
    """Return the int of these digits; a number that 64 bits cannot hold becomes a float."""
    return int(digits) if len(digits) < 20 else float(digits)


def read_json(path, default=None):
    """Return the object in a JSON file, or `default` if the file does not exist."""
    if not Path(path).exists():
        if default is None:
            raise InputError(f"{path} is missing")
        return default
    text = read_text(path)
    check_start(path, text.encode())
    return parse_object(text, path)


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
    """Raise InputError unless `path` is new or an empty folder, and can be written."""
    path = Path(path)
    empty = path.is_dir() and not any(path.iterdir())
    if os.path.lexists(path) and not empty:
        raise InputError(f"{path} exists already: choose a new folder")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise InputError(f"{path} cannot be written: no permission to write {place}")


@contextmanager
def new_folder(path):
    """Yield a temporary folder that becomes `path` if the block succeeds, and is removed otherwise.

    Raises InputError if `path` exists and is not an empty folder, so that no user's file is lost.
    """
    path = Path(path)
    require_new(path)
    with write_errors(path), temporary_folder(path) as temporary:
        yield temporary
        for name in temporary.rglob("*"):
            if name.is_file():
                sync(name)
        with suppress(OSError):
            path.rmdir()  # an empty folder
        temporary.rename(path)
        sync(path.parent)


@contextmanager
def temporary_folder(path):
    """Yield the folder .NAME.tmp/minilora.new next to `path`; remove it at the end of the block.

    A killed process leaves it, and the next one for the same path removes it. Raises InputError if
    another process has it.
    """
    outer = path.with_name(f".{path.name}.tmp")
    outer.mkdir(parents=True, exist_ok=True)
    with locked(outer):
        inner = outer / "minilora.new"
        shutil.rmtree(inner, ignore_errors=True)
        inner.mkdir()
        try:
            yield inner
        finally:
            shutil.rmtree(inner, ignore_errors=True)
            with suppress(OSError):
                outer.rmdir()  # fails if it has a file that minilora did not write


@contextmanager
def locked(folder):
    """Lock a folder in the block, on POSIX; raise InputError if another process has locked it.

    The system releases the lock when the process ends, also after a kill.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another process is writing {folder}: wait for it") from error
        yield
    finally:
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
    with write_errors(path), open(path, "ab") as file:
        file.truncate(size)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def sync(path):
    """Flush a file, or the names in a folder, to the disk before the next step (on POSIX only)."""
    if os.name == "posix":
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
