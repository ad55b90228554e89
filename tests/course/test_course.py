"""The course: stubs, judging, workspaces, grading, and what students must not see."""

import ast
import builtins
import csv
import inspect
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from solutions import RIGHT, WRONG

from minilora import nf4
from minilora.cli import main
from minilora.config import InputError
from minilora.course import commands, exercises, judge, learn, report, teach
from minilora.course.student import Local

ALL = exercises.load()
PROVE = runpy.run_path(str(exercises.LESSONS / "exercises" / "prove.py"))
NEAREST, PACK, MERGE = ALL["nearest-code"], ALL["packing-nibbles"], ALL["test-merge"]
RIGHT_BODY = "    return codebook.order[np.searchsorted(codebook.midpoints, x)]\n"
TIES = '    return codebook.order[np.searchsorted(codebook.midpoints, x, side="right")]\n'


def written(exercise, path, body):
    """Write the stub to `path` with `body` as the body of its last function; return `path`."""
    text = exercise.student_file()
    first = text.rindex("    raise NotImplementedError")
    path.write_text(text[:first] + body + text[text.index("\n", first) + 1 :], encoding="utf-8")
    return path


def checked(exercise, path):
    return judge.verdicts(exercise, path.read_bytes())[0]


def answer(exercise, function):
    return judge.check(exercise, Local(function))


# --- the files ---


@pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
def test_a_stub_is_the_reference_without_its_body(exercise, tmp_path):
    path = tmp_path / exercise.file
    path.write_text(exercise.student_file(), encoding="utf-8")
    stub = runpy.run_path(str(path))
    text = exercise.source if exercise.is_test else exercise.text
    for name in exercise.sought:
        function = stub[name]
        written = exercises.functions(text, [name])
        source = "\n".join([*exercise.imports, written])
        reference = exercises.compiled(exercise.module, source, name)
        assert inspect.signature(function) == inspect.signature(reference)
        assert inspect.getdoc(function) == inspect.getdoc(reference)
        with pytest.raises(NotImplementedError, match=f"{exercise.id}: {name}"):
            function(*[None] * len(ast.parse(written).body[0].args.args))


def test_a_stub_keeps_decorators_and_comments():
    text = (
        "import math\nimport numpy as np\nfrom .tree import named_leaves\nLIMIT = 3\n\n"
        "def other():\n    pass\n\n"
        "@np.vectorize  # by element\ndef f(\n    x,  # (B, T)\n    n=LIMIT,\n):\n"
        '    """Doc."""\n    math = x\n    print(x, n)\n    return [named_leaves(y) for y in x]\n'
    )
    assert exercises.functions(text, ["f"], "todo") == (
        "@np.vectorize  # by element\ndef f(\n    x,  # (B, T)\n    n=LIMIT,\n):\n"
        '    """Doc."""\n    raise NotImplementedError("todo: f is not written yet")'
    )


def test_a_students_file_imports_all_that_its_functions_name():
    for e in ALL.values():
        names = {
            "__name__": "stub",
            "__file__": e.file,
        }
        exec(compile(e.student_file(), e.file, "exec"), names)
        tree = ast.parse(e.student_file(solved=True))
        nodes = [node for part in tree.body[:-1] for node in ast.walk(part)]  # the last one checks
        read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
        assert read <= bound | names.keys() | vars(builtins).keys(), e.id


# --- judging ---


def test_a_mistake_is_named_with_call_shapes_values_and_place():
    def nearest(x, codebook):
        return codebook.order[np.searchsorted(codebook.midpoints, x, side="right")]

    text = answer(NEAREST, nearest).text
    for part in ("nearest(x, codebook)", "x         (", ") float32", "expected  (",
                 "got       (", "index (", "likely    ties-upward: "):  # fmt: skip
        assert part in text


def test_what_is_no_known_mistake_is_not_called_one():
    def two_mistakes(x, codebook):
        return np.searchsorted(codebook.midpoints, x, side="right")

    for function in (two_mistakes, lambda x, codebook: np.full(x.shape, 3)):
        found = answer(NEAREST, function)
        assert found.status == "failed" and not found.mistake and "likely" not in found.text


@pytest.mark.parametrize("result", [None, "no", 3, {"a": 1}, [object()], np.zeros((2, 2, 2))])
def test_a_result_of_any_kind_is_judged(result):
    assert answer(PACK, lambda codes: result).status == "failed"


