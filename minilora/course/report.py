"""Write the reports of `minilora teach grade`: feedback, CSV, Gradescope's JSON, tables, a figure.

`results` is {name of the submission: its Grades}.
"""

import csv
import io
import json
import textwrap
from collections import Counter
from typing import NamedTuple

from ..evaluation.plot import figure
from ..formats.files import replace_text
from .judge import Verdict

COLORS = {"passed": "tab:green", "other mistakes": "tab:red", "not written": "lightgray"}


class Grade(NamedTuple):
    """One graded exercise. The open and the hidden checks each give half of the points."""

    id: str
    lesson: str
    max_points: float
    open: Verdict
    hidden: Verdict

    @property
    def points(self):
        """The points earned."""
        return self.max_points * (self.open.share + self.hidden.share) / 2

    @property
    def text(self):
        """What the open and the hidden check say, once if it is the same."""
        said = dict.fromkeys([self.open.text, self.hidden.text])
        return "\n  ".join(text for text in said if text != "passed") or "passed"

    @property
    def mistake(self):
        """The recognized mistake, "name: diagnosis", or an empty string."""
        return self.open.mistake or self.hidden.mistake

    @property
    def kind(self):
        """One of `passed`, `not written`, `other mistakes` and the names of the mistakes."""
        if self.open.status == self.hidden.status == "passed":
            return "passed"
        if self.open.status == "todo" or "not handed in" in self.open.text:
            return "not written"
        return self.mistake.partition(":")[0] or "other mistakes"


def total_points(grades):
    """Return the line "points of maximum points"."""
    return f"{sum(g.points for g in grades):.4g} of {sum(g.max_points for g in grades):g} points\n"


def feedback(grades):
    """Return the text for the student."""
    lines = [f"{g.id}: {g.points:.3g} of {g.max_points:g}\n  {g.text}\n" for g in grades]
    return f"{''.join(lines)}total {total_points(grades)}"


def as_csv(results):
    """Return CSV, one row per student and exercise; no cell begins like a spreadsheet formula."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["student", "exercise", "lesson", "points", "max_points", "kind", "mistake"])
    for name, grades in results.items():
        for g in grades:
            row = [name, g.id, g.lesson, f"{g.points:.4g}", f"{g.max_points:g}", g.kind, g.mistake]
            rows.writerow("'" * (cell[:1] in {*"=+-@\t\r"}) + cell for cell in row)
    return file.getvalue()


def as_gradescope(grades):
    """Return Gradescope's results.json, with one test per exercise."""
    tests = [
        {"name": g.id, "score": g.points, "max_score": g.max_points, "output": g.text}
        for g in grades
    ]
    return json.dumps({"tests": tests}, indent=2, ensure_ascii=False) + "\n"


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
    rows = count_kinds(results)
    label = "students (a recognized mistake is named in its part of the bar)"
    with figure(path, label, "", "", 10, 1.5 + 0.3 * len(rows)) as axes:
        for name, found in rows.items():
            left = 0
            for number, (kind, n) in enumerate(found.items()):
                color = COLORS.get(kind, ("gold", "tab:orange")[number % 2])
                bar = axes.barh(name, n, left=left, color=color, edgecolor="white")
                left += n
                if kind not in COLORS and (width := 110 * n // len(results)) > 5:
                    lines = textwrap.wrap(kind.replace("-", " "), width, break_long_words=False)
                    axes.bar_label(bar, ["\n".join(lines[:3])], label_type="center", fontsize=5)
        patches = [axes.barh(0, 0, color=color) for color in COLORS.values()]
        axes.legend(patches, COLORS, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        axes.set(axisbelow=True, ylim=(len(rows) - 0.5, -0.5))


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
