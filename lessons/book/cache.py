"""Where the outputs of executed lessons are cached: a folder per version of the code."""

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

import minilora

LESSONS = Path(__file__).parents[1]
SWEEPS = [path for path in LESSONS.glob("studies/*/*_sweep.*") if path.suffix != ".pyc"]
PACKAGE = Path(minilora.__file__).parent
QUICK = bool(os.environ.get("MINILORA_QUICK"))


def code_key():
    """Return a hash of all that a lesson's outputs depend on, except the lesson itself."""
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.safetensors"), *PACKAGE.rglob("*.toml")]
    files += [*LESSONS.glob("helpers/*.*"), *SWEEPS]
    files += LESSONS.glob("exercises*/*")
    versions = [version(name) for name in ("numpy", "autograd", "numba", "matplotlib")]
    key = hashlib.sha256(f"{sys.version} {versions} {QUICK}".encode())
    for path in sorted(path for path in files if path.is_file()):
        key.update(path.name.encode() + path.read_bytes())
    return key.hexdigest()[:16]


KEY = code_key()
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minilora-book" / KEY
