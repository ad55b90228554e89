"""A class of submissions with every kind of damage, and equal files under load."""

import csv
import gzip
import os
import tarfile
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

from submissions import OWN, SET, folder, own, zipped

from minilora.course.students import exercises, judge
from minilora.course.students.isolation import LATE
from minilora.course.teachers import submission, teach

CHOSEN = ("packing-nibbles", "warmup")
FILES = {OWN[id].file: OWN[id].student_file(solved=True) for id in CHOSEN}
PACK, WARMUP = FILES
FULL = sum(OWN[id].points for id in CHOSEN)


def renamed(change):
    """Return the solved files under other names."""
    return {change(name): text for name, text in FILES.items()}


def damaged(path):
    """Write a zip file in which one file has a wrong checksum."""
    data = zipped(path, FILES).read_bytes()
    path.write_bytes(data.replace(b"math.ceil", b"math.CEIL", 1))
    return path


def tar(path):
    """Write a tar.gz file of the solved files."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder(path.parent / "work", FILES), "work")
    return path


def cut_off(path):
    """Write a tar file that ends in the header of its last file."""
    data = gzip.decompress(tar(path).read_bytes())
    path.write_bytes(data[: data.index(b"work/" + WARMUP.encode()) + 99])
    return path


def with_pipe(path):
    folder(path, {PACK: FILES[PACK]})
    os.mkfifo(path / WARMUP)
    return path


def one(body):
    """Return the solved files, with other lines as the end of one of them."""
    return FILES | {PACK: FILES[PACK].partition("\n    return")[0] + f"\n    {body}\n"}


OTHER = FILES[WARMUP].replace("math.ceil", "math.floor")
ENCODED = FILES[WARMUP].encode("utf-16")
WHOLE = {  # {name: files, or a function that makes the submission}; all have all points
    "first.last": FILES,
    "first.other": FILES,
    "slashes.zip": {"work/": ""} | renamed(lambda n: f"work\\{n}"),
    "mac.zip": FILES | {f"__MACOSX/._{WARMUP}": "x"},
    "tar.tar.gz": tar,
    "canvas": renamed(lambda n: f"doejane_12_345_{n}"),
    "twice": FILES | {"warmup (1).py": FILES[WARMUP]},
    "prints": one("print('√' * 10**6)\n    return codes[::2] * 16 + codes[1::2]"),
}
# {name: (as above; points; a part of the feedback)}
CLASS = {name: (made, FULL, "") for name, made in WHOLE.items()} | {
    "checksum.zip": (damaged, FULL - 4, f"{WARMUP} cannot be read: Bad CRC-32"),
    "cut.tar": (cut_off, FULL - 4, "cut.tar cannot be read: it is damaged"),
    "pipe": (with_pipe, FULL - 4, f"{WARMUP} cannot be read: it is not a file"),
    "loose.py": (lambda p: p.write_text("x = 1\n") and p, 0, "loose.py does not count"),
    "both": (FILES | {"warmup (1).py": OTHER}, FULL - 4, "2 different files can be warmup.py: "),
    "old": (FILES | {"old_warmup.py": OTHER}, FULL, "old_warmup.py does not"),
    "typo": ({"WARMPU.v2.py": OTHER}, 0, "WARMPU.v2.py does not count (expected warmup.py)"),
    "empty": (lambda p: p.mkdir() or p, 0, " check: there is no file for it"),
    "encoding": (FILES | {WARMUP: ENCODED}, FULL - 4, " check: the file cannot be loaded"),
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


def test_the_files_that_count_and_a_note_on_any_other(tmp_path):
    exercises.FOLDER = SET
    for name, (_, points, says) in CLASS.items():
        files, notes = submission.read(submitted(tmp_path / name))
        has_note = bool(says) and " check: " not in says  # otherwise, the judge says it
        assert [says.strip() in note for note in notes] == [True] * has_note, name
        counts = files.get(WARMUP) == FILES[WARMUP].encode()
        assert counts == (points >= OWN["warmup"].points), name
        assert PACK in files or points in (0, OWN["warmup"].points), name
    assert submission.read(os.devnull) == ({}, ["null cannot be read: it is not a file"])


def test_a_submission_has_the_name_of_its_student(tmp_path):
    for ending in (".zip", ".py", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"):
        (tmp_path / f"first.last{ending}").touch()
        assert submission.student(tmp_path / f"first.last{ending}") == "first.last"
    folder(tmp_path / "first.zip", FILES)
    assert submission.student(tmp_path / "first.zip") == "first.zip"


GRADED = ("first.last", "first.other", "slashes.zip", "tar.tar.gz", "checksum.zip", "pipe", "both",
          "canvas", "prints", "helper", "empty", "encoding")  # fmt: skip


def test_a_class_with_every_damage(workspace):
    paths = [submitted(Path(name).absolute()) for name in GRADED]
    table = own("teach grade", *paths, "--only", *CHOSEN, "--seed 3 --jobs 2 --out class").out
    earned = Counter()
    with open("class/grades.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            earned[row["student"]] += float(row["points"])
    for name, path in zip(GRADED, paths):
        _, points, says = CLASS[name]
        student = submission.student(path)
        assert earned.pop(student) == points, student
        assert says in Path(f"class/feedback/{student}.txt").read_text("utf-8"), student
    assert not earned and table == Path("class/class.md").read_text("utf-8")
    assert f"  - 2 different files can be {WARMUP}: " in table


LATE_ONCE = """from pathlib import Path
    if not Path({mark!r}).exists():
        Path({mark!r}).write_text("")
        import os
        os.kill(os.getpid(), 9)  # as the system ends a process that is out of time
    return codes[::2] * 16 + codes[1::2]"""


def test_what_is_out_of_time_is_run_again_alone(tmp_path, pools, monkeypatch):
    for name in ("ann", "ben"):
        body = LATE_ONCE.format(mark=str(tmp_path / f"{name}.mark"))
        folder(tmp_path / name, one(body))
    more = "--jobs 2 --only packing-nibbles warmup --seed 3"
    out = own("teach grade", tmp_path / "ann", tmp_path / "ben", more).out
    assert "- ann: 7 of 7 points\n- ben: 7 of 7 points\n" in out and pools == [2, 1, 1]
    late = Mock(return_value=judge.Verdict(0.0, LATE))
    monkeypatch.setattr(judge, "verdict", late)
    teach.grade_submission(SET, 3, tmp_path / "ann", ["packing-nibbles"])
    assert late.call_count == 1  # the hidden check would wait as long as the open one
