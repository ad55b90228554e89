"""Write the reports of `minilora teach grade`: a table of the class, CSV, and feedback.

`results` is {name of the submission: ({id of an exercise: its Grade}, notes on the files)}.
"""

import csv
from collections import Counter
from textwrap import indent
from typing import NamedTuple

from ..students import exercises
from ..students.isolation import LATE
from ..students.judge import PASSED, Verdict

ENDED = "the process that graded it ended"


class Grade(NamedTuple):
    """One graded exercise. The open and the hidden checks each give half of the points."""

    id: str
    open: Verdict
    hidden: Verdict
    reasons: str = ""  # what the student wrote, to be marked by hand

    @property
    def exercise(self):
        """The Exercise."""
        return exercises.load()[self.id]

    @property
    def points(self):
        """The points earned."""
        return self.exercise.points * (self.open.share + self.hidden.share) / 2

    @property
    def is_late(self):
        """Tell whether a check must be repeated, because it took too long or broke off."""
        return any(v.text.startswith((LATE, ENDED)) for v in (self.open, self.hidden))

    @property
    def result(self):
        """`passed`, "name: diagnosis", `other mistakes`, or why there is no answer."""
        if self.open == self.hidden == PASSED:
            return "passed"
        first = self.hidden if self.open == PASSED else self.open
        said = first.text.partition("\n")[0]
        is_wrong = first.share or said.startswith("failed")
        return self.open.mistake or self.hidden.mistake or ("other mistakes" if is_wrong else said)


def total_points(grades):
    """Return the line "points of maximum points"."""
    most = sum(g.exercise.points for g in grades.values())
    return f"{sum(g.points for g in grades.values()):.4g} of {most:g} points\n"


def feedback(grades, notes):
    """Return the text for the student."""
    text = "".join(f"{note}\n" for note in notes)
    for g in grades.values():
        text += f"{g.id}: {g.points:.3g} of {g.exercise.points:g}\n"
        text += f"  open check: {g.open.text}\n  hidden check: {g.hidden.text}\n"
        if most := g.exercise.written_points:
            reasons = indent(g.reasons or "none", "    ")
            text += f"  reasons, for 0 to {most:g} points by hand:\n{reasons}\n"
    return f"{text}total {total_points(grades)}"


def class_table(results):
    """Return Markdown: the points of each submission, and a table of mistakes per exercise."""
    text = ""
    kinds: dict = {}
    for name, (grades, notes) in results.items():
        text += f"- {name}: {total_points(grades)}" + "".join(f"  - {note}\n" for note in notes)
        for g in grades.values():
            kinds.setdefault(g.id, Counter()).update([g.result.partition(":")[0]])
    text += "\n| exercise | students |\n| --- | --- |\n"
    for id, counts in kinds.items():
        text += f"| {id} | {', '.join(f'{kind} {n}' for kind, n in counts.most_common())} |\n"
    return text


def write(folder, results, name):
    """Write the table of the class, the CSV, and the feedback of one submission.

    A character of a name or a message that is no text is written as an escape.
    """
    (folder / "feedback").mkdir(parents=True, exist_ok=True)
    text = feedback(*results[name])
    (folder / "feedback" / f"{name}.txt").write_text(text, "utf-8", "backslashreplace")
    (folder / "class.md").write_text(class_table(results), "utf-8", "backslashreplace")
    table = folder / "grades.csv"
    with open(table, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["student", "exercise", "lesson", "points", "max_points", "result"])
        for name, (grades, _) in results.items():
            student = "'" * name.startswith(tuple("=+-@\t\r")) + name  # no formula
            for g in grades.values():
                e = g.exercise
                rows.writerow([student, g.id, e.lesson, f"{g.points:.4g}", e.points, g.result])
                if e.written_points:
                    said = f"mark it with {e.rubric}: {g.reasons}" if g.reasons else "no reason"
                    points = "" if g.reasons else 0
                    cells = [f"{g.id}: reasons", e.lesson, points, e.written_points, said]
                    rows.writerow([student, *cells])
