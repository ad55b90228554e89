"""Write a zip file that Gradescope unpacks, installs with setup.sh, and runs per submission."""

import zipfile
from importlib.metadata import requires
from pathlib import Path

from .exercises import LESSONS, TEMPLATES

PACKAGE = Path(__file__).parents[1]


def write_zip(path, seed, only):
    """Write the two scripts, the package and its lessons into a zip file."""
    needs = [f"'{need}'" for need in requires("minilora") or () if "extra ==" not in need]
    values = {"@NEEDS@": " ".join(needs), "@SEED@": str(seed)}
    values["@ONLY@"] = " ".join(["--only", *only]) if only else ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("setup.sh", "run_autograder"):
            text = (TEMPLATES / name).read_text(encoding="utf-8")
            for key, value in values.items():
                text = text.replace(key, value)
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, text)
        for folder, inside in ((PACKAGE, "minilora"), (LESSONS, "minilora/lessons")):
            for file in sorted(folder.rglob("*")):
                parts = file.relative_to(folder).parts
                if file.is_file() and "__pycache__" not in parts and parts[0] != "lessons":
                    archive.write(file, "/".join([inside, *parts]))