def test_arguments_that_are_changed_are_named():
    def pack_4bit(codes):
        packed = nf4.pack_4bit(codes)
        codes[0] ^= 1
        return packed

    text = answer(PACK, pack_4bit).text
    assert "left as they are" in text and "changed   codes" in text


RARE = {  # wrong on about one call in fifty: whether it is found depends on the calls drawn
    "nearest-code": "    codes = codebook.order[np.searchsorted(codebook.midpoints, x)]\n"
    "    return codes + (float(np.abs(x).sum()) * 1e4 % 50 < 1)\n",
    "packing-nibbles": "    packed = codes[0::2] * 16 + codes[1::2]\n"
    "    return packed ^ (int(packed.sum()) % 50 == 7)\n",
}

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(find_spec("minilora").origin).parents[1])}


def test_a_verdict_depends_on_file_exercise_and_seed_alone(tmp_path):
    (tmp_path / "ann").mkdir()
    for name, body in RARE.items():
        written(ALL[name], tmp_path / "ann" / ALL[name].file, body)

    def run(*argv):
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True,
                              encoding="utf-8", check=True, env=ENVIRONMENT)  # fmt: skip
        return done.stdout

    def graded(*names):
        """{exercise: (score, what is said)}, graded by one process."""
        out = tmp_path / "-".join(names)
        run("-m", "minilora", "teach", "grade", str(tmp_path / "ann"), "--seed", "7", "--out",
            str(out), "--only", *names)  # fmt: skip
        found = json.loads((out / "results.json").read_text(encoding="utf-8"))["tests"]
        return {test["name"]: (test["score"], test["output"]) for test in found}

    code = (
        "import sys; from pathlib import Path\n"
        "from minilora.course import exercises, judge\n"
        "known, folder = exercises.load(), Path(sys.argv[1])\n"
        "for e in map(known.get, sys.argv[2:]):\n"
        "    print(repr((e.id, judge.verdicts(e, (folder / e.file).read_bytes())[0].text)))"
    )
    together = graded(*RARE, "warmup")  # the file of warmup is missing
    alone = [graded(name) for name in RARE]
    assert {
        name: said for tests in alone for name, said in tests.items()
    }.items() <= together.items()
    forward = sorted(run("-c", code, str(tmp_path / "ann"), *RARE).splitlines())
    more = "import minilora.cli, tomllib, minilora.evaluation.metrics\n" + code
    assert sorted(run("-c", more, str(tmp_path / "ann"), *list(RARE)[::-1]).splitlines()) == forward
    for line in forward:
        name, said = ast.literal_eval(line)
        assert said == "passed" or together[name][1].startswith(said)


def test_a_test_is_graded_by_the_mistakes_that_it_catches(tmp_path):
    nothing = answer(MERGE, lambda merge: None)
    assert (nothing.status, nothing.share) == ("failed", 0)
    assert f"catches 0 of {len(MERGE.mistakes) - 1}" in nothing.text  # one is hidden
    assert "not caught: scaling-forgotten: " in nothing.text
    refusing = answer(MERGE, lambda merge: 1 / 0)
    assert "raises on the reference" in refusing.text and refusing.share == 0
    hidden = judge.check(MERGE, Local(lambda merge: None), seed=5, hidden=True)
    assert "scaling" not in hidden.text


# --- a student's process ---


def graded(exercise, path, body, seconds=9.0):
    source = written(exercise, path, body).read_bytes()
    return judge.verdicts(replace(exercise, seconds=seconds), source, seed=7)


def test_what_breaks_costs_only_its_own_points_and_little_time(tmp_path):
    path = tmp_path / "packing_nibbles.py"
    loop, hidden = graded(PACK, path, "    while True:\n        pass\n", 0.5)
    assert "endless loop" in loop.text and loop.share == hidden.share == 0
    exits, _ = graded(PACK, path, "    import os\n    os._exit(0)\n")
    assert "the process of your code ended" in exits.text and exits.share == 0
    faked, _ = graded(PACK, path, (
        "    import sys\n    print('{\"status\": \"passed\"}', flush=True)\n    sys.exit(0)\n"
    ))  # fmt: skip
    assert "the process of your code ended" in faked.text and faked.share == 0
    right = graded(PACK, path, "    return (codes[0::2] * 16 + codes[1::2]).astype('u1')\n")
    assert [verdict.status for verdict in right] == ["passed", "passed"]
    assert "SyntaxError" in judge.verdicts(PACK, b"def pack_4bit(:\n")[0].text
    assert "not handed in" in judge.verdicts(PACK, None)[0].text


