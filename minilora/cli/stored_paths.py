"""The paths in the settings of a run: absolute, found again after a move, and with a digest.

An absolute path means the same file from every directory. If a project was moved as a whole, the
files have the same relation to the folder of the run as before. Names of built-in models and data
sets stay names.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ..data.rows import file_of
from ..data.tasks import BUILTIN
from ..formats import pretrained
from ..formats.checkpoint import CONFIG

INPUTS = ("data", "model", "init_adapter")  # settings that name files to read


def absolute(setting, value):
    """Return the value of a setting, as an absolute path if it is the name of a file or folder."""
    return os.path.abspath(value) if _is_path(setting, value) else value


def _is_path(setting, value):
    if setting == "model":
        return not pretrained.is_builtin(value)
    if setting == "data":
        return value not in BUILTIN
    return setting in ("init_adapter", "adapter_path")


def find(settings, folder):
    """Return the settings of the run that is now in `folder`, with paths that lead to its files.

    A file that is no longer at its path is looked for at the same place relative to the run.
    """
    now = os.path.abspath(folder)
    then = os.path.abspath(settings.get("adapter_path", folder))
    found = {**settings, "adapter_path": now}
    for name in INPUTS:
        if name not in settings or not _is_path(name, settings[name]):
            continue
        stored = os.path.abspath(settings[name])
        moved = stored
        with suppress(ValueError):  # on Windows, another drive
            moved = os.path.normpath(os.path.join(now, os.path.relpath(stored, then)))
        found[name] = moved if os.path.exists(moved) and not os.path.exists(stored) else stored
    return found


def digest(setting, name):
    """Return one SHA-256 of the contents of the files that training reads for a setting."""
    whole = hashlib.sha256()
    for path in files_read(setting, name):
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def files_read(setting, name):
    """Return the files that training reads for a setting of INPUTS; none for built-in data."""
    path = Path(name)
    if setting == "model":
        return pretrained.files(name)
    if setting == "init_adapter":  # the checkpoint has the weights
        return [path / CONFIG]
    if name in BUILTIN:
        return []
    if path.is_dir():
        return [file_of(path, split) for split in ("train", "valid")]
    return [path]
