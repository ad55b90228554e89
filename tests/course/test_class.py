"""A class of thirty submissions with every kind of damage, and equal files under load."""

import csv
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from minilora.cli import main
from minilora.course.students import exercises
from minilora.course.teachers import submission

CHOSEN = ("packing-nibbles", "warmup")
SET = Path(__file__).with_name("exercises")
OWN = exercises.load_file(SET / "exercises.toml")
FILES = {OWN[id].file: OWN[id].student_file(solved=True) for id in CHOSEN}
PACK, WARMUP = FILES
FULL = sum(OWN[id].points for id in CHOSEN)


def folder(path, files):
    """Write {name: text or bytes} into a folder; return it."""
    for name, text in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def zipped(path, files):
    """Write {name: text} into a zip file; return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def renamed(change):
    """Return the solved files under other names."""
    return {change(name): text for name, text in FILES.items()}


def damaged(path):
    """Write a zip file in which one file has a wrong checksum."""
    data = zipped(path, FILES).read_bytes()
    path.write_bytes(data.replace(b"math.ceil", b"math.CEIL", 1))
    return path


def cut(path):
    """Write a zip file that ends too early."""
    path.write_bytes(zipped(path, FILES).read_bytes()[:-30])
    return path


def tar(path):
    """Write a tar.gz file of the solved files."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder(path.parent / "work", FILES), "work")
    return path


def with_pipe(path):
    folder(path, FILES)
    (path / WARMUP).unlink()
    os.mkfifo(path / WARMUP)
    return path


def one(body):
    """Return the solved files, with other lines as the end of one of them."""
    return FILES | {PACK: FILES[PACK].partition("\n    return")[0] + f"\n    {body}\n"}


OTHER = FILES[WARMUP].replace("math.ceil", "math.floor")
ENCODED = FILES[WARMUP].encode("utf-16")
# {name: (files, or a function that makes the submission; points; a part of the feedback)}
CLASS = {
    "whole": (FILES, FULL, ""),
    "first.last": (FILES, FULL, ""),
    "first.other": (FILES, FULL, ""),
    "deep": (renamed(lambda n: f"a/b/{n}"), FULL, ""),
    "zip.zip": (FILES, FULL, ""),
    "slashes.zip": (renamed(lambda n: f"work\\{n}"), FULL, ""),
    "mac.zip": (FILES | {f"__MACOSX/._{WARMUP}": "x"}, FULL, ""),
    "tar.tar.gz": (tar, FULL, ""),
    "checksum.zip": (damaged, FULL - 4, f"{WARMUP} cannot be read: Bad CRC-32"),
    "cut.zip": (cut, 0, "cut.zip cannot be read"),
    "text.zip": (lambda p: p.write_text("no zip") and p, 0, "text.zip cannot be read"),
    "pipe": (with_pipe, FULL - 4, f"{WARMUP} cannot be read: it is not a file"),
    "same": ({f"{WARMUP}/{WARMUP}": FILES[WARMUP]}, 4, "it is not a file"),
    "loose.py": (lambda p: p.write_text("x = 1\n") and p, 0, "loose.py does not count"),
    "upper": (renamed(str.title), FULL, ""),
    "dashes": (renamed(lambda n: n.replace("_", "-")), FULL, ""),
    "second": (renamed(lambda n: n.replace(".py", "-1.py")), FULL, ""),
    "browser": (renamed(lambda n: n.replace(".py", " (1).py")), FULL, ""),
    "canvas": (renamed(lambda n: f"doejane_12_345_{n}"), FULL, ""),
    "both": (FILES | {"warmup (1).py": OTHER}, FULL - 4, "2 different files can be warmup.py: "),
    "twice": (FILES | {"warmup (1).py": FILES[WARMUP]}, FULL, ""),
    "old": (FILES | {"old_warmup.py": OTHER}, FULL, "old_warmup.py does not"),
    "typo": ({"warmpu.py": OTHER}, 0, "warmpu.py does not count (expected warmup.py)"),
    "notebook": ({"warmup.ipynb": "{}"}, 0, "(expected warmup.py)"),
    "empty": (lambda p: p.mkdir() or p, 0, "there is no file for it"),
    "encoding": (FILES | {WARMUP: ENCODED}, FULL - 4, "cannot be loaded"),
    "binary": (FILES | {WARMUP: b"\0\xff" * 99}, FULL - 4, "cannot be loaded"),
    "exit": (one("import os; os._exit(3)"), FULL - 3, "ended its process"),
    "prints": (one("print('√' * 10**6)\n    return codes[::2] * 16 + codes[1::2]"), FULL, ""),
    "helper": (one("from own import pack\n    return pack(codes)")
               | {"own.py": "pack = lambda c: c[::2] * 16 + c[1::2]\n"}, FULL,
               "own.py does not count\n"),
}  # fmt: skip