def test_the_time_of_the_judge_does_not_count(tmp_path, monkeypatch):
    diagnose = judge.diagnose

    def slowly(*arguments):
        time.sleep(1.2)
        return diagnose(*arguments)

    monkeypatch.setattr(judge, "diagnose", slowly)
    opened, hidden = graded(NEAREST, tmp_path / NEAREST.file, TIES, seconds=1.0)
    assert "ties-upward" in opened.text and "ties-upward" in hidden.text


ODD = {
    "    return [0] * (codes.size // 2)\n": "a list, not an array",
    "    codes + 1\n": "it returned None",
    "    return np.zeros(5 * 10**6)\n": "the result is huge",
    "    while True:\n        print('x' * 10**6)\n": "prints or writes more than it may",
    "    print('here I am')\n    return codes\n": "it printed 'here I am'",
    "    return 'bytes'\n": "got       'bytes'",
    "    return codes[::2] * 16 + codes[1::2] + 1.5\n": "float64",
    "    x = []\n    x.append(x)\n    return x\n": "maximum recursion depth",
    "    raise SystemExit\n": "the process of your code ended",
    "    return np.zeros(2**32)\n": "MemoryError",
}


@pytest.mark.parametrize("body", ODD, ids=list(ODD.values()))
def test_each_odd_result_has_its_own_sentence(body, tmp_path):
    assert ODD[body] in checked(PACK, written(PACK, tmp_path / PACK.file, body)).text


def test_a_function_of_another_name_is_named(tmp_path):
    text = PACK.student_file().replace("def pack_4bit(", "def pakc(")
    (tmp_path / PACK.file).write_text(text, encoding="utf-8")
    text = checked(PACK, tmp_path / PACK.file).text
    assert "it has no function pack_4bit; it has ['pakc']" in text


HOSTILE = """
import os, signal, subprocess, sys, threading
from pathlib import Path

def pack_4bit(codes):
    found = {"seed": [v for v in os.environ.values() if v == "77"], "names": sorted(os.environ)}
    Path("mine").write_text("x")
    if os.fork() == 0:  # holds the pipe open
        signal.pause()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    import minilora.course.judge as judge, minilora.nf4 as nf4
    judge.problem = lambda *_: None
    nf4.unpack_4bit = lambda packed: packed
    raise ValueError(f"{os.getcwd()} {found}")
"""


def test_a_student_sees_no_seed_and_changes_no_check(tmp_path, monkeypatch):
    monkeypatch.setenv(commands.SEED, "77")
    (tmp_path / PACK.file).write_text(HOSTILE, encoding="utf-8")
    began = time.perf_counter()
    verdict = checked(PACK, tmp_path / PACK.file)
    assert verdict.status == "failed" and "'seed': []" in verdict.text
    assert commands.SEED not in verdict.text and os.getcwd() not in verdict.text
    assert answer(PACK, nf4.pack_4bit).status == "passed"
    # The student's child sleeps for 60 s, and nobody waits for it.
    assert time.perf_counter() - began < 60
    assert not (tmp_path / "mine").exists() and os.environ[commands.SEED] == "77"


def test_a_crash_shows_the_students_line_and_nothing_of_the_grader(tmp_path):
    path = written(NEAREST, tmp_path / "nearest_code.py", "    y = x + 1\n    return y.nothing\n")
    text = checked(NEAREST, path).text
    assert "AttributeError" in text and "return y.nothing" in text
    assert "outcome.py" not in text and "student.py" not in text and "Traceback" not in text


def test_each_exercise_names_a_lesson_that_names_it():
    for e in ALL.values():
        paragraph = e.lesson_file.read_text(encoding="utf-8").partition("**Exercises.**")[2]
        assert re.search(rf"(?<![\w-]){e.id}(?![\w-])", paragraph), f"{e.id}: {e.lesson_file}"


