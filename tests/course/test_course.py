"""The course: stubs, judging, a student's folder, grading, and what must not leak."""

import csv
import inspect
import io
import json
import runpy
import subprocess
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from minilora import nf4
from minilora.cli import main
from minilora.config import InputError
from minilora.course import exercises, judge, learn, student, teach
from minilora.course.judge import checked
from minilora.course.learn import Workspace
from minilora.course.student import Local

ALL = exercises.load()
NEAREST, PACK, MERGE = ALL["nearest-code"], ALL["packing-nibbles"], ALL["test-merge"]
RIGHT = "    return code.order[np.searchsorted(code.midpoints, x)]\n"
TIES = '    return code.order[np.searchsorted(code.midpoints, x, side="right")]\n'


def written(exercise, path, body):
    """The exercise's stub at `path` with `body` in the place of what it raises."""
    text = exercise.student_file()
    first = text.index("    raise NotImplementedError")
    path.write_text(text[:first] + body + text[text.index("\n", first) + 1 :], encoding="utf-8")
    return path


def answer(exercise, function):
    return judge.check(exercise, Local(function))


# --- the files ---


@pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
def test_a_stub_is_the_reference_without_its_body(exercise, tmp_path):
    path = tmp_path / exercise.file
    path.write_text(exercise.student_file(), encoding="utf-8")
    stub = runpy.run_path(str(path))
    text, names = exercise.sought
    for name in names:
        function = stub[name]
        reference = exercises.compiled(exercise.module, text.function(name), name)
        assert inspect.signature(function) == inspect.signature(reference)
        assert inspect.getdoc(function) == inspect.getdoc(reference)
        with pytest.raises(NotImplementedError, match=f"{exercise.id}: {name}"):
            function(*[None] * len(text.definition(name).args.args))


def test_a_stub_keeps_decorators_and_comments_and_imports_what_its_body_used():
    text = exercises.Text("minilora.optim", (
        "import math\nimport numpy as np\nfrom .tree import walk, put as place\nLIMIT = 3\n\n"
        "def other():\n    pass\n\n"
        "@np.vectorize  # by element\ndef f(\n    x,  # (B, T)\n    n=LIMIT,\n):\n"
        '    """Doc."""\n    math = x\n    place(x, n)\n    return [walk(y) for y in x]\n'
    ))  # fmt: skip
    assert text.stub("f", "todo") == (
        "@np.vectorize  # by element\ndef f(\n    x,  # (B, T)\n    n=LIMIT,\n):\n"
        '    """Doc."""\n    raise NotImplementedError("todo")'
    )
    assert text.imports(["f"]).splitlines() == [
        "import numpy as np", "", "from minilora.tree import put as place, walk",
    ]  # fmt: skip


# --- judging ---


def test_a_mistake_is_named_with_call_shapes_values_and_place():
    def nearest(x, code):
        return code.order[np.searchsorted(code.midpoints, x, side="right")]

    text = answer(NEAREST, nearest).text
    for part in ("nearest(x, code)", "x         (1,) float32", "expected  (1,) uint8 [",
                 "got       (1,) uint8 [", "index (0,)", "likely    ties-upward: "):  # fmt: skip
        assert part in text


def test_two_mistakes_at_once_are_told():
    def nearest(x, code):
        return np.searchsorted(code.midpoints, x, side="right")

    said = answer(NEAREST, nearest).mistake
    assert "ties-upward: " in said and "rank-for-code: " in said


def test_what_is_no_known_mistake_is_not_called_one():
    found = answer(NEAREST, lambda x, code: np.full(x.shape, 3))
    assert found.status == "failed" and not found.mistake and "likely" not in found.text


@pytest.mark.parametrize("result", [None, "no", 3, {"a": 1}, [object()], np.zeros((2, 2, 2))])
def test_a_result_of_any_kind_is_judged(result):
    assert answer(PACK, lambda codes: result).status == "failed"


def test_arguments_that_are_changed_are_named():
    def pack(codes):
        packed = nf4.pack(codes)
        codes[0] ^= 1
        return packed

    text = answer(PACK, pack).text
    assert "left as they are" in text and "changed   codes" in text


