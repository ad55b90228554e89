"""The pages for teachers: each exercise and mistake that they name exists, and points add up."""

import re
from pathlib import Path

from minilora.course.students.exercises import load

GUIDE = Path(__file__).parents[2] / "lessons" / "guide"
MATERIAL, EXAM = (
    (GUIDE / f"{name}.md").read_text("utf-8") for name in ("teachers-material", "exam")
)


def test_misconceptions_are_shown_by_exercises():
    rows = MATERIAL.partition("## Misconceptions")[2].partition("## ")[0]
    shown = [row.split("|")[3] for row in rows.splitlines() if row.count("|") == 4][2:]
    assert len(shown) > 10
    for cell in shown:
        parts = re.findall(r"`([a-z0-9-]+)`((?:[:,]? \*[a-z0-9-]+\*)*)", cell)
        assert parts, cell
        for name, mistakes in parts:
            known = {mistake.name for mistake in load()[name].mistakes}
            assert set(re.findall(r"\*([a-z0-9-]+)\*", mistakes)) <= known, cell


def test_the_points_of_exam_and_project_add_up():
    questions = EXAM.partition("## Questions")[2].partition("## Answers")[0]
    points = [int(n) for n in re.findall(r"^\d+\. \*\*\((\d+) points\)", questions, re.MULTILINE)]
    assert len(points) == 10 and f"{sum(points)} points" in EXAM.partition("## ")[0]
    project = [int(n) for n in re.findall(r"^\| (\d+) \| .*[a-z]", MATERIAL, re.MULTILINE)]
    assert sum(project[-6:]) == 100