def test_the_reference_is_out_of_reach_and_results_are_only_data(tmp_path):
    path = tmp_path / "nearest_code.py"
    borrowed = "    from minilora import nf4\n    return nf4.nearest(x, codebook)\n"
    assert "cannot call minilora's" in checked(NEAREST, written(NEAREST, path, borrowed)).text
    thin, elsewhere = ALL["lowrank-product"], tmp_path / "lowrank_product.py"
    borrowed = "    from minilora import layers\n    return layers.linear(x, node)\n"
    assert "cannot call minilora's" in checked(thin, written(thin, elsewhere, borrowed)).text
    mark = tmp_path / "mark"
    hostile = (
        "    class Evil:\n        def __reduce__(self):\n"
        f"            return open, ({str(mark)!r}, 'w')\n    return Evil()\n"
    )
    assert "not plain data" in checked(NEAREST, written(NEAREST, path, hostile)).text
    assert not mark.exists()


def test_the_private_seed_comes_from_the_flag_the_environment_or_chance(monkeypatch, capsys):
    seeds = []
    monkeypatch.setattr(teach, "do_grade", lambda args: seeds.append(args.seed))
    monkeypatch.setenv(commands.SEED, "77")
    for flags in ([], ["--seed", "3"]):
        assert main(["teach", "grade", ".", *flags]) == 0
    assert seeds == [77, 3]
    monkeypatch.setenv(commands.SEED, "x")
    assert main(["teach", "grade", "."]) == 2
    assert "--seed" in capsys.readouterr().err
    assert str(teach.private_seed(None)) in capsys.readouterr().err


def test_hidden_checks_say_no_call_and_no_value():
    subject = Local(lambda x, book: book.order[np.searchsorted(book.midpoints, x, side="right")])
    hidden = judge.check(NEAREST, subject, seed=12345, hidden=True)
    says = NEAREST.mistakes[0].says
    assert hidden.text == f"a hidden check fails\n  likely    ties-upward: {says}"
    crash = judge.check(NEAREST, Local(lambda x, codebook: int(str(x))), seed=3, hidden=True)
    assert crash.text == "a hidden check fails"


def test_hidden_calls_differ_in_size_and_storage():
    rms = ALL["rms-norm"]
    opened, hidden = (
        rms.draw(judge.REFERENCE, judge.CALLS, hidden=which) for which in (False, True)
    )
    assert max(c["width"] for c in opened) < min(c["width"] for c in hidden)
    assert {c["stored"] for c in hidden} == set(exercises.LAYOUTS)
    for case in hidden:
        x, weight, _ = rms.arguments(case)
        assert x.dtype == (np.float32 if case["stored"] == "float32" else np.float64)
        assert x.flags.c_contiguous == (case["stored"] != "Fortran order") and weight.ndim == 1
    only_contiguous = Local(lambda codes: nf4.pack_4bit(codes) if codes.size < 50 else codes)
    assert judge.check(PACK, only_contiguous).status == "passed"
    assert judge.check(PACK, only_contiguous, seed=1, hidden=True).status == "failed"


def test_each_rule_that_holds_earns_a_part():
    def packed(codes):
        return nf4.pack_4bit(codes)[::-1].copy()

    verdict = answer(PACK, packed)  # four bits per code, but not the codes
    assert verdict.status == "failed" and verdict.share == 0.25


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=[name for name, _ in RIGHT])
def test_an_independent_right_answer_is_accepted(name, function):
    e = ALL[name]
    for hidden in (False, True) if e.kind == "function" else (True,):
        assert judge.check(e, Local(function), seed=5, hidden=hidden).status == "passed"


def test_every_exercise_has_an_independent_answer():
    assert sorted(name for name, _ in RIGHT) == sorted(ALL)


@pytest.mark.parametrize(("name", "function"), WRONG)
def test_a_mistake_that_nobody_planted_is_found(name, function):
    assert answer(ALL[name], function).status == "failed"


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
    assert "1 new exercises" in capsys.readouterr().out
    assert (space / "nearest_code.py").read_text(encoding="utf-8") == mine
    (space / "nearest_code.py").rename(space / "mine.py")
    assert main(["learn", "init", "."]) == 0
    stub = NEAREST.student_file()
    assert (space / "nearest_code.py").read_text(encoding="utf-8") == stub


