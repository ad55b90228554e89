"""Write the reports of `minilora teach grade`: a table of the class, CSV, and feedback.

`results` is {name of the submission: its Grades}.
"""

import csv
import io
from collections import Counter
from typing import NamedTuple

from ..formats.files import replace_text
from .judge import Verdict


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
        if self.open.status == "todo":
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
            rows.writerow("'" * cell.startswith(tuple("=+-@\t\r")) + cell for cell in row)
    return file.getvalue()


def class_table(results):
    """Return Markdown: the points of each submission, and a table of mistakes per exercise."""
    text = "".join(f"- {name}: {total_points(grades)}" for name, grades in results.items())
    text += "\n| exercise | students |\n| --- | --- |\n"
    for grades in zip(*results.values()):
        kinds = Counter(g.kind for g in grades).most_common()
        text += f"| {grades[0].id} | {', '.join(f'{kind} {n}' for kind, n in kinds)} |\n"
    return text


def write_all(folder, results):
    """Write the table of the class, the CSV and one feedback file per submission."""
    replace_text(folder / "class.md", class_table(results))
    replace_text(folder / "grades.csv", as_csv(results))
    (folder / "feedback").mkdir()
    for name, grades in results.items():
        replace_text(folder / "feedback" / f"{name}.txt", feedback(grades))
