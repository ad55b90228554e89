"""The lesson with QLoRA in one file, run as a script: its names and its printed output."""

import contextlib
import io
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import matplotlib

LESSON = Path(__file__).parents[1] / "lessons" / "00_qlora_in_one_file.py"


@cache
def one_file(steps=200):
    """(the lesson's names, the printed text); all its steps, once per process, take 15 s."""
    matplotlib.use("Agg")  # the lesson shows a curve at its end, and no window may wait here
    names, printed = {"__name__": "__main__"}, io.StringIO()
    text = LESSON.read_text("utf-8")
    assert text.count("WARMUP = 200,") == 1
    text = text.replace("WARMUP = 200,", f"WARMUP = {steps},")
    with contextlib.redirect_stdout(printed):
        exec(compile(text, str(LESSON), "exec"), names)
    return SimpleNamespace(**names), printed.getvalue()