def test_a_way_through_an_exercise(space, capsys):
    def run(*argv, status=0):
        assert main(["learn", *argv]) == status
        return capsys.readouterr()

    capsys.readouterr()
    said = run("next").out
    first = next(iter(ALL.values()))
    assert first.id in said and f"read {first.lesson_file}" in said
    assert "not begun an exercise" in run("check", status=2).err
    assert "not written yet" in run("check", "nearest-code", status=1).out
    for number, hint in enumerate(NEAREST.hints, 1):
        assert f"hint {number} of 3: {hint}\n" in run("hint", "nearest-code", str(number)).out
    written(NEAREST, space / "nearest_code.py", TIES)
    out = run("check", status=1).out
    assert "ties-upward" in out and "\033" not in out
    written(NEAREST, space / "nearest_code.py", RIGHT_BODY)
    assert run("check", "nearest_code.py").out == "nearest-code: passed\n"
    listed = run("list").out
    assert "passed  nearest-code" in listed and f"1 of {len(ALL)}" in listed
    noted = json.loads((space / "progress.json").read_text(encoding="utf-8"))
    assert noted == {"nearest-code": "passed"}


def test_watching_says_a_line_a_change(space, capsys, monkeypatch):
    rounds = iter([TIES, None, RIGHT_BODY, None])

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
    assert "nearest-code: failed" in lines[1] and "likely    ties-upward" in lines[-2]
    assert lines[-1].endswith("nearest-code: passed")


def test_a_file_is_checked_by_running_it(space):
    written(PACK, space / "packing_nibbles.py", "    print('here')\n    return codes\n")
    path = space / "packing_nibbles.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, encoding="utf-8",
                          env=ENVIRONMENT, check=True)  # fmt: skip
    assert "here" in done.stdout and "not for   pack_4bit(codes)" in done.stdout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["learn", "check", "nothing"], "no exercise 'nothing'"),
        (["learn", "list", "--dir", "elsewhere"], "elsewhere is not a workspace"),
        (["learn", "hint", "nearest-code", "4"], "invalid choice"),
        (["learn", "fly"], "invalid choice"),
        (["learn"], "required"),
        (["teach", "grade", "elsewhere"], "elsewhere does not exist"),
        (["teach", "grade", ".", "--jobs", "0"], "--jobs"),
        (["teach", "grade", ".", "."], "two submissions"),
        (["teach", "grade", ".", "--only", "x"], "no exercise 'x'"),
        (["teach", "grade", ".", "--only", "rms-norn"], "; did you mean rms-norm?"),
        (["learn", "check", "nearest_cod.py"], "; did you mean nearest-code?"),
        (["teach", "grade", ".", "--user", "no-one"], "--user no-one: this machine has no such"),
        (["learn", "init", "--only", "x"], "no exercise 'x'"),
    ],
)
def test_bad_input_is_one_line(space, capsys, argv, says):
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_grading_as_another_user_needs_root(space, capsys, monkeypatch):
    """Otherwise, every process would end at once, and every submission would get no points."""
    monkeypatch.setattr(teach.os, "geteuid", lambda: 1000)
    assert main(["teach", "grade", ".", "--user", "root"]) == 2
    assert "--user root needs root" in capsys.readouterr().err


def test_a_broken_progress_file_is_named(space, capsys):
    (space / "progress.json").write_text('["nearest-code"]', encoding="utf-8")
    assert main(["learn", "list"]) == 2
    assert "progress.json" in capsys.readouterr().err


# --- a teacher's side ---


def test_a_workspace_of_chosen_exercises_can_be_handed_out(tmp_path, capsys, monkeypatch):
    out = tmp_path / "course"
    assert main(["learn", "init", str(out), "--only", "nearest-code", "test-merge"]) == 0
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {"progress.json", "nearest_code.py", "test_merge.py"}
    whole = "".join((out / f).read_text(encoding="utf-8") for f in files)
    for mistake in (*NEAREST.mistakes, *MERGE.mistakes):
        assert mistake.name not in whole and mistake.says not in whole
    assert "forward(*trees" not in whole
    written(NEAREST, out / "nearest_code.py", TIES)
    monkeypatch.chdir(out)
    assert main(["learn", "check"]) == 1
    assert "first at  index" in capsys.readouterr().out
    assert main(["learn", "list"]) == 0
    assert "0 of 2 passed" in capsys.readouterr().out


