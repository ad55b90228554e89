"""What `minilora teach grade` writes: text, CSV, Gradescope's JSON, and a report on a class.

Results are {name of the submission: its Grades}.
"""

import csv
import io
import json
from collections import Counter

from .learn import write


def total(grades):
    """Return (points, most points) of a submission."""
    return sum(g.points for g in grades), sum(g.exercise.points for g in grades)


def as_text(results):
    """Return what a student reads; of several submissions, the class's table."""
    if len(results) > 1:
        return class_table(results)
    return "".join(map(feedback, results.values()))


def feedback(grades):
    lines = []
    for g in grades:
        lines.append(f"{g.exercise.id}: {g.points:.3g} of {g.exercise.points:g}")
        texts = dict.fromkeys([g.open.text, g.hidden.text])  # one line where they are the same
        lines += [f"  {text}" for text in texts if text != "passed"]
    points, most = total(grades)
    return "\n".join([*lines, f"together {points:.4g} of {most:g} points"]) + "\n"


def as_csv(results):
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["student", "exercise", "lesson", "points", "max_points", "status", "hidden", "mistake"]
    writer.writerow(head)
    for name, grades in results.items():
        for g in grades:
            row = [name, g.exercise.id, g.exercise.lesson, f"{g.points:.4g}"]
            row += [f"{g.exercise.points:g}", g.open.status, g.hidden.status, g.mistake]
            writer.writerow([cell(value) for value in row])
    return file.getvalue()


def cell(value):
    """Return a value that no spreadsheet takes for a formula."""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_gradescope(results):
    """Return the fields that Gradescope documents; one test per kind of check, open and hidden."""
    tests = []
    (grades,) = results.values()
    for n, g in enumerate(grades, 1):
        for part, kind, verdict in ((1, "open", g.open), (2, "hidden", g.hidden)):
            half = g.exercise.points / 2
            tests.append({
                "name": f"{g.exercise.id}, {kind}",
                "number": f"{n}.{part}",
                "score": half * verdict.share,
                "max_score": half,
                "status": "passed" if verdict.status == "passed" else "failed",
                "output": verdict.text,
                "visibility": "visible",
                "tags": [f"lesson {g.exercise.lesson}", kind],
            })  # fmt: skip
    result = {
        "score": total(grades)[0],
        "execution_time": round(sum(g.seconds for g in grades)),
        "output": "Each exercise has open checks and hidden ones: the same rules, on other calls.",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def outcomes(results):
    """Return {exercise id: Counter of `passed`, `not written`, a mistake's name, `other`}."""
    counts: dict = {}
    for grades in results.values():
        for g in grades:
            said = g.mistake.partition(":")[0] or "other"
            if g.open.status == g.hidden.status == "passed":
                said = "passed"
            elif g.open.status == "todo" or "not handed in" in g.open.text:
                said = "not written"
            counts.setdefault(g.exercise.id, Counter())[said] += 1
    return counts


def class_table(results):
    """Return two tables in Markdown: the points of each submission, and exercise by mistake."""
    lines = ["| student | points | of |", "| --- | --- | --- |"]
    for name, grades in results.items():
        points, most = total(grades)
        lines.append(f"| {name.replace('|', '/')} | {points:.4g} | {most:g} |")
    lines += ["", "| exercise | passed | not written | mistakes |", "| --- | --- | --- | --- |"]
    for name, counts in outcomes(results).items():
        mistakes = [f"{m} {n}" for m, n in counts.most_common() if m not in WITHOUT]
        cells = name, counts["passed"], counts["not written"], ", ".join(mistakes)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


WITHOUT = {"passed": "tab:green", "not written": "lightgray", "other": "tab:red"}


def picture(results, path):
    """Draw a bar per exercise: how many passed, and how many made which mistake."""
    from matplotlib.figure import Figure

    counts = outcomes(results)
    figure = Figure(figsize=(10, 2 + 0.3 * len(counts)), layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(counts.values()):
        left = 0
        shades = iter(("tab:orange", "gold", "tab:brown", "tab:purple") * len(found))
        order = {k: found[k] for k in ("passed", *found, "other", "not written") if found[k]}
        for said, n in order.items():
            color = WITHOUT.get(said) or next(shades)
            axes.barh(row, n, left=left, color=color, edgecolor="white")
            if said not in WITHOUT:
                axes.text(left + n / 2, row, said, ha="center", va="center", fontsize=6)
            left += n
    for said, color in WITHOUT.items():
        axes.barh(0, 0, color=color, label=said)
    axes.set_yticks(range(len(counts)), counts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("students (a recognized mistake is named in its part of the bar)")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def write_all(folder, results):
    """Write the table, the CSV and the picture of a class, and a feedback file per student."""
    write(folder / "grades.csv", as_csv(results))
    write(folder / "class.md", class_table(results))
    picture(results, folder / "class.png")
    (folder / "feedback").mkdir()
    for name, grades in results.items():
        write(folder / "feedback" / f"{name}.txt", feedback(grades))
