"""Write the reports of `minilora teach grade`: a table of the class, CSV, and feedback.

`results` is {name of the submission: its Grades}.
"""

import csv
from collections import Counter
from textwrap import indent
from typing import NamedTuple

from . import exercises
from .judge import MISSING, PASSED, TODO, Verdict


class Grade(NamedTuple):
    """One graded exercise. The open and the hidden checks each give half of the points."""

    id: str
    lesson: str
    max_points: float
    open: Verdict
    hidden: Verdict
    written_points: float = 0  # of the reasons; they are marked by hand
    reasons: str = ""

    @property
    def points(self):
        """The points earned."""
        return self.max_points * (self.open.share + self.hidden.share) / 2

    @property
    def result(self):
        """`passed`, `not written`, "name: diagnosis" of a known mistake, or `other mistakes`."""
        if self.open == self.hidden == PASSED:
            return "passed"
        if self.open in (TODO, MISSING):
            return "not written"
        return self.open.mistake or self.hidden.mistake or "other mistakes"


def total_points(grades):
    """Return the line "points of maximum points"."""
    return f"{sum(g.points for g in grades):.4g} of {sum(g.max_points for g in grades):g} points\n"


def feedback(grades):
    """Return the text for the student."""
    texts = [
        f"{g.id}: {g.points:.3g} of {g.max_points:g}\n"
        f"  open check: {g.open.text}\n  hidden check: {g.hidden.text}\n"
        + f"  reasons, for 0 to {g.written_points:g} points by hand:\n{indent(g.reasons, '    ')}\n"
        * bool(g.written_points)
        for g in grades
    ]
    return f"{''.join(texts)}total {total_points(grades)}"


def class_table(results):
    """Return Markdown: the points of each submission, and a table of mistakes per exercise."""
    text = "".join(f"- {name}: {total_points(grades)}" for name, grades in results.items())
    text += "\n| exercise | students |\n| --- | --- |\n"
    for grades in zip(*results.values()):
        kinds = Counter(g.result.partition(":")[0] for g in grades).most_common()
        text += f"| {grades[0].id} | {', '.join(f'{kind} {n}' for kind, n in kinds)} |\n"
    return text


def write_all(folder, results):
    """Write the table of the class, the CSV and one feedback file per submission.

    A character of a name or a message that is no text is written as an escape.
    """
    (folder / "class.md").write_text(class_table(results), "utf-8", "backslashreplace")
    (folder / "feedback").mkdir()
    table = folder / "grades.csv"
    with open(table, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["student", "exercise", "lesson", "points", "max_points", "result"])
        for name, grades in results.items():
            text = feedback(grades)
            (folder / "feedback" / f"{name}.txt").write_text(text, "utf-8", "backslashreplace")
            student = "'" * name.startswith(tuple("=+-@\t\r")) + name  # no formula
            for g in grades:
                points = f"{g.points:.4g}"
                rows.writerow([student, g.id, g.lesson, points, g.max_points, g.result])
                if g.written_points:  # to be marked by hand
                    result = f"mark with {exercises.load()[g.id].rubric}"
                    rows.writerow(
                        [student, f"{g.id}: reasons", g.lesson, "", g.written_points, result]
                    )
