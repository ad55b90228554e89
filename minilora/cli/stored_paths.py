"""The paths in the settings of a run: absolute, found again after a move, and with a digest.

An absolute path means the same file from every directory. If a project was moved as a whole, the
files have the same relation to the folder of the run as before, so `find` tries this relation.
Names of built-in models and data sets stay names.
"""

import hashlib
import os
from pathlib import Path

from ..config import InputError
from ..data.rows import file_of, say_once
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


def find(settings, folder, digests):
    """Return the settings of the run that is now in `folder`, with paths that lead to its files.

    digests: {setting: `digest` of its files}, as far as they are known.
    """
    now = os.path.abspath(folder)
    then = os.path.abspath(settings.get("adapter_path", folder))
    found = {**settings, "adapter_path": now}
    for name in INPUTS:
        if name in settings and _is_path(name, settings[name]):
            stored = os.path.abspath(settings[name])
            found[name] = _present_place(name, stored, then, now, digests.get(name))
    return found


def _present_place(setting, stored, then, now, expected):
    """Return `stored`, or the path that has to `now` the relation that `stored` has to `then`.

    The second is taken if the first does not exist, or if its files have the `expected` digest.
    """
    try:
        relation = os.path.relpath(stored, then)
    except ValueError:  # on Windows, another drive
        return stored
    moved = os.path.normpath(os.path.join(now, relation))
    if moved == stored or not os.path.exists(moved):
        return stored
    if not os.path.exists(stored):
        return moved
    try:
        same = digest(setting, moved) == expected
    except (InputError, OSError):  # not the files of such a setting
        return stored
    if not same:
        why = "its contents are not those of the run"
        say_once(f"warning: {stored} is used and not {moved}, because {why}")
    return moved if same else stored


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
