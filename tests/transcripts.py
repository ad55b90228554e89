"""Transcripts: all that commands print, kept in a text file and compared with what they print now.

A transcript looks like a terminal. A line `$ …` is a command; below it is what it prints, and its
exit status as `[2]` if that is not 0. `$ cat > FILE` writes the lines below it to a file; `< FILE`
at the end of a command gives it this file as standard input; `$ # …` is a comment.

To change a transcript, edit its commands. `pytest --rewrite -k transcript` then writes what they
print. A person reads the diff before it is committed: what looks wrong there is wrong.
"""

import re
import shlex
from contextlib import redirect_stderr, redirect_stdout, suppress
from decimal import Decimal
from difflib import unified_diff
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from minilora import cli
from minilora.course.students.exercises import LESSONS
from minilora.data.rows import warn_once

STEP = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # a command, and what is below it
MASKS: dict = {  # what differs: what stands for it
    r'"(seconds|peak_rss_mb)": [\d.]+': r'"\1": …',  # depend on the machine and on its load
    r"(?<!\.)\b([0-9a-f]{64}|[0-9a-f]{16})\b": "DIGEST",  # others round the weights otherwise
    # argparse breaks and writes these lines otherwise in other Pythons
    r"(?s:usage: .*?)\n\n": lambda usage: " ".join(usage[0].split()) + "\n\n",
    r"-c CONFIG, --config CONFIG\n *": "-c, --config CONFIG   ",
    r"invalid choice: .*\(choose from [^)]*\)": lambda names: names[0].replace("'", ""),
}
# a number that is not whole, or a share in percent: other processors round these otherwise
NUMBER = re.compile(r"(-?\d+\.\d+(?:e[-+]\d+)?|-?\d+(?=%))")


def check_transcript(path, rewrite, **commands):
    """Run the commands of a transcript in the current folder; fail if they print something else.

    rewrite: write what they print into the file instead. commands: {name: function of the words
    after the name, which prints and returns an exit status or None}, besides `minilora` and `cat`.
    """
    commands |= {"minilora": cli.main, "cat": cat}
    then = path.read_bytes().decode()
    now = STEP.sub(lambda step: f"$ {step[1]}\n{run_step(*step.groups(), commands)}", then)
    if rewrite:
        path.write_bytes(now.encode())
        return
    lines = unified_diff(then.splitlines(), now.splitlines(), path.name, "now", lineterm="")
    if difference := "\n".join(lines):
        pytest.fail(f"{difference}\nIf this is meant: pytest --rewrite -k transcript", False)


def run_step(line, below, commands):
    """Return the lines that a command prints now, given those that the file has below it."""
    words = shlex.split(line, comments=True)
    if not words:
        return ""
    if words[:2] == ["cat", ">"]:
        path = Path(words[2])
        path.parent.mkdir(exist_ok=True)
        path.write_text(below, encoding="utf-8")
        return below
    typed = ""
    if words[-2:-1] == ["<"]:
        typed = Path(words[-1]).read_text("utf-8")
        words = words[:-2]
    new = masked(printed(commands[words[0]], words[1:], typed)).split("\n")
    old = below.split("\n")
    return "\n".join(map(settled, new, old) if len(new) == len(old) else new)


def printed(command, words, typed):
    """Return what a command prints, on both streams, and its exit status if that is not 0."""
    warn_once.cache_clear()  # a command is a process of its own for its user
    out = StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(out),
        patch("sys.stdin", StringIO(typed)),
        suppress(SystemExit),  # of --help
    ):
        if status := command(words):
            print(f"[{status:d}]")
    return out.getvalue()


def cat(paths):
    """Print files."""
    for path in paths:
        print(Path(path).read_text("utf-8").removesuffix("\n"))


def masked(text):
    """Return a text without what differs between runs, machines or Pythons."""
    text = text.replace(str(Path.cwd()), "/here").replace(str(LESSONS), "/lessons")
    for pattern, mask in MASKS.items():
        text = re.sub(pattern, mask, text)
    return text


def settled(new, old):
    """Return the old line if the new one has the same words, and numbers that are near."""
    ours = NUMBER.split(new)
    theirs = NUMBER.split(old)
    same_words = ours[::2] == theirs[::2]
    return old if same_words and all(map(near, ours[1::2], theirs[1::2])) else new


def near(new, old):
    """Tell whether numbers differ by 0.1 % at most, or by one in the last digit that is printed."""
    expected = Decimal(old)
    last_digit = Decimal(1).scaleb(expected.as_tuple().exponent)
    return abs(Decimal(new) - expected) <= max(abs(expected) / 1000, last_digit)
