"""Exercises of the tests' own, and folders and zip files as students submit them."""

import zipfile
from pathlib import Path

from outcomes import run

from minilora.course.students import exercises

SET = Path(__file__).with_name("exercises")  # these do not change when the course changes
OWN = exercises.load_file(SET / "exercises.toml")


def own(*words, status=0):
    """Run a command with the exercises of SET; return what it prints."""
    return run(*words, "--exercises", SET, status=status)


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