def test_only_wanted_files_are_read_and_none_from_elsewhere(tmp_path, capsys):
    secret = tmp_path / "secret.py"
    secret.write_text("secret", encoding="utf-8")
    folder = tmp_path / "ann"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / NEAREST.file).write_text("deep", encoding="utf-8")
    (folder / MERGE.file).symlink_to(secret)
    (folder / PACK.file).write_text("x" * 2**21, encoding="utf-8")
    wanted = {NEAREST.file, PACK.file, MERGE.file}
    assert teach.submitted_files(folder, wanted) == {NEAREST.file: b"deep"}
    with zipfile.ZipFile(tmp_path / "ben.zip", "w") as archive:
        archive.writestr(f"../../{NEAREST.file}", "escaped")
        archive.writestr(f"/etc/{PACK.file}", "absolute")
        archive.writestr(f"ben/{PACK.file}", "near")
        archive.writestr(f"__MACOSX/{MERGE.file}", "no")
        archive.writestr("other.py", "no")
    before = sorted(tmp_path.rglob("*"))
    found = teach.submitted_files(tmp_path / "ben.zip", wanted)
    assert found == {NEAREST.file: b"escaped", PACK.file: b"near"}
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "broken.zip").write_bytes(b"PK")
    assert teach.submitted_files(tmp_path / "broken.zip", wanted) == {}
    assert "broken.zip cannot be read" in capsys.readouterr().err


def test_a_class_is_graded_with_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, body in {"=ann": TIES, "ben": RIGHT_BODY}.items():
        (tmp_path / name).mkdir()
        written(NEAREST, tmp_path / name / NEAREST.file, body)
    with zipfile.ZipFile("cleo.zip", "w") as archive:
        archive.write(f"ben/{NEAREST.file}")
    argv = ["teach", "grade", "=ann", "ben", "cleo.zip", "--only", "nearest-code", "--seed", "3"]
    assert main([*argv, "--jobs", "2", "--out", "class"]) == 0
    table = capsys.readouterr().out
    assert (
        "| nearest-code | passed 2, ties-upward 1 |" in table and "- cleo: 4 of 4 points" in table
    )
    rows = list(csv.DictReader(io.StringIO(Path("class/grades.csv").read_text(encoding="utf-8"))))
    assert [row["student"] for row in rows] == ["'=ann", "ben", "cleo"]
    assert rows[0]["mistake"].startswith("ties-upward") and rows[1]["kind"] == "passed"
    assert Path("class/class.md").read_text(encoding="utf-8") == table
    assert "ties-upward" in Path("class/feedback/=ann.txt").read_text(encoding="utf-8")
    assert Path("class/class.png").read_bytes().startswith(b"\x89PNG")
    assert main(argv) == 0
    assert capsys.readouterr().out == table  # the same with one job


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="Gradescope runs as root")
def test_gradescope_runs_the_autograder(tmp_path):
    root, zipped = tmp_path / "autograder", tmp_path / "autograder.zip"
    argv = ["teach", "autograder", "--out", str(zipped), "--only", "nearest-code", "--seed", "77"]
    assert main(argv) == 0
    for name in ("source", "submission", "results", "venv/bin"):
        (root / name).mkdir(parents=True)
    shutil.unpack_archive(zipped, root / "source")
    called = root / "pip.txt"
    tools = {"apt-get": "", "python3": "", "venv/bin/pip": f'echo "$@" >> {called}',
             "venv/bin/python": f'exec {sys.executable} "$@"'}  # fmt: skip
    (root / "bin").mkdir()
    for name, line in tools.items():
        tool = root / name if "/" in name else root / "bin" / name
        tool.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        tool.chmod(0o755)
    reading = f"    print(open({str(root)!r} + '/source/run_autograder').read())\n"
    written(NEAREST, root / "submission" / NEAREST.file, reading + TIES)
    environment = {"PATH": f"{root}/bin:{os.environ['PATH']}", "AUTOGRADER": str(root)}
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)  # pytest's folders are private
    for script in ("setup.sh", "run_autograder"):
        if script == "run_autograder":
            shutil.copy(root / "source" / script, root / script)  # as Gradescope does
        subprocess.run(["bash", str(root / "source" / script)], env=environment, check=True)
    assert "numpy" in called.read_text(encoding="utf-8")
    result = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    assert "PermissionError" in result["tests"][0]["output"]
    written(NEAREST, root / "submission" / NEAREST.file, TIES)
    subprocess.run(["bash", str(root / "run_autograder")], env=environment, check=True)
    result = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    assert "ties-upward" in result["tests"][0]["output"]


