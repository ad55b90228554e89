"""Write the reports of `minilora teach grade`: a table of the class, CSV, and feedback.

`results` is {name of the submission: ({id of an exercise: its Grade}, notes on the files)}.
"""

import csv
from collections import Counter
from textwrap import indent
from typing import Any, NamedTuple

from ..students import exercises
from ..students.isolation import LATE
from ..students.judge import PASSED, Verdict

ENDED = "the process that graded it ended"
# of the files; a character of a name or a message that is no text is written as an escape
TEXT: Any = {"encoding": "utf-8", "errors": "backslashreplace"}


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
        """`passed`, "name: diagnosis", or the first line of a check that is not passed."""
        first = self.hidden if self.open == PASSED else self.open
        return self.open.mistake or self.hidden.mistake or first.text.partition("\n")[0]


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
            text += f"  reasons, for 0 to {most:g} points by hand:\n{indent(g.reasons, '    ')}\n"
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
    """Write the table of the class, the CSV, and the feedback of one submission."""
    (folder / "feedback").mkdir(parents=True, exist_ok=True)
    (folder / "feedback" / f"{name}.txt").write_text(feedback(*results[name]), **TEXT)
    (folder / "class.md").write_text(class_table(results), **TEXT)
    with open(folder / "grades.csv", "w", newline="", **TEXT) as file:
        rows = csv.writer(file)
        rows.writerow(["student", "exercise", "lesson", "points", "max_points", "result"])
        for name, (grades, _) in results.items():
            student = "'" * name.startswith(tuple("=+-@\t\r")) + name  # no formula
            for g in grades.values():
                e = g.exercise
                rows.writerow([student, g.id, e.lesson, f"{g.points:.4g}", e.points, g.result])
                if most := e.written_points:
                    said = f"mark it with {e.rubric}"
                    rows.writerow([student, f"{g.id}: reasons", e.lesson, "", most, said])
