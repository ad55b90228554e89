"""The paths in the settings of a run: absolute, and with a digest of their files.

An absolute path means the same file from every directory. Names of built-in models and data sets
stay names.
"""

import hashlib
import os
import shlex
from pathlib import Path

from ..data.rows import file_of
from ..data.tasks import BUILTIN
from ..formats import files, pretrained
from ..formats.checkpoint import CONFIG, SETTINGS, WEIGHTS
from ..formats.safetensors_file import read_header
from ..methods.vera import SHARED_NAMES

INPUTS = ("data", "model", "init_adapter")  # settings that name files to read


def absolute(setting, value):
    """Return the value of a setting, as an absolute path if it is the name of a file or folder."""
    names = {"model": pretrained.NAMES, "data": BUILTIN}.get(setting, ())
    is_path = setting in (*INPUTS, "adapter_path") and value not in names
    return os.path.abspath(value) if is_path else value


def quote(path):
    """Return a path as a shell reads it."""
    return shlex.quote(str(path))


def digest(setting, name):
    """Return one SHA-256 of the contents of the files that training reads for a setting.

    setting: data, init_adapter, or init_weights (all weights of init_adapter). For built-in data,
    it is the SHA-256 of the name.
    """
    path = Path(name)
    if setting == "init_weights":  # compared if a run is repeated, or resumed with another path
        return files.digest([path / WEIGHTS])
    if setting == "init_adapter":  # the checkpoint has the weights, but VeRA's frozen matrices
        whole = hashlib.sha256(files.digest([path / CONFIG]).encode())
        entries = read_header(path / WEIGHTS)
        for name in sorted(entries.keys() & {*SHARED_NAMES}):
            whole.update(entries[name].read().tobytes())
        return whole.hexdigest()
    if name in BUILTIN:
        return hashlib.sha256(name.encode()).hexdigest()
    if path.is_dir():  # a file of both splits counts once: a copy of it would hold no rows out
        return files.digest(dict.fromkeys(file_of(path, split) for split in ("train", "valid")))
    return files.digest([path])


def run_digest(folder):
    """Return the SHA-256 of a run's file of settings and digests, or "" if there is none."""
    path = Path(folder) / SETTINGS
    return files.digest([path]) if path.exists() else ""
