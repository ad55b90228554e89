"""`minilora teach autograder`: a zip that Gradescope unpacks, installs and runs."""

import zipfile
from importlib.metadata import requires
from pathlib import Path

from .. import config
from .exercises import LESSONS

SETUP = """#!/usr/bin/env bash
set -e
root=${{AUTOGRADER:-/autograder}}
apt-get update && apt-get install -y python3 python3-venv
python3 -m venv "$root/venv"
"$root/venv/bin/pip" install {needs}
"""
RUN = """#!/usr/bin/env bash
# A student's code runs as `nobody`, who may read neither the seed nor other files of the grader's.
set -e
root=${{AUTOGRADER:-/autograder}}
chmod 700 "$root/source/run_autograder" "$root/run_autograder" "$root/results"
export PYTHONPATH="$root/source" MINILORA_GRADING_SEED={seed}
"$root/venv/bin/python" -m minilora teach grade "$root/submission" {only} \\
    --user nobody --format gradescope --out "$root/results/results.json"
"""


def write_zip(path, seed, only):
    """Write setup.sh, run_autograder, the package and its lessons into a zip file."""
    package = Path(config.__file__).parent
    needs = [f"'{need}'" for need in requires("minilora") or () if "extra ==" not in need]
    scripts = {
        "setup.sh": SETUP.format(needs=" ".join(needs)),
        "run_autograder": RUN.format(seed=seed, only=" ".join(["--only", *only] if only else [])),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in scripts.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        for folder, inside in ((package, "minilora"), (LESSONS, "minilora/lessons")):
            for file in sorted(folder.rglob("*")):
                name = file.relative_to(folder)
                if (
                    file.is_file()
                    and "__pycache__" not in file.parts
                    and name.parts[0] != "lessons"
                ):
                    archive.write(file, f"{inside}/{name.as_posix()}")