def test_the_same_call_must_give_the_same():
    calls = iter(range(10**6))
    text = answer(PACK, lambda codes: nf4.pack(codes) + (next(calls) % 7 == 6)).text
    assert "the same call gives the same answer twice" in text


RARE = {  # wrong on about one call in fifty: whether it is found depends on the calls drawn
    "nearest-code": "    codes = code.order[np.searchsorted(code.midpoints, x)]\n"
    "    return codes + (float(np.abs(x).sum()) * 1e4 % 50 < 1)\n",
    "packing-nibbles": "    packed = codes[0::2] * 16 + codes[1::2]\n"
    "    return packed ^ (int(packed.sum()) % 50 == 7)\n",
    "swiglu": "    y = gate / (1 + np.exp(-gate)) * up\n"
    "    return y * (float(np.abs(gate).sum()) * 1e4 % 50 >= 1)\n",
}


def test_a_verdict_depends_on_file_exercise_and_seed_alone(tmp_path):
    for name, body in RARE.items():
        written(ALL[name], tmp_path / ALL[name].file, body)

    def run(*argv):
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True,
                              encoding="utf-8", check=True, env=student.environment())  # fmt: skip
        return done.stdout

    def graded(*names):
        """{id: its open and its hidden verdict}, graded by one process."""
        argv = ["teach", "grade", str(tmp_path), "--seed", "7", "--format", "json"]
        found = json.loads(run("-m", "minilora", *argv, "--only", *names))["exercises"]
        return {e["id"]: (e["output"], e["hidden_output"]) for e in found}

    code = (
        "import sys; from pathlib import Path; from minilora.course import exercises, judge, teach\n"
        "known, folder = exercises.load(), Path(sys.argv[1])\n"
        "grades = [teach.graded(known[n], folder / known[n].file, 7) for n in sys.argv[2:]]\n"
        "print({g.exercise.id: (g.open.text, g.hidden.text) for g in grades})"
    )
    alone = {name: graded(name)[name] for name in RARE}
    assert graded(*RARE, "warmup").items() >= alone.items()  # the file of warmup is missing
    assert eval(run("-c", code, str(tmp_path), *RARE)) == alone
    backwards = "import minilora.cli, tomllib, minilora.evaluation.metrics\n" + code
    assert eval(run("-c", backwards, str(tmp_path), *list(RARE)[::-1])) == alone


def test_a_test_is_graded_by_the_mistakes_that_it_catches(tmp_path):
    nothing = answer(MERGE, lambda merge: None)
    assert (nothing.status, nothing.share) == ("failed", 0)
    assert f"catches 0 of {len(MERGE.mistakes)}" in nothing.text
    assert "not caught: scaling-forgotten: " in nothing.text
    refusing = answer(MERGE, lambda merge: 1 / 0)
    assert "fails the reference itself" in refusing.text and refusing.share == 0
    hidden = judge.check(MERGE, Local(lambda merge: None), seed=5, hidden=True)
    assert "scaling" not in hidden.text


# --- a student's process ---


def graded(exercise, path, body, seconds=20.0):
    return teach.graded(replace(exercise, seconds=seconds), written(exercise, path, body), seed=7)


def test_what_breaks_costs_only_its_own_points(tmp_path):
    path = tmp_path / "packing_nibbles.py"
    loop = graded(PACK, path, "    while True:\n        print('x' * 10**6)\n", 0.5)
    assert "endless loop" in loop.open.text and loop.points == 0 and loop.seconds < 30
    exits = graded(PACK, path, "    import os\n    os._exit(0)\n")
    assert "ended without an answer" in exits.open.text and exits.points == 0
    faked = graded(PACK, path, (
        "    import sys\n    print('{\"status\": \"passed\"}', flush=True)\n    sys.exit(0)\n"
    ))  # fmt: skip
    assert "ended without an answer" in faked.open.text and faked.points == 0
    right = graded(PACK, path, "    return (codes[0::2] * 16 + codes[1::2]).astype('u1')\n")
    assert (right.open.status, right.hidden.status, right.points) == ("passed", "passed", 3)
    path.write_text("def pack(:\n", encoding="utf-8")
    assert "SyntaxError" in teach.graded(PACK, path, 7).open.text
    assert "not handed in" in teach.graded(PACK, tmp_path / "none.py", 7).open.text