def submitted(path):
    """Make the submission of this name; return its path."""
    made, _, _ = CLASS[path.name]
    if callable(made):
        return made(path)
    return (zipped if path.suffix == ".zip" else folder)(path, made)


SOME = ("first.last", "first.other", "slashes.zip", "tar.tar.gz", "checksum.zip", "pipe", "both",
        "canvas", "prints", "helper")  # fmt: skip


@pytest.mark.parametrize("names", [SOME, pytest.param([*CLASS], marks=pytest.mark.long)])
def test_a_class_of_thirty_with_every_damage(names, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(CLASS) == 30
    chosen = {name: CLASS[name] for name in names}
    paths = [str(submitted(Path(name).absolute())) for name in chosen]
    argv = ["teach", "grade", *paths, "--only", *CHOSEN, "--seed", "3", "--jobs", "2"]
    assert main([*argv, "--exercises", str(SET), "--out", "class"]) == 0
    earned: dict = {}
    with open("class/grades.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            earned[row["student"]] = earned.get(row["student"], 0) + float(row["points"])
    students = [submission.student(path) for path in paths]
    assert earned == {s: points for s, (_, points, _) in zip(students, chosen.values())}
    for student, (_, _, says) in zip(students, chosen.values()):
        text = Path(f"class/feedback/{student}.txt").read_text("utf-8")
        assert says in text, student
    table = capsys.readouterr().out
    assert table == Path("class/class.md").read_text("utf-8")
    assert f"  - 2 different files can be {WARMUP}: " in table


LATE_ONCE = """from pathlib import Path
    if not Path({mark!r}).exists():
        Path({mark!r}).write_text("")
        import os
        os.kill(os.getpid(), 9)  # as the system ends a process that is out of time
    return codes[::2] * 16 + codes[1::2]"""


def test_what_is_out_of_time_is_run_again_alone(tmp_path, capsys):
    for name in ("ann", "ben"):
        body = LATE_ONCE.format(mark=str(tmp_path / f"{name}.mark"))
        folder(tmp_path / name, {PACK: one(body)[PACK]})
    argv = ["teach", "grade", str(tmp_path / "ann"), str(tmp_path / "ben"), "--jobs", "2"]
    argv += ["--only", "packing-nibbles", "--seed", "3", "--exercises", str(SET)]
    assert main(argv) == 0
    assert "- ann: 3 of 3 points\n- ben: 3 of 3 points\n" in capsys.readouterr().out


@pytest.mark.long
def test_equal_files_get_equal_marks_on_a_busy_machine(tmp_path, capsys):
    """Four equal copies got 208, 204, 204, 204 points."""
    chosen = [e for e in exercises.load().values() if e.kind == "test"]
    files = {e.file: e.student_file(solved=True) for e in chosen}
    paths = [str(folder(tmp_path / name, files)) for name in "abcd"]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        argv = ["teach", "grade", *paths, "--jobs", "2", "--seed", "3"]
        assert main([*argv, "--only", *(e.id for e in chosen)]) == 0
    finally:
        for process in busy:
            process.kill()
    most = sum(e.points for e in chosen)
    assert capsys.readouterr().out.count(f": {most:g} of {most:g} points") == 4
