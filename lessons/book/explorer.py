"""The data of the explorer: `micro`, the adapter of lesson 0 at six steps, twenty questions.

    python -m lessons.book.explorer FOLDER   # writes FOLDER/data.js and copies the page next to it

The book's build runs the lesson for it (a quarter of a minute) and keeps the result in its cache.
The page then opens from FOLDER/index.html, without a server and without a network.
"""

import base64
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from lessons.book.cache import CACHE
from minilora.formats import safetensors_file as safetensors

PAGE = Path(__file__).parent / "_static" / "explorer"
PICTURE = Path(__file__).parents[2] / "figures" / "explorer.png"
LESSON = Path(__file__).parents[1] / "00_qlora_in_one_file.py"
STEPS = (0, 10, 25, 50, 100, 200)
QUESTIONS = 20


def run_lesson(keep):
    """Run lesson 0 up to its curve, calling keep(step, adapters) in training; return its names."""
    text, found, _ = LESSON.read_text("utf-8").partition("# The curve of the loss")
    first, last = "m, v = dict.fromkeys(adapters, 0)", "    if t == 1 or t % 25 == 0:\n"
    assert found and text.count(first) == text.count(last) == 1, "lesson 0 has changed"
    text = text.replace(first, f"keep(0, adapters)\n{first}")
    text = text.replace(last, f"    keep(t, adapters)\n{last}")
    names = {"__name__": "__main__", "keep": keep}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, str(LESSON), "exec"), names)
    return names


def rotate(B, A):
    """Return two factors with the product BA, ordered by size: U·S (out, r) and Vᵀ (r, in).

    Rows of Vᵀ have length 1 and are orthogonal, so column k of U·S has the length σₖ. The first k
    columns and rows are the best approximation of rank k (Eckart and Young 1936).
    """
    # BA = Q_B (R_B R_Aᵀ) Q_Aᵀ: the SVD of an r×r matrix is enough
    q_b, r_b = np.linalg.qr(B.astype(np.float64))
    q_a, r_a = np.linalg.qr(A.T.astype(np.float64))
    u, s, vt = np.linalg.svd(r_b @ r_a.T)
    return (q_b @ (u * s)).astype(np.float32), (vt @ q_a.T).astype(np.float32)


def adapters_by_step(kept):
    """Return {"step.path.lora_A" and "step.path.lora_B": array} of the rotated factors."""
    found = {}
    for step, adapters in kept.items():
        for path in sorted(name.removesuffix(".lora_A") for name in adapters if "lora_A" in name):
            B, A = rotate(adapters[f"{path}.lora_B"], adapters[f"{path}.lora_A"])
            found |= {f"{step}.{path}.lora_A": A, f"{step}.{path}.lora_B": B}
    return found


def data():
    """Train, and return the text of data.js."""
    kept = {}

    def keep(step, adapters):
        if step in STEPS:
            kept[step] = dict(adapters)

    names = run_lesson(keep)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapters.safetensors"
        arrays = adapters_by_step(kept)
        safetensors.write(file, {n: safetensors.entry("F32", w) for n, w in arrays.items()})
        adapters = base64.b64encode(file.read_bytes()).decode()
    micro = base64.b64encode((names["MICRO"] / "model.safetensors").read_bytes()).decode()
    fields = {
        "config": names["config"], "alpha": names["ALPHA"], "rank": names["RANK"],
        "steps": STEPS, "questions": names["held_out"][:QUESTIONS], "micro": micro,
        "adapters": adapters,
    }  # fmt: skip
    return f"const DATA = {json.dumps(fields, default=str)};\n"


def write(folder):
    """Write data.js into the folder, from the book's cache if the same lesson has run before."""
    inputs = [LESSON, Path(__file__), Path(safetensors.__file__)]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    cached = CACHE / f"explorer-{key}.js"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        new = cached.with_suffix(".new")
        new.write_text(data(), encoding="utf-8")
        new.replace(cached)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(cached, folder / "data.js")
    if PICTURE.exists():
        shutil.copy(PICTURE, folder)


def main():
    folder = Path(sys.argv[1])
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    write(folder)
    print(f"{folder / 'data.js'}: {(folder / 'data.js').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
