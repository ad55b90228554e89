"""Write the reports of `minilora teach grade`: feedback, CSV, Gradescope's JSON, tables, a figure.

`results` is {name of the submission: its Grades}.
"""

import csv
import io
import json
import textwrap
from collections import Counter
from typing import NamedTuple

from ..formats.files import replace_text
from .judge import Verdict

COLORS = {"passed": "tab:green", "other mistakes": "tab:red", "not written": "lightgray"}


class Grade(NamedTuple):
    """One graded exercise. The open and the hidden checks each give half of the points."""

    id: str
    lesson: int
    max_points: float
    open: Verdict
    hidden: Verdict
    seconds: float

    @property
    def points(self):
        """The points earned."""
        return self.max_points * (self.open.share + self.hidden.share) / 2

    @property
    def kind(self):
        """One of `passed`, `not written`, `other mistakes` and the names of the mistakes."""
        if self.open.status == self.hidden.status == "passed":
            return "passed"
        if self.open.status == "todo" or "not handed in" in self.open.text:
            return "not written"
        return (self.open.mistake or self.hidden.mistake).partition(":")[0] or "other mistakes"


def total_points(grades):
    """Return the line "points of maximum points"."""
    return f"{sum(g.points for g in grades):.4g} of {sum(g.max_points for g in grades):g} points\n"


def feedback(grades):
    """Return the text for the student."""
    text = ""
    for g in grades:
        said = dict.fromkeys([g.open.text, g.hidden.text])  # the same text appears once
        text += f"{g.id}: {g.points:.3g} of {g.max_points:g}\n"
        text += "".join(f"  {line}\n" for line in said if line != "passed")
    return f"{text}total {total_points(grades)}"


def as_csv(results):
    """Return CSV, one row per student and exercise; no cell begins like a spreadsheet formula."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["student", "exercise", "lesson", "points", "max_points", "kind", "mistake"])
    for name, grades in results.items():
        for g in grades:
            row = [name, g.id, g.lesson, f"{g.points:.4g}", f"{g.max_points:g}", g.kind]
            texts = map(str, [*row, g.open.mistake or g.hidden.mistake])
            rows.writerow(f"'{text}" if text[:1] in "=+-@\t\r" and text else text for text in texts)
    return file.getvalue()


def as_gradescope(grades):
    """Return Gradescope's results.json, with one open and one hidden test per exercise."""
    tests = [
        {"name": f"{g.id}, {kind}", "tags": [f"lesson {g.lesson}", kind], "output": verdict.text,
         "score": g.max_points / 2 * verdict.share, "max_score": g.max_points / 2,
         "status": "passed" if verdict.status == "passed" else "failed"}
        for g in grades for kind, verdict in (("open", g.open), ("hidden", g.hidden))
    ]  # fmt: skip
    result = {
        "output": "Each exercise has open and hidden checks: the same rules on different calls.",
        "score": sum(g.points for g in grades), "visibility": "visible", "tests": tests,
        "execution_time": round(sum(g.seconds for g in grades)), "stdout_visibility": "hidden",
    }  # fmt: skip
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def count_kinds(results):
    """Return {exercise id: {kind of Grade: number}}, with the most frequent mistakes first."""
    by_exercise = {}
    for grades in zip(*results.values()):
        found = Counter(g.kind for g in grades)
        named = [kind for kind, _ in found.most_common() if kind not in COLORS]
        order = ["passed", *named, "other mistakes", "not written"]
        by_exercise[grades[0].id] = {kind: found[kind] for kind in order if found[kind]}
    return by_exercise


def class_table(results):
    """Return Markdown: the points of each submission, and a table of mistakes per exercise."""
    text = "".join(f"- {name}: {total_points(grades)}" for name, grades in results.items())
    text += "\n| exercise | students |\n| --- | --- |\n"
    for name, found in count_kinds(results).items():
        text += f"| {name} | {', '.join(f'{kind} {n}' for kind, n in found.items())} |\n"
    return text


def plot_class(results, path):
    """Draw one bar per exercise: how many passed, and how many made which mistake."""
    from matplotlib.figure import Figure

    rows = count_kinds(results)
    figure = Figure(figsize=(10, 2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(rows.values()):
        left = 0
        for number, (kind, n) in enumerate(found.items()):
            color = COLORS.get(kind, ("gold", "tab:orange")[number % 2])
            axes.barh(row, n, left=left, color=color, edgecolor="white")
            if kind not in COLORS and (width := 110 * n // len(results)) > 5:
                text = textwrap.fill(kind.replace("-", " "), width)
                axes.text(left + n / 2, row, text, ha="center", va="center", fontsize=5)
            left += n
    for kind, color in COLORS.items():
        axes.barh(0, 0, color=color, label=kind)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("students (a recognized mistake is named in its part of the bar)")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def write_all(folder, results):
    """Write tables, CSV and feedback; also a figure of a class, or Gradescope's JSON for one."""
    replace_text(folder / "grades.csv", as_csv(results))
    replace_text(folder / "class.md", class_table(results))
    (folder / "feedback").mkdir()
    for name, grades in results.items():
        replace_text(folder / "feedback" / f"{name}.txt", feedback(grades))
    if len(results) > 1:
        plot_class(results, folder / "class.png")
    else:
        replace_text(folder / "results.json", as_gradescope(grades))
