"""The path of the lessons, and the studies that continue it: read from the lessons' files."""

import re
import textwrap

from lessons.book.drawings.elements import *

LESSONS = ROOT / "lessons"


def lessons():
    """Return the titles of the path's lessons in their order, without the numbers."""
    files = sorted(LESSONS.glob("[0-9]*.py"))
    return [re.search(r"^# # \d+\. (.+)$", file.read_text("utf-8"), re.M)[1] for file in files]


def branches():
    """Return {number of a lesson: the subjects of the studies that continue it}."""
    readme = (LESSONS / "README.md").read_text("utf-8")
    # a subject's heading, and the folder of the first study below it
    subjects = re.findall(r"^### (.+)\n[^#]*?studies/(\w+)/", readme, re.M)
    found = {}
    for subject, folder in subjects:
        for file in sorted((LESSONS / "studies" / folder).glob("*.py")):
            number = re.search(r"\*\*Continues:\*\* \[lesson (\d+)\]", file.read_text("utf-8"))
            if number and subject not in found.setdefault(int(number[1]), []):
                found[int(number[1])].append(subject)
    return found


@drawing(
    4.8,
    "The path of eleven lessons as a line in two rows, each lesson with its number and title. The "
    "first row is the hour. Below a lesson hang the subjects of the studies that continue it.",
    width=7.6,
)
def path(ax):
    below = branches()
    disc = {"boxstyle": "circle", "fc": BLUE, "ec": BLUE}
    rows = (lessons()[:5], lessons()[5:])
    words = "below a lesson: subjects of\nthe studies that continue it"
    text(ax, 1.5, 3.5, words, 8.5, GREY, ha="left")
    for row, titles in enumerate(rows):
        y = 40 - 20 * row
        ax.plot([1.5, 10.5 * len(titles) - 1], [y, y], color=BLUE, lw=2.5)
        for column, name in enumerate(titles):
            x, number = 6.5 + 10.5 * column, 5 * row + column
            text(ax, x, y + 2.2, textwrap.fill(name, 13), 8.5, va="bottom")
            for i, subject in enumerate(below.get(number, [])):
                top = y - 3.6 - 2.9 * i
                ax.plot([x, x], [y, top], color=GREY, lw=1, zorder=0)
                name = subject.removeprefix("Claims ").removesuffix(" and preference")
                box(ax, x - 4.9, top - 2.4, 9.8, 2.4, name, size=8)
            text(ax, x, y, number, 9, "white", bbox=disc)
