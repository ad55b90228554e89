"""The lesson with QLoRA in one file, run as a script: its names and its printed output."""

import contextlib
import io
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np

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


def parts(q):
    """The arrays of a lesson's NF4Weight and of a package's `nf4.Quantized`, in one order."""
    if hasattr(q, "absmax_codes"):
        return q.codes, q.absmax_codes, q.nested_absmax, q.offset
    return q.codes, q.stored_absmax.codes, q.stored_absmax.nested_absmax, q.stored_absmax.offset


def assert_equal_bits(lesson, package, w):
    """Both sides give w the same codes, scales, offset and dequantized weight, bit for bit."""
    ours, theirs = lesson.quantize(w), package.quantize(w, 64, double_quant=True)
    for a, b in zip(parts(ours), parts(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    a, b = lesson.dequantize(ours), theirs.dequantize()
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
