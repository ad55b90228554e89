"""Shared file helpers: errors that name the file, and files and folders written as a whole."""

import hashlib
import json
import os
import shutil
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

from ..config import InputError
from ..data.row_files import without_repeats

# what the contents of a damaged file raise in the code that reads them
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def warn_of_unread(path, names, advice):
    """Warn that a file has names which minilora does not read, if there are any."""
    if names:
        text = f"{path}: not read: {', '.join(names)}. {advice}"
        warnings.warn(str(InputError(text)), stacklevel=5)


@contextmanager
def errors_in(path):
    """Turn an error of the block, which reads the file `path`, into an InputError that names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except MALFORMED as error:
        raise InputError(f"{path} is malformed: {type(error).__name__}: {error}") from error


@contextmanager
def write_errors(path):
    """Turn an OSError in the block into an InputError: `path` cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        way = "check the permission and the free space on its disk, or choose another folder"
        if isinstance(error, FileNotFoundError):
            way = "its folder was moved or deleted"
        raise InputError(f"{path} cannot be written: {error.strerror or error}: {way}") from error


def check_start(path):
    """Raise InputError if the first bytes of a file show that something else is in its place."""
    with errors_in(path), open(path, "rb") as file:
        start = file.read(64)
        if not start:
            raise InputError("the file is empty: copy or download it again")
        if start.startswith(b"version https://git-lfs.github.com/spec/v1"):
            raise InputError("this is a Git LFS pointer: run `git lfs pull` in its repository")
        if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise InputError("this is a web page (HTML): download the file itself")


def read_text(path):
    """Return the text of a UTF-8 file; raise InputError if it cannot be read."""
    with errors_in(path):
        return Path(path).read_text(encoding="utf-8")


def parse_object(text, what):
    """Return the object of a JSON text; raise InputError naming `what` if it is not one."""
    with errors_in(what):
        value = json.loads(text, object_pairs_hook=without_repeats)
        if not isinstance(value, dict):
            raise InputError("this is not one JSON object")
    return value


def read_json(path, default=None):
    """Return the object in a JSON file, or `default` if the file does not exist."""
    if default is not None and not path.exists():
        return default
    check_start(path)
    return parse_object(read_text(path), path)


def write_json(path, value):
    """Write an object as indented JSON in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path):
    """Return the SHA-256 of the contents of a file, as an object of hashlib."""
    with errors_in(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def digest(paths):
    """Return one SHA-256 of the contents of files, as hexadecimal digits."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(sha256(path).digest())
    return whole.hexdigest()


def require_new(path):
    """Raise InputError unless `path` is new or an empty folder."""
    path = Path(path)
    empty = path.is_dir() and not any(path.iterdir())
    if os.path.lexists(path) and not empty:
        raise InputError(f"{path} exists already: choose a new folder")


@contextmanager
def new_folder(path):
    """Yield a temporary folder that becomes `path` if the block succeeds, and is removed otherwise.

    Raises InputError if `path` exists and is not an empty folder, so that no user's file is lost.
    """
    path = Path(os.path.abspath(path))  # `.` has no name
    require_new(path)
    with write_errors(path), temporary_folder(path) as temporary:
        yield temporary
        for name in temporary.rglob("*"):
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
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing {folder}: wait for it") from error
        except OSError:
            pass  # a file system without locks
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