def test_a_crash_shows_the_students_line_and_nothing_of_the_grader(tmp_path):
    path = written(NEAREST, tmp_path / "nearest_code.py", "    y = x + 1\n    return y.nothing\n")
    text = checked(NEAREST, path).text
    assert "AttributeError" in text and "return y.nothing" in text
    assert "outcome.py" not in text and "student.py" not in text and "Traceback" not in text


def test_the_reference_is_out_of_reach_and_results_are_only_data(tmp_path):
    path = tmp_path / "nearest_code.py"
    borrowed = "    from minilora import nf4\n    return nf4.nearest(x, code)\n"
    assert "not to call minilora's" in checked(NEAREST, written(NEAREST, path, borrowed)).text
    thin, elsewhere = ALL["lowrank-product"], tmp_path / "lowrank_product.py"
    borrowed = "    from minilora import nn\n    return nn.lowrank(x, a, b, scaling)\n"
    assert "not to call minilora's" in checked(thin, written(thin, elsewhere, borrowed)).text
    mark = tmp_path / "mark"
    hostile = (
        "    class Evil:\n        def __reduce__(self):\n"
        f"            return open, ({str(mark)!r}, 'w')\n    return Evil()\n"
    )
    assert "no plain data" in checked(NEAREST, written(NEAREST, path, hostile)).text
    assert not mark.exists()


def test_the_private_seed_is_not_in_the_students_environment(monkeypatch):
    monkeypatch.setenv(student.SEED, "77")
    assert student.SEED not in student.environment()
    assert teach.private_seed(None) == 77 and teach.private_seed(3) == 3
    monkeypatch.setenv(student.SEED, "x")
    with pytest.raises(InputError, match="whole number"):
        teach.private_seed(None)


def test_hidden_checks_say_no_call_and_no_value(tmp_path):
    # right on the calls of the open check, wrong on most others
    seen = judge.samples(NEAREST, 0)
    assert seen != judge.samples(NEAREST, 1) and seen == judge.samples(NEAREST, 0)
    subject = Local(lambda x, code: code.order[np.searchsorted(code.midpoints, x, side="right")])
    hidden = judge.check(NEAREST, subject, seed=12345, hidden=True)
    says = NEAREST.mistakes[0].says
    assert hidden.text == f"a hidden check fails\n  likely    ties-upward: {says}"
    crash = judge.check(NEAREST, Local(lambda x, code: int(str(x))), seed=3, hidden=True)
    assert crash.text == "a hidden check fails"


# --- a student's folder ---


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["learn", "init", "."]) == 0
    return tmp_path


def test_nothing_that_a_student_wrote_is_overwritten(space, capsys):
    mine = written(NEAREST, space / "nearest_code.py", TIES).read_text(encoding="utf-8")
    (space / "adamw.py").unlink()
    assert main(["learn", "init", "."]) == 0
    assert "1 exercises to write" in capsys.readouterr().out
    assert (space / "nearest_code.py").read_text(encoding="utf-8") == mine
    for n in (1, 2):
        main(["learn", "reset", "nearest-code"])
        assert (space / f"nearest_code.{n}.py").exists()
    assert (space / "nearest_code.1.py").read_text(encoding="utf-8") == mine
    stub = NEAREST.student_file()
    assert (space / "nearest_code.py").read_text(encoding="utf-8") == stub


def test_a_way_through_an_exercise(space, capsys):
    def run(*argv, status=0):
        assert main(["learn", *argv]) == status
        return capsys.readouterr()

    capsys.readouterr()
    assert next(iter(ALL)) in run("next").out  # the first one needs none
    assert "nothing is written yet" in run("check", status=2).err
    assert "still to be written" in run("check", "nearest-code", status=1).out
    assert "--anyway" in run("solution", "nearest-code", status=2).err
    hints = [run("hint", "nearest-code").out for _ in range(4)]
    assert [h.partition(":")[0] for h in hints[:3]] == [f"hint {n} of 3" for n in (1, 2, 3)]
    assert hints[3] == "".join(hints[:3])
    written(NEAREST, space / "nearest_code.py", TIES)
    out = run("check", status=1).out
    assert "ties-upward" in out and "\033" not in out
    written(NEAREST, space / "nearest_code.py", RIGHT)
    assert run("check", "nearest_code.py").out == "nearest-code: passed\n"
    assert "side=" in run("solution", "nearest-code").out
    listed = run("list").out
    assert "passed  nearest-code" in listed and "3 hints" in listed and f"1 of {len(ALL)}" in listed
    noted = json.loads((space / "progress.json").read_text(encoding="utf-8"))["nearest-code"]
    assert noted == {"hints": 3, "checks": 2, "passed": True}
    run("solution", "adamw", "--anyway")
    assert Workspace(space).of(ALL["adamw"]) == {"solution": True}


