"""A graded submission as text, JSON, CSV, or the results.json of Gradescope's autograder."""

import csv
import io
import json


def totals(grades):
    return sum(g.points for g in grades), sum(g.exercise.points for g in grades)


def as_text(grades, seconds):
    lines = []
    for grade in grades:
        lines.append(f"{grade.exercise.id}: {grade.points:g} of {grade.exercise.points:g}")
        lines += [f"  {verdict.text}" for _, _, _, verdict in unequal(grade)]
    score, most = totals(grades)
    return "\n".join([*lines, f"together {score:g} of {most:g} points in {seconds:.0f} s"]) + "\n"


def unequal(grade):
    """The parts of a grade that say something: neither passed nor the same as the part before."""
    first, second = grade.parts
    shown = [first, second] if second[3].text != first[3].text else [first]
    return [part for part in shown if part[3].text != "passed"]


def as_json(grades, seconds):
    score, most = totals(grades)
    exercises = [
        {
            "id": g.exercise.id,
            "lesson": g.exercise.lesson,
            "points": g.points,
            "max_points": g.exercise.points,
            "status": g.open.status,
            "hidden_status": g.hidden.status,
            "mistake": g.open.mistake or g.hidden.mistake,
            "output": g.open.text,
            "hidden_output": g.hidden.text,
            "seconds": round(g.seconds, 2),
        }
        for g in grades
    ]
    whole = {"points": score, "max_points": most, "seconds": round(seconds, 2)}
    return json.dumps({**whole, "exercises": exercises}, indent=2, ensure_ascii=False) + "\n"


def as_csv(grades, seconds):
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["exercise", "lesson", "points", "max_points", "status", "hidden", "mistake"])
    for g in grades:
        mistake = g.open.mistake or g.hidden.mistake
        row = [g.exercise.id, g.exercise.lesson, f"{g.points:g}", f"{g.exercise.points:g}"]
        writer.writerow([*row, g.open.status, g.hidden.status, mistake])
    return file.getvalue()


def as_gradescope(grades, seconds):
    """The fields that Gradescope documents; a test for the open and one for the hidden checks."""
    tests = []
    for n, grade in enumerate(grades, 1):
        for part, (name, score, most, verdict) in enumerate(grade.parts, 1):
            tests.append({
                "name": name,
                "number": f"{n}.{part}",
                "score": score,
                "max_score": most,
                "status": "passed" if verdict.status == "passed" else "failed",
                "output": verdict.text,
                "visibility": "visible",
                "tags": [f"lesson {grade.exercise.lesson}", "hidden" if part == 2 else "open"],
            })  # fmt: skip
    result = {
        "score": totals(grades)[0],
        "execution_time": round(seconds),
        "output": "Each exercise has open checks and hidden ones: the same rules, on other calls.",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"text": as_text, "json": as_json, "csv": as_csv, "gradescope": as_gradescope}
