"""Write the reports of `minilora teach grade`: a table of the class, CSV, and feedback.

`results` is {name of the submission: ({id of an exercise: its Grade}, notes on the files)}.
"""

import csv
from collections import Counter
from textwrap import indent
from typing import Any, NamedTuple

from ..students.isolation import LATE
from ..students.judge import PASSED

ENDED = "the process that graded it ended"
# of the files; a character of a name or a message that is no text is written as an escape
TEXT: Any = {"encoding": "utf-8", "errors": "backslashreplace"}


class Grade(NamedTuple):
    """One graded exercise."""

    points: float
    most: float
    result: str  # `passed`, "name: diagnosis", or the first line of a check that is not passed
    text: str  # for the student
    rows: list  # of grades.csv, without the student
    is_late: bool  # a check must be repeated, because it took too long or broke off


def grade(e, first, second, reasons=""):
    """Return the Grade of an exercise; the open and the hidden check each give half of the points.

    reasons: what the student wrote, to be marked by hand.
    """
    points = e.points * (first.share + second.share) / 2
    broken = second if first == PASSED else first
    result = first.mistake or second.mistake or broken.text.partition("\n")[0]
    text = f"{e.id}: {points:.3g} of {e.points:g}\n"
    text += f"  open check: {first.text}\n  hidden check: {second.text}\n"
    rows = [[e.id, e.lesson, f"{points:.4g}", e.points, result]]
    if most := e.written_points:
        said = f"mark it with {e.rubric}: {reasons}" if reasons else "no reason"
        shown = indent(reasons or "none", "    ")
        text += f"  reasons, for 0 to {most:g} points by hand:\n{shown}\n"
        rows.append([f"{e.id}: reasons", e.lesson, "" if reasons else 0, most, said])
    is_late = any(verdict.text.startswith((LATE, ENDED)) for verdict in (first, second))
    return Grade(points, e.points, result, text, rows, is_late)


def total_points(grades):
    """Return the line "points of maximum points"."""
    most = sum(g.most for g in grades.values())
    return f"{sum(g.points for g in grades.values()):.4g} of {most:g} points\n"


def feedback(grades, notes):
    """Return the text for the student."""
    texts = [*(f"{note}\n" for note in notes), *(g.text for g in grades.values())]
    return f"{''.join(texts)}total {total_points(grades)}"


def class_table(results):
    """Return Markdown: the points of each submission, and a table of mistakes per exercise."""
    text = ""
    kinds: dict = {}
    for name, (grades, notes) in results.items():
        text += f"- {name}: {total_points(grades)}" + "".join(f"  - {note}\n" for note in notes)
        for id, g in grades.items():
            kinds.setdefault(id, Counter()).update([g.result.partition(":")[0]])
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
            student = f"'{name}" if name.startswith(tuple("=+-@\t\r")) else name  # no formula
            rows.writerows([student, *row] for g in grades.values() for row in g.rows)