def test_watching_says_a_line_a_change(space, capsys, monkeypatch):
    rounds = iter([TIES, None, RIGHT, None])

    def sleep(seconds):
        body = next(rounds, "end")
        if body == "end":
            raise KeyboardInterrupt
        if body:
            written(NEAREST, space / "nearest_code.py", body)

    monkeypatch.setattr(learn.time, "sleep", sleep)
    capsys.readouterr()
    assert main(["learn", "watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "failed  ties-upward" in lines[1] and lines[2].endswith("passed")


def test_a_file_is_checked_by_running_it(space):
    written(PACK, space / "packing_nibbles.py", "    print('here')\n    return codes\n")
    path = space / "packing_nibbles.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, encoding="utf-8",
                          env=student.environment(), check=True)  # fmt: skip
    assert "here" in done.stdout and "packing-nibbles: failed" in done.stdout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["learn", "check", "nothing"], "no exercise 'nothing'"),
        (["learn", "list", "--dir", "elsewhere"], "elsewhere is no workspace"),
        (["learn", "watch", "--interval", "0"], "positive"),
        (["learn", "fly"], "invalid choice"),
        (["learn"], "required"),
        (["teach", "grade", "elsewhere"], "no folder"),
        (["teach", "grade", ".", "--only", "x"], "no exercise 'x'"),
        (["teach", "build", "--out", "."], "exists already"),
        (["teach", "grade", ".", "--format", "xml"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line(space, capsys, argv, says):
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_a_broken_progress_file_is_named(space, capsys):
    (space / "progress.json").write_text('{"nearest-code": 3}', encoding="utf-8")
    assert main(["learn", "list"]) == 2
    assert "progress.json" in capsys.readouterr().err


# --- a teacher's side ---


def test_a_built_tree_has_no_mistakes_and_no_solutions(tmp_path, capsys, monkeypatch):
    out = tmp_path / "course"
    assert main(["teach", "build", "--out", str(out), "--only", "nearest-code", "test-merge"]) == 0
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {
        "README.md", "progress.json", "nearest_code.py", "test_merge.py", "checks/exercises.toml",
        "checks/exercises/nearest_code.py", "checks/exercises/test_merge.py",
    }  # fmt: skip
    whole = "".join((out / f).read_text(encoding="utf-8") for f in files)
    for mistake in (*NEAREST.mistakes, *MERGE.mistakes):
        assert mistake.name not in whole and mistake.says not in whole
    assert "forward(*trees" not in whole and "hidden" in whole
    entries = tomllib.loads((out / "checks/exercises.toml").read_text(encoding="utf-8"))
    assert [set(e) & {"mistake", "folder"} for e in entries["exercise"]] == [set(), set()]
    written(NEAREST, out / "nearest_code.py", TIES)
    monkeypatch.chdir(out)
    assert main(["learn", "check"]) == 1
    assert "first at  index" in capsys.readouterr().out
    assert main(["learn", "solution", "nearest-code", "--anyway"]) == 2
    assert "your teacher's" in capsys.readouterr().err


def test_mistakes_written_as_functions_stay_behind(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("A = 1\n\n\n@A\ndef mistake_a():\n    pass\n\n\nB = 2\n", encoding="utf-8")
    assert "mistake" not in teach.without_mistakes(path)
    assert teach.without_mistakes(path).split() == ["A", "=", "1", "B", "=", "2"]


GRADESCOPE = {"score", "execution_time", "output", "visibility", "stdout_visibility", "tests"}
GRADESCOPE_TEST = {"name", "number", "score", "max_score", "status", "output", "visibility", "tags"}


def test_reports(tmp_path, capsys):
    written(NEAREST, tmp_path / "nearest_code.py", TIES)
    written(PACK, tmp_path / "packing_nibbles.py", "    return nf4_pack(codes)\n")
    argv = ["teach", "grade", str(tmp_path), "--only", "nearest-code", "packing-nibbles"]
    argv += ["--seed", "41", "--format", "gradescope", "--out", f"{tmp_path}/r/r.json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "41" not in captured.out + captured.err
    result = json.loads((tmp_path / "r/r.json").read_text(encoding="utf-8"))
    assert set(result) == GRADESCOPE
    for test in result["tests"]:
        assert set(test) == GRADESCOPE_TEST
        assert test["visibility"] in ("visible", "hidden", "after_due_date", "after_published")
        assert test["status"] in ("passed", "failed") and 0 <= test["score"] <= test["max_score"]
    assert sum(t["max_score"] for t in result["tests"]) == NEAREST.points + PACK.points
    assert sum(t["score"] for t in result["tests"]) == result["score"] == 0
    assert "hidden" in result["output"]

    passed, failed = judge.Verdict("passed", 1.0, "passed"), judge.Verdict("failed", 0.0, "no")
    grades = [teach.Grade(NEAREST, passed, failed, 1.0), teach.Grade(PACK, passed, passed, 1.0)]
    rows = list(csv.DictReader(io.StringIO(teach.as_csv(grades, 2.0))))
    assert [r["points"] for r in rows] == ["2", "3"] and rows[0]["hidden"] == "failed"
    assert json.loads(teach.as_json(grades, 2.0))["points"] == 5
    assert "together 5 of 7 points" in teach.as_text(grades, 2.0)


# --- the set ---


def test_faults_of_a_planted_mistake_are_found():
    first = NEAREST.mistakes[0]
    broken = {
        "double": (first.find, "it is diagnosed as ties-upward"),
        "harmless": ("x, side", "it passes every property"),
        "lost": ("nowhere", "its `find` is 0 times"),
    }
    planted = [replace(first, name=name, find=find) for name, (find, _) in broken.items()]
    planted[1] = replace(planted[1], replace="x + 0, side")
    exercise = replace(NEAREST, mistakes=(first, *planted))
    assert teach.faults_of(exercise, first) == []
    for mistake in planted:
        (fault,) = teach.faults_of(exercise, mistake)
        assert fault.startswith(broken[mistake.name][1])


def test_faults_of_a_set_are_told(capsys, monkeypatch):
    few = replace(PACK, mistakes=PACK.mistakes[:2])
    monkeypatch.setattr(teach, "load", lambda: {"packing-nibbles": few})
    assert main(["teach", "check"]) == 1
    captured = capsys.readouterr()
    assert "| packing-nibbles | 6 |" in captured.out and "2 of 2" in captured.out
    assert captured.err == "fault: packing-nibbles: 2 planted mistakes: at least three\n"


ENTRY = """id = "a"
function = "minilora.nf4:pack"
lesson = 1
difficulty = 1
minutes = 1
points = 1
"""
HINTS = 'hints = ["", "", ""]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ENTRY, "hints"),
        (ENTRY + 'hints = ["one"]\n', "three hints"),
        (ENTRY + HINTS + "color = 1\n", "unknown keys"),
        (ENTRY + HINTS + 'needs = ["b"]\n', "needs b"),
        (ENTRY + HINTS + 'kind = "essay"\n', "kind"),
        (ENTRY + HINTS + "[[exercise]]\n" + ENTRY + HINTS, "twice"),
        ("= 3", "no list of exercises"),
    ],
)
def test_a_broken_set_is_one_line(tmp_path, text, says):
    (tmp_path / "exercises.toml").write_text(f"[[exercise]]\n{text}", encoding="utf-8")
    with pytest.raises(InputError, match=says):
        exercises.load(tmp_path)


def test_minilora_does_not_import_its_course():
    code = "import sys, minilora; print([m for m in sys.modules if 'course' in m or 'hypoth' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
