"""What `minilora teach grade` writes: feedback, CSV, Gradescope's JSON, tables and a picture.

Results are {name of the submission: its Grades}.
"""

import csv
import io
import json
from collections import Counter
from itertools import chain
from typing import NamedTuple

from .judge import Verdict
from .learn import write

COLORS = {"passed": "tab:green", "other mistakes": "tab:red", "not written": "lightgray"}

HEAD = ("student", "exercise", "lesson", "points", "max_points", "status", "hidden", "mistake")


class Grade(NamedTuple):
    """One exercise of a submission: half of its points for the open checks, half for the hidden."""

    id: str
    lesson: int
    most: float
    open: Verdict
    hidden: Verdict
    seconds: float

    @property
    def points(self):
        return self.most * (self.open.share + self.hidden.share) / 2

    @property
    def kind(self):
        """`passed`, `not written`, the name of a mistake, or `other mistakes`."""
        if self.open.status == self.hidden.status == "passed":
            return "passed"
        if self.open.status == "todo" or "not handed in" in self.open.text:
            return "not written"
        return (self.open.mistake or self.hidden.mistake).partition(":")[0] or "other mistakes"


def total(grades):
    """Return (points, most points) of a submission."""
    return sum(g.points for g in grades), sum(g.most for g in grades)


def feedback(grades):
    lines = []
    for g in grades:
        lines.append(f"{g.id}: {g.points:.3g} of {g.most:g}")
        texts = dict.fromkeys([g.open.text, g.hidden.text])  # one line where they are the same
        lines += [f"  {text}" for text in texts if text != "passed"]
    points, most = total(grades)
    return "\n".join([*lines, f"together {points:.4g} of {most:g} points"]) + "\n"


def as_csv(results):
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(HEAD)
    for name, grades in results.items():
        for g in grades:
            row = [name, g.id, g.lesson, f"{g.points:.4g}", f"{g.most:g}", g.open.status]
            rows.writerow(map(cell, [*row, g.hidden.status, g.open.mistake or g.hidden.mistake]))
    return file.getvalue()


def cell(value):
    """Return a value that no spreadsheet takes for a formula."""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_gradescope(grades):
    """Return the fields that Gradescope documents; one test per kind of check, open and hidden."""
    tests = [
        {
            "name": f"{g.id}, {kind}",
            "score": g.most / 2 * verdict.share,
            "max_score": g.most / 2,
            "status": "passed" if verdict.status == "passed" else "failed",
            "output": verdict.text,
            "visibility": "visible",
            "tags": [f"lesson {g.lesson}", kind],
        }
        for g in grades
        for kind, verdict in (("open", g.open), ("hidden", g.hidden))
    ]
    result = {
        "score": total(grades)[0],
        "execution_time": round(sum(g.seconds for g in grades)),
        "output": "Each exercise has open checks and hidden ones: the same rules, on other calls.",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def kinds(results):
    """Return {exercise id: Counter of the Grades' kinds}."""
    counts: dict = {}
    for g in chain.from_iterable(results.values()):
        counts.setdefault(g.id, Counter())[g.kind] += 1
    return counts


def class_table(results):
    """Return two tables in Markdown: the points of each submission, and exercise by mistake."""
    lines = ["| student | points | of |", "| --- | --- | --- |"]
    for name, grades in results.items():
        points, most = total(grades)
        lines.append(f"| {name.replace('|', '/')} | {points:.4g} | {most:g} |")
    lines += ["", "| exercise | passed | not written | mistakes |", "| --- | --- | --- | --- |"]
    for name, found in kinds(results).items():
        mistakes = [f"{kind} {n}" for kind, n in found.most_common() if kind not in COLORS]
        mistakes += [f"{kind} {found[kind]}" for kind in ("other mistakes",) if found[kind]]
        cells = name, found["passed"], found["not written"], ", ".join(mistakes)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def picture(results, path):
    """Draw a bar per exercise: how many passed, and how many made which mistake."""
    from matplotlib.figure import Figure

    counts = kinds(results)
    figure = Figure(figsize=(10, 2 + 0.3 * len(counts)), layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(counts.values()):
        left = 0
        named = [kind for kind, _ in found.most_common() if kind not in COLORS]
        for number, kind in enumerate(["passed", *named, "other mistakes", "not written"]):
            color = COLORS.get(kind, ("gold", "tab:orange")[number % 2])
            axes.barh(row, found[kind], left=left, color=color, edgecolor="white")
            if kind in named:
                axes.text(left + found[kind] / 2, row, kind, ha="center", va="center", fontsize=6)
            left += found[kind]
    for kind, color in COLORS.items():
        axes.barh(0, 0, color=color, label=kind)
    axes.set_yticks(range(len(counts)), counts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("students (a recognized mistake is named in its part of the bar)")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def write_all(folder, results):
    """Write the tables, the CSV, the picture, feedback per student; of one, Gradescope's JSON."""
    write(folder / "grades.csv", as_csv(results))
    write(folder / "class.md", class_table(results))
    picture(results, folder / "class.png")
    (folder / "feedback").mkdir()
    for name, grades in results.items():
        write(folder / "feedback" / f"{name}.txt", feedback(grades))
        if len(results) == 1:
            write(folder / "results.json", as_gradescope(grades))
