"""Folders and zip files as students submit them."""

import zipfile


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
