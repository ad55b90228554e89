"""Read what a student handed in: a folder, a zip or tar file, or one Python file.

Nothing that a submission contains stops the reading: what cannot be read becomes a note.
"""

import re
import tarfile
import zipfile
from difflib import get_close_matches
from functools import partial
from pathlib import Path, PurePosixPath
from textwrap import shorten

from ..students import exercises

MOST = 200  # most files of a submission that are read, and most bytes of a file
LARGEST = 2**20
IGNORED = r"(^|/)(\.[^./]|__MACOSX/|__pycache__/|progress\.json$|qlora_in_one_file\.py$)"
COPY = r"([ _-]+(\d+|copy)|[ _-]*\(\d+\))$"  # what browsers and LMSs add to a name


def student(path):
    """Return the name of the student of a submission; raise OSError if there is none."""
    path = Path(path).resolve(strict=True)
    ending = "$" if path.is_dir() else r"(\.(zip|py|tar|tgz|gz|bz2|xz))+$"
    return re.sub(ending, "", path.name)


def entries(path):
    """Yield (name, function that opens it) of each file; the function is None if it is no file."""
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            name = inner.relative_to(path).as_posix()
            if inner.is_file() and inner.resolve().is_relative_to(path.resolve()):
                yield name, partial(inner.open, "rb")
            elif inner.suffix == ".py":
                yield name, None
    elif not path.is_file():
        yield path.name, None
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename, partial(archive.open, entry)
    elif path.suffix == ".py":
        yield path.name, partial(path.open, "rb")
    else:
        tar = tarfile.open(path)  # noqa: SIM115 — the caller reads from it
        for member in tar:
            if member.isfile():
                yield member.name, partial(tar.extractfile, member)


def recognized(name, known):
    """Return the exercise's file that a submitted file can be, or "", and if it has a prefix."""
    path = PurePosixPath(name.lower())
    if path.suffix != ".py":
        return "", True
    stem = path.stem
    names = []
    for _ in stem:  # an id can end with a number, too
        names.append(re.sub("[ -]", "_", stem) + ".py")
        if names[-1] in known:
            return names[-1], False
        stem = re.sub(COPY, "", stem)
    ends = (file for file in known if any(name.endswith(f"_{file}") for name in names))
    return max(ends, key=len, default=""), True


def collect(path):
    """Return {name: bytes} of the files of a submission, and notes on what cannot be read."""
    pairs: list = []
    found: dict = {}
    notes: list = []
    try:
        pairs.extend(entries(path))  # it keeps those before an error
    except Exception:
        notes.append(f"{path.name} cannot be read: it is damaged, or not a zip or tar file")
    named = [(name.replace("\\", "/"), open_file) for name, open_file in pairs]
    kept = [pair for pair in named if not re.search(IGNORED, pair[0])]
    kept.sort(key=lambda pair: (not pair[0].lower().endswith(".py"), pair[0].count("/")))
    if left := [name for name, _ in kept[MOST:]]:
        notes.append(f"only {MOST} files are read, and not {shorten(', '.join(left), 1000)}")
    for name, open_file in kept[:MOST]:
        try:
            if not open_file:
                raise OSError("it is not a file")
            with open_file() as stream:
                content = stream.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise OSError(f"it has more than {LARGEST} bytes")
            while found.get(name, content) != content:  # an archive can have a name twice
                name = f"again/{name}"
            found[name] = content
        except Exception as error:  # damaged, not allowed
            # zipfile raises a subclass of RuntimeError for a compression that it does not know
            reason = "it is encrypted" if type(error) is RuntimeError else error
            notes.append(f"{name} cannot be read: {reason}")
    return found, notes


def read(path):
    """Return ({name: bytes}, notes on what does not count) of a submission.

    The file of an exercise gets the name that was handed out. A file whose name has a prefix counts
    if no file without one can be meant. If two different files can be meant, none counts. Other
    Python files keep their names, so that the files can import them.
    """
    known = {e.file for e in exercises.load().values()}
    stems = [file.removesuffix(".py") for file in known]
    found, notes = collect(Path(path))
    files: dict = {}
    meant: dict = {}
    for name in found:
        meant.setdefault(recognized(name, known), []).append(name)
    for (file, has_prefix), names in meant.items():
        if not file or (has_prefix and (file, False) in meant):
            for name in names:
                own = PurePosixPath(name).name
                near = get_close_matches(own.partition(".")[0].lower(), stems, 1)
                expected = "".join(f" (expected {stem}.py)" for stem in near)
                notes.append(f"{name} does not count{expected}")
                files.setdefault(own, found[name])
        elif len({found[name] for name in names}) > 1:
            notes.append(f"{len(names)} different files can be {file}: {', '.join(names)}")
        else:
            files[file] = found[names[0]]
            files.setdefault(PurePosixPath(names[0]).name, found[names[0]])  # another may import it
    return files, notes