def test_reports(tmp_path, capsys):
    written(NEAREST, tmp_path / "nearest_code.py", TIES)
    written(PACK, tmp_path / "packing_nibbles.py", "    return nf4_pack(codes)\n")
    argv = ["teach", "grade", str(tmp_path), "--only", "nearest-code", "packing-nibbles"]
    assert main([*argv, "--seed", "41", "--out", f"{tmp_path}/r"]) == 0
    captured = capsys.readouterr()
    assert "41" not in captured.err and "total 2 of 7" in captured.out
    result = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))
    for test in result["tests"]:
        assert set(test) == {"name", "score", "max_score", "output"}
        assert 0 <= test["score"] <= test["max_score"]
    assert sum(t["max_score"] for t in result["tests"]) == NEAREST.points + PACK.points
    assert sum(t["score"] for t in result["tests"]) == 2
    assert "a hidden check fails" in result["tests"][0]["output"]

    passed, failed = judge.Verdict("passed", 1.0, "passed"), judge.Verdict("failed", 0.0, "no")
    grades = [report.Grade(NEAREST.id, "05", 4, passed, failed)]
    grades.append(report.Grade(PACK.id, "06b", 3, passed, passed))
    rows = list(csv.DictReader(io.StringIO(report.as_csv({"ann": grades}))))
    assert [r["points"] for r in rows] == ["2", "3"] and rows[0]["kind"] == "other mistakes"
    assert "total 5 of 7 points" in report.feedback(grades)


# --- the set ---


def test_faults_of_a_planted_mistake_are_found():
    first = NEAREST.mistakes[0]
    broken = {
        "double": (first.find, "it is diagnosed as ties-upward"),
        "harmless": ("x, side", "it passes every property"),
        "lost": ("nowhere", "its `find` occurs 0 times"),
    }
    planted = [replace(first, name=name, find=find) for name, (find, _) in broken.items()]
    planted[1] = replace(planted[1], replace="x + 0, side")
    exercise = replace(NEAREST, mistakes=(first, *planted))
    assert PROVE["fault_of"](exercise, first) == ""
    for mistake in planted:
        fault = PROVE["fault_of"](exercise, mistake)
        assert fault.startswith(broken[mistake.name][1])


def test_a_reference_that_raises_is_a_fault():
    broken = replace(NEAREST)
    broken.text = NEAREST.text.replace("(codebook.midpoints", "(codebook.nothing")
    faults = PROVE["faults_of"](broken)
    assert len(faults) == 2  # the open checks and the hidden ones
    assert all(fault.startswith("the reference failed") for fault in faults)
    assert "raised    AttributeError" in faults[0]


def test_faults_of_a_set_are_told(capsys, monkeypatch):
    few = replace(PACK, mistakes=PACK.mistakes[:2])
    monkeypatch.setattr(exercises, "load", lambda: {"packing-nibbles": few})
    assert main(["teach", "check"]) == 1
    captured = capsys.readouterr()
    assert "| packing-nibbles | 06b |" in captured.out and "2 of 2" in captured.out
    assert captured.err == "fault: packing-nibbles: fewer than three planted mistakes\n"


ENTRY = """id = "nearest-code"
function = "minilora.nf4:pack_4bit"
lesson = "05"
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
        (ENTRY + HINTS + "color = 1\n", "color"),
        (ENTRY.replace('"05"', '"99"') + HINTS, "no lesson 99"),
        (ENTRY + HINTS + 'kind = "essay"\n', "kind"),
        (ENTRY + HINTS + "[[exercise]]\n" + ENTRY + HINTS, "twice"),
        ("= 3", "not a list of exercises"),
    ],
)
def test_a_broken_set_is_one_line(tmp_path, text, says):
    (tmp_path / "exercises.toml").write_text(f"[[exercise]]\n{text}", encoding="utf-8")
    shutil.copytree(exercises.LESSONS / "exercises", tmp_path / "exercises")
    with pytest.raises(InputError, match=says):
        exercises.load(tmp_path)


def test_minilora_does_not_import_its_course():
    code = "import sys, minilora; print([m for m in sys.modules if 'course' in m or 'hypoth' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
