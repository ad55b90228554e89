"""The course: stubs, judging, workspaces, grading, and what students must not see."""

import csv
import inspect
import json
import multiprocessing
import os
import pickle
import re
import runpy
import select
import subprocess
import sys
import threading
from bdb import BdbQuit
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import Mock
from zipfile import ZipFile

import numpy as np
import pytest
from outcomes import run
from solutions import RIGHT, WRONG
from submissions import OWN, SET, folder, own, zipped

import minilora
from minilora import nf4
from minilora.config import InputError, TrainConfig
from minilora.course import commands, outcome
from minilora.course import one_file as one_file_module
from minilora.course.outcome import TYPE, Outcome, Stopped, close
from minilora.course.students import exercises, isolation, judge
from minilora.course.students.isolation import LATE, Local
from minilora.course.teachers import report, submission, teach
from minilora.formats.files import digest

ALL = exercises.load()
PROVE = runpy.run_path(str(exercises.LESSONS / "exercises" / "prove.py"))
NEAREST, PACK, MERGE = OWN["nearest-code"], OWN["packing-nibbles"], ALL["test-merge"]
FIRST = ALL["one-file-nearest"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(minilora.__file__).parents[1])}


def python(*argv, **options):
    """Run Python with minilora; return its result, with what it prints."""
    command = [sys.executable, *argv]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)


def written(exercise, body):
    """Return the text of the stub with `body` as the body of its last function."""
    begin, _, end = exercise.student_file().rpartition("    raise NotImplementedError")
    return begin + body + end.partition("\n")[2]


def checked(exercise, body, seed=None):
    """Return the verdict on the stub with this body, in a process of its own."""
    return judge.verdict(exercise, {exercise.file: written(exercise, body).encode()}, seed)


def answer(exercise, function, seed=None):
    """Return the verdict on a function in this process."""
    return judge.check(exercise, Local(function), seed)


@pytest.fixture
def few_calls(tries, monkeypatch):
    """Check each rule on fewer calls: a wrong answer must fail these, too."""
    calls = {judge.REFERENCE: tries(5, 40), judge.SLOPES: tries(2, 4)}
    monkeypatch.setattr(judge, "CALLS", calls)
    monkeypatch.setattr(judge, "CALLS_OF_A_PROPERTY", tries(5, 16))


# --- the files ---


def test_a_stub_is_the_reference_without_its_body(tmp_path):
    for e in ALL.values():
        path, text = tmp_path / e.file, e.student_file()
        path.write_text(text, encoding="utf-8")
        stub = runpy.run_path(str(path))[e.answer]
        reference = e.checks.check if e.is_test else exercises.compiled(*e.copy().args)
        assert inspect.signature(stub) == inspect.signature(reference)
        assert inspect.getdoc(stub) == inspect.getdoc(reference)
        last_line = exercises.functions(text, [e.answer]).splitlines()[-1]
        if e.kind == "debug":
            assert e.mistakes[0].replace in text
        else:
            assert f'"{e.id}: {e.answer} is not written yet"' in last_line
        assert not [mistake for mistake in e.mistakes if mistake.says in text]
        assert e.is_unchanged(text.replace("\n", "\r\n").encode())  # as editors and LMSs do


def test_a_stub_keeps_decorators_comments_and_docstring():
    documented = '@np.vectorize  # by element\ndef f(\n    x,  # (B, T)\n):\n    """Doc."""\n'
    for head in (documented, "def f(x):\n"):
        text = f"import numpy as np\n\n{head}    y = x\n    return y\n"
        stub = head + '    raise NotImplementedError("todo: f is not written yet")'
        assert exercises.functions(text, ["f"], "todo") == stub


# --- judging ---


def ties(x, codebook):
    """Take the higher one of two values: nothing is nearer, but the codes differ."""
    return codebook.order[np.searchsorted(codebook.midpoints, x, side="right")]


def test_what_is_no_known_mistake_is_not_called_one():
    found = answer(NEAREST, lambda x, codebook: np.full(x.shape, 3) // 0)  # warnings are no crash
    assert found.text.startswith("failed: value")
    assert not found.mistake and "likely" not in found.text

    def ties_in_short_rows(x, codebook):  # like a mistake on the call that is shown
        return (ties if x.size < 10 else NEAREST.copy())(x, codebook)

    assert not answer(NEAREST, ties_in_short_rows).mistake


def test_a_mistake_is_recognized_if_it_rounds_otherwise_or_raises_in_a_line_of_the_student(
    few_calls,
):
    e = ALL["one-file-linear"]
    planted = next(m for m in e.mistakes if m.name == "a-not-transposed")

    def not_transposed(*arguments):
        return e.copy(planted)(*arguments) * (1 + 2.0**-52)

    found = judge.check(e, Local(not_transposed, __file__))
    assert found.mistake.startswith("a-not-transposed: ")


def test_the_call_that_is_shown_differs_by_more_than_the_tolerance():
    e = replace(OWN["warmup"], dtypes=True)
    e.checks.tolerance = lambda *_: 2.0**-20  # float32 is nearer
    near, far = [e.arguments(case) for case in e.draw("", 2)]
    for wrong in (7.0, np.float32(e.copy()(*far))):  # the value, the type
        outcomes = [Outcome(e.copy()(*near) + 2.0**-21), Outcome(wrong)]
        shown = judge.Problem((), "", (), *outcomes)
        shown = judge.first_wrong(e, [*zip((near, far), outcomes)], shown)
        assert shown.arguments == far and shown.found


CALLS = count()


def crashing(codes):  # only the calls of a property
    return codes.nothing if next(CALLS) % 2 else nf4.pack_4bit(codes)


def changing_zeros(codes):
    packed = nf4.pack_4bit(codes) + (codes.max() == 0)
    codes += codes.max() == 0
    return packed


EXPLAINED = {  # answer: (kind, rule, codes of the shown call, what is wrong)
    lambda codes: nf4.pack_4bit(codes) + (codes.max() == 0): (
        "value", "zeros are packed as zeros", "[0, 0, 0, 0]",
        "expected  (2,) uint8 [0, 0]\n  got       (2,) uint8 [1, 1]\n"
        "  first at  [0]: expected 0, got 1",
    ),
    changing_zeros: (
        "argument", "zeros are packed as zeros", "[0, 0, 0, 0]", "changed   codes",
    ),
    crashing: (
        "exception", "two codes take one byte", "[0, 1, 2, 3]",
        "raised    AttributeError: 'numpy.ndarray' object has no attribute 'nothing'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", EXPLAINED)
def test_a_verdict_explains_the_call_that_breaks_a_rule(function):
    def property_of_zeros(function, codes):
        """zeros are packed as zeros"""
        given = codes * 0
        packed, _ = function(given), function(codes)  # the last call is right
        given += 1  # the call is shown as it was
        try:
            close(packed, codes[::2] * 0)
        except AssertionError as error:
            raise AssertionError(f"{error}\na second line") from None

    e = replace(PACK, mistakes=[exercises.Mistake("same", "equals the reference", "u", "u")])
    e.checks.CASES = {"seed": [1], "pairs": [3, 2]}
    e.checks.arguments = lambda rng, pairs: (np.arange(2 * pairs, dtype=np.uint8),)
    e.checks.property_of_zeros = property_of_zeros
    kind, rule, codes, wrong = EXPLAINED[function]
    assert answer(e, function).text == (
        f"failed: {kind}\n  rule      {rule}\n  broken by pack_4bit(codes), where\n"
        f"    codes     (4,) uint8 {codes}\n  {wrong}\n"
        "  again     minilora learn check packing-nibbles --call \"{'seed': 1, 'pairs': 2}\""
        "    (in this process: breakpoints stop)"
    )


@pytest.mark.parametrize(
    ("expected", "got", "says"),
    [
        (np.array([np.inf, np.nan, 1]), np.float32([np.inf, np.nan, 2]), ""),
        (np.nan, 0.0, ": expected nan, got 0.0"),
        (
            np.zeros((2, 1)),  # of the same bytes as (1, 2), and as 0
            np.zeros((1, 2)),
            f"{TYPE} expected (2, 1) float64 [[0.], [0.]], got (1, 2) float64 [[0., 0.]]",
        ),
        (0, 0.0, f"{TYPE} expected () int64 0, got () float64 0."),
        (np.zeros(4), np.array([0, 1, 2.0, 4]), "[2]: expected 0.0, got 2.0"),
        ({"a": [1, 2]}, {"a": (1, 3)}, "['a'][1]: expected 2, got 3"),
        ("a", "ab", ": expected a, got ab"),
        (0, exercises.Mistake, f"{TYPE} expected 0, got type"),
    ],
)
def test_the_difference_of_two_results(expected, got, says):
    found = judge.difference(expected, got, 1.0, dtypes=isinstance(got, str))  # 1 for floats alone
    assert found.removeprefix("the result") == says


def test_floats_must_be_equal_unless_an_exercise_has_a_tolerance():
    assert PACK.checks.tolerance() == 0


def test_a_large_tree_is_shown_in_sixteen_lines():
    tree = {n: np.zeros(n) for n in range(13, 30)}
    *shown, end = outcome.lines("base", [tree])
    assert len(shown) == 16 and end == "…"
    del tree[29]
    assert outcome.lines("base", [tree]) == shown
    assert len(outcome.failure(ValueError("x" * 9999), "").crash) == 2000


def test_every_changed_argument_is_named_and_the_check_keeps_its_own():
    arguments = [1], [2, 3]
    (found,) = Local(lambda x, y: x.append(y.pop())).ask([arguments])
    assert found == Outcome(None, (0, 1)) and arguments == ([1], [2, 3])
    wrong = judge.Problem((), "", (1, 2), Outcome(), found)
    assert "changed   x, codebook\n" in judge.explain(NEAREST, wrong)


RARE = {  # wrong on about one call in fifty: whether it is found depends on the calls drawn
    "nearest-code": "    codes = codebook.order[np.searchsorted(codebook.midpoints, x)]\n"
    "    return codes + (float(np.abs(x).sum()) * 1e4 % 50 < 1)\n",
    "packing-nibbles": "    packed = codes[0::2] * 16 + codes[1::2]\n"
    "    return packed ^ (int(packed.sum()) % 50 == 7)\n",
}


def test_a_verdict_depends_on_file_exercise_and_seed_alone(tmp_path):
    here = [repr(checked(OWN[name], body, seed=7)) for name, body in RARE.items()]
    folder(tmp_path, {OWN[name].file: written(OWN[name], body) for name, body in RARE.items()})
    code = (
        "import sys; from pathlib import Path\n"
        "from minilora.course.students import exercises, judge\n"
        "exercises.FOLDER = sys.argv[1]\n"
        "for e in [exercises.load()[name] for name in sys.argv[2:]]:\n"
        "    print(repr(judge.verdict(e, {e.file: Path(e.file).read_bytes()}, seed=7)))"
    )
    done = python("-c", code, str(SET), *reversed(RARE), cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[::-1] == here


def test_the_seed_orders_the_mistakes_that_a_test_must_catch():
    orders: list = [[], []]
    for seed, order in enumerate(orders):
        answer(MERGE, lambda merge, order=order: order.append(merge.args), seed=seed)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_the_result_is_compared_on_forty_calls_and_a_property_on_sixteen():
    nothing = Local(lambda codes: None)
    for rule, calls in ((judge.REFERENCE, 40), (PACK.rules[0], 16)):
        assert len([*judge.wrong_calls(PACK, nothing, rule)]) == calls


TRIVIAL = [
    *(lambda *_, value=value: value for value in (None, 0.0, 1, {})),
    lambda *a: a[0],
    lambda *a: a[-1],
    lambda *a: np.zeros_like(a[0]),
]


def without_training(monkeypatch):
    """Give each design the loss just below the limit, as if it had been trained."""
    monkeypatch.setattr(minilora, "train", lambda adapters, *_, **__: (adapters, []))
    monkeypatch.setattr(minilora, "evaluate", lambda *_, **__: {"loss": 0.249})


@pytest.mark.parametrize("name", ALL)
def test_a_trivial_answer_earns_at_most_a_tenth(name, monkeypatch, few_calls, rng, tries):
    monkeypatch.setattr(judge, "diagnose", lambda *_: "")  # it takes long, and earns nothing
    e = ALL[name]
    if e.kind == "design":
        without_training(monkeypatch)
        e = replace(e)  # what it keeps is not for other tests
    planted = [e.copy(e.mistakes[0])] if e.kind == "debug" else []
    bodies = planted + rng.sample(TRIVIAL, tries(4, len(TRIVIAL)))
    assert max(answer(e, body).share for body in bodies) <= 0.1


@pytest.mark.parametrize("name", RIGHT)
def test_an_independent_right_answer_is_accepted(name, few_calls, monkeypatch, rng, tries):
    e, function = ALL[name], RIGHT[name]
    if e.kind == "design":
        if not tries(0, 1):  # `minilora teach check` trains with the reference's settings
            without_training(monkeypatch)
        e.checks.property_good_within_the_budget(function)
        return
    seeds = [5] if e.is_test else [None, 5]  # open and hidden
    for seed in rng.sample(seeds, tries(1, len(seeds))):
        assert answer(e, function, seed=seed) == judge.PASSED


def test_every_exercise_has_an_independent_right_answer_and_a_lesson_that_names_it():
    assert RIGHT.keys() == ALL.keys()
    for e in ALL.values():
        paragraph = e.lesson_file.read_text("utf-8").partition("**Exercises.**")[2]
        assert re.search(rf"(?<![\w-]){e.id}(?![\w-])", paragraph), f"{e.id}: {e.lesson_file}"


@pytest.mark.parametrize(("name", "function"), WRONG)
def test_a_mistake_that_nobody_planted_is_found(name, function, few_calls):
    assert answer(ALL[name], function).share < 1


def test_no_argument_is_the_same_in_every_call():
    """Else a function that does not read it passes. A text with (…, n) has arrays of other axes."""
    for e in ALL.values():
        if not e.checks.CASES:
            continue
        calls = [e.arguments(case) for case in e.draw("arguments", 12)]
        for name, values in zip(e.parameters, zip(*calls)):
            if isinstance(values[0], str | int | float):
                assert len(set(values)) > 1, f"{e.id}: {name} is always {values[0]!r}"
        if re.search(r"\((…|\.\.\.), |any shape", e.task):
            axes = [[np.ndim(value) for value in call if hasattr(value, "shape")] for call in calls]
            assert any(len({*numbers}) > 1 for numbers in zip(*axes)), e.id


# --- a student's process ---

ODD = {
    "    return [0] * (codes.size // 2)\n": "got       list (",
    "    open('x', 'w').truncate(10**7)\n": "File too large",
    "    raise SystemExit\n": "your code ended its process",
    "    return np.zeros(2**32)\n": "MemoryError",
    "    return codes.nothing\n": "return codes.nothing",
    "    from minilora import nf4\n    return nf4.pack_4bit(codes)\n": "call minilora's pack_4bit",
    "    return (code for code in codes)\n": "failed: output",
    "    from minilora.kernels.nf4 import unpack_4bit\n    return unpack_4bit(codes)\n": (
        "call minilora's unpack_4bit"
    ),
    "    return codes\ndel pack_4bit\n": "it has no function pack_4bit",
    "    return (\n": "SyntaxError",
}


@pytest.mark.parametrize("body", ODD, ids=list(ODD.values()))
def test_each_odd_result_has_its_own_sentence(body, few_calls):
    text = checked(replace(PACK, helpers=("unpack_4bit",)), body).text
    assert ODD[body] in text
    assert "outcome.py" not in text and "student.py" not in text and "Traceback" not in text


def test_an_endless_loop_is_stopped_and_costs_only_its_own_points(monkeypatch, tries):
    monkeypatch.setitem(isolation.LIMITS, "CPU", 1)
    # after this second, the system sends this signal
    loop = """    import os, resource, signal
    while resource.getrlimit(resource.RLIMIT_CPU)[0] == 1:
        os.kill(os.getpid(), signal.SIGXCPU)
"""
    if tries(0, 1):
        loop = "    while True:\n        pass\n"
    assert "endless loop" in checked(PACK, loop).text
    # of the clock, more than a second passes: as on a busy machine, it does not count
    slow = "    import time\n    time.sleep(0.012)\n    return codes[0::2] * 16 + codes[1::2]\n"
    assert checked(PACK, slow) == judge.PASSED
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)
    monkeypatch.setattr(isolation, "WAIT", 0.3)
    waiting = "    import os, time\n    time.sleep(9)\n    os._exit(0)\n"
    assert checked(PACK, waiting).text == LATE


def test_the_limits_are_those_that_the_guide_names():
    text = " ".join((exercises.LESSONS / "exercises" / "README.md").read_text("utf-8").split())
    memory, seconds, size = (isolation.LIMITS[name] for name in ("AS", "CPU", "FSIZE"))
    assert f"{memory >> 30} GB of memory, {size >> 20} MB per file that it writes, and" in text
    assert f" {seconds} seconds of processor time." in text
    assert f"Code that waits is stopped after {isolation.WAIT} seconds." in text
    assert f"plain data, up to {isolation.MAX_ANSWER_BYTES >> 20} MB;" in text
    names = re.search("Its environment has (.*) and what Python needs", text)[1]
    assert {*re.findall("[A-Z]+", names)} < {*isolation.KEPT}


HOSTILE = """    import os, resource, signal, subprocess, sys
    from pathlib import Path
    import minilora.course.students.judge as judge, minilora.nf4 as nf4
    seen = [value for value in os.environ.values() if value == "77"]
    if not Path("mine").exists():
        Path("mine").touch()
        subprocess.Popen(["sleep", "3600"], stdout=open({pipe!r}, "w"))
        if os.fork() == 0:  # holds the connection open
            signal.pause()
    judge.check = lambda *_: None
    nf4.unpack_4bit = lambda packed: packed
    own = {{os.environ[name] == os.getcwd() for name in ("HOME", "TMPDIR")}}
    own |= {{os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3)}}
    for name, most in {limits!r}.items():
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{{name}}"))
        own.add(0 < soft == hard <= most)
    raise ValueError(f"in {{os.getcwd()}}, seen: {{seen}}, own: {{own}}")
"""


def test_a_student_sees_no_seed_and_changes_no_check(tmp_path, monkeypatch, few_calls):
    monkeypatch.setenv(commands.SEED, "77")
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        hostile = HOSTILE.format(pipe=pipe, limits=isolation.LIMITS)
        # the system allows no limit of so many files: the others are set
        monkeypatch.setattr(isolation, "LIMITS", {"NOFILE": 2**40} | isolation.LIMITS)
        text = checked(PACK, hostile).text
        assert "seen: [], own: {True}" in text and os.getcwd() not in text
        # the pipe ends when the process that the student has started ends
        assert select.select([reader], [], [], 600)[0]
    assert answer(PACK, nf4.pack_4bit) == judge.PASSED

    def start(process):
        raise Stopped(repr({**os.environ}))

    monkeypatch.setattr(isolation.CONTEXT.Process, "start", start)
    assert checked(PACK, "").text == repr(isolation.ENVIRONMENT)


BLOCKED = """
import minilora
from minilora.course import one_file  # what the lesson prints is left out
from minilora.course.students.isolation import block_function
from minilora.methods import ia3, prefix
block_function(ia3, "init")
print(prefix.init.__name__)
block_function(minilora.lora, "merge")
minilora.merge()
"""


def test_a_function_is_blocked_wherever_it_is_imported_and_no_other_of_its_name():
    done = python("-c", BLOCKED)
    assert done.stdout == "init\n" and "write merge yourself" in done.stderr


def test_the_end_of_a_student_wakes_who_waits_for_an_answer():
    """Also if a process of another session holds the other end of the connection open."""
    mine, other = multiprocessing.Pipe()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    isolation.Student(process, mine).end()
    assert mine.poll() and not other.closed
    assert process.wait() == -9  # also if it has no group of processes yet


def test_a_student_s_process_that_has_gone_is_named():
    gone = Mock(**{"send.side_effect": BrokenPipeError})
    with pytest.raises(Stopped, match="your code ended its process"):
        isolation.Student(Mock(exitcode=1), gone).ask([()])


class Evil:
    """An object whose pickle would write a file where it is read."""

    def __reduce__(self):
        return open, ("mark", "w")


def test_an_answer_is_arrays_and_plain_data(workspace):
    weight = one_file_module.NF4Weight(*np.ones((5, 3), np.float32))
    right = Outcome((np.arange(3), weight, [1.5, np.float32(2), TrainConfig(iters=3)]), (0,), "a")
    for sent in (isolation.packed(right), pickle.dumps(right, 5)):
        assert repr(isolation.decode_answer(sent)) == repr(right)
    assert isolation.decode_answer(pickle.dumps((0, [1.0], 2))) == (0, (1,), "2")
    in_itself: list = []
    in_itself.append(in_itself)
    # a student's code can also send what it likes
    things = Evil(), np.save, nf4.nearest, InputError, inspect.FullArgSpec
    sent = *((thing, (), "") for thing in things), (0, ["name"], "")
    for bad, says in (
        (isolation.packed(Outcome(np.zeros(22 * 10**5))), ": more than 16 MB"),
        (isolation.packed(Outcome(in_itself)), ": maximum recursion depth"),
        (isolation.packed(Outcome(lambda: 0)), "lambda"),
        *((pickle.dumps(answer), "") for answer in sent),
        (b"", ""),
    ):
        found = isolation.decode_answer(bad)
        assert found == Outcome(crash=found.crash) and found.crash.startswith(isolation.OUTPUT)
        assert says in found.crash
    assert not Path("mark").exists()


# --- a student's folder ---


def test_the_files_of_lesson_0(workspace):
    run("learn init . --only", FIRST.id, "one-file-mlp")
    lesson = Path("qlora_in_one_file.py")
    text = lesson.read_text("utf-8")
    assert text.startswith("# Read this file. Write its functions in the files of the exercises.")
    assert "searchsorted" not in text
    for stub in (f"{FIRST.id}: nearest", "one-file-mlp: mlp"):
        assert text.count(f'raise NotImplementedError("{stub} is not written yet")') == 1
    lesson.unlink()
    assert f"\nread {FIRST.lesson_file}\n" in run("learn next").out


def test_all_exercises_of_the_folder_are_passed(workspace):
    own("learn init --only", NEAREST.id)
    body = "    import own\n    return codebook.order[np.searchsorted(codebook.midpoints, x)]\n"
    folder(workspace, {"own.py": "import nearest_code\n", NEAREST.file: written(NEAREST, body)})
    noted = {NEAREST.id: digest([NEAREST.file, "own.py"]), "warmup": "passed"}
    Path("progress.json").write_text(json.dumps(noted))
    assert "1 of 1 passed" in own("learn list").out  # there is no file of the second one here
    assert own("learn next").out == "all exercises are passed\n"


def test_the_status_of_learn_train_tells_that_the_losses_differ(workspace, monkeypatch):
    folder(workspace, {"mine.py": "x = 1"})
    main = Mock(return_value=True)
    monkeypatch.setattr(runpy, "run_path", lambda path: {"main": main})
    run("learn train mine.py", status=1)
    main.assert_called_with("mine.py", {"mine.py": b"x = 1"})


def test_a_cell_is_checked_by_running_it(capsys):
    source = written(FIRST, "    print('here')\n    return x.nothing\n")
    exec(compile(source, "<cell 1>", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert "here" in out and "broken by nearest(x, values), where" in out
    assert re.search(r"raised    AttributeError: .*\n    line \d\d: ", out)


# --- a teacher's side ---


@pytest.mark.parametrize("name, file, has_prefix", [
    ("task-1 (1).py", "task_1.py", False), ("Task_1-1.py", "task_1.py", False),
    ("task 1 copy (2).py", "task_1.py", False), ("ann_12_task_1.py", "task_1.py", True),
    ("ann_long_task (1).py", "long_task.py", True), ("multitask.py", "", True),
])  # fmt: skip
def test_a_file_is_recognized_by_its_name(name, file, has_prefix):
    known = ["task.py", "task_1.py", "long_task.py"]
    for names in (known, known[::-1]):
        assert submission.recognized(name, names) == (file, has_prefix)


def test_a_file_with_a_prefix_keeps_its_name_too(tmp_path):
    """It can be a student's own module, which another file imports."""
    exercises.FOLDER = str(SET)
    mine = f"my_{PACK.file}"
    assert submission.read(folder(tmp_path, {mine: "a"})) == ({PACK.file: b"a", mine: b"a"}, [])


def test_without_assertions_nothing_is_checked():
    """The rules, and the tests of students, are assertions."""
    done = python("-O", "-m", "minilora", "teach", "check")
    assert done.returncode == 2 and "leave out -O and PYTHONOPTIMIZE" in done.stderr


def test_only_files_of_the_submission_are_read(tmp_path):
    exercises.FOLDER = str(SET)
    sizes = {f"deep/{NEAREST.file}": bytes(2**20), PACK.file: bytes(2**20 + 1)}
    ann = folder(tmp_path / "ann", sizes)
    (ann / "warmup.py").symlink_to(folder(tmp_path, {"secret.py": "secret"}) / "secret.py")
    alone = folder(tmp_path / ".hidden", {PACK.file: "a"}) / PACK.file
    assert submission.read(alone) == ({PACK.file: b"a"}, [])
    assert submission.read(ann) == (
        {NEAREST.file: bytes(2**20)},
        [
            f"{PACK.file} cannot be read: it has more than 1048576 bytes",
            "warmup.py cannot be read: it is not a file",  # a link out of the folder
        ],
    )


def test_an_encrypted_file_is_named(tmp_path):
    path = zipped(tmp_path / "dan.zip", {PACK.file: ""})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] = 1
    path.write_bytes(data)
    assert submission.collect(path) == ({}, [f"{PACK.file} cannot be read: it is encrypted"])


def test_of_many_files_those_that_count_come_first(tmp_path):
    ignored = [".hidden", "progress.json", "a/__pycache__/b.py", "a/qlora_in_one_file.py"]
    deep = f"deep/{NEAREST.file.upper()}"
    names = [*ignored, *(f"{n:03}.png" for n in range(201)), deep]
    found, notes = submission.collect(zipped(tmp_path / "cay.zip", dict.fromkeys(names, "")))
    assert len(found) == 200 and deep in found
    assert notes == ["only 200 files are read, and not 199.png, 200.png"]


def test_names_in_an_archive_lead_nowhere_and_can_occur_twice(tmp_path):
    exercises.FOLDER = str(SET)
    path = tmp_path / "in" / "ben.zip"
    path.parent.mkdir()
    with pytest.warns(UserWarning, match="Duplicate name"), ZipFile(path, "w") as file:
        file.writestr(f"../../{NEAREST.file}", "escaped")
        file.writestr(f"/etc/{PACK.file}", "absolute")
        for text in ("near", "other", "near"):
            file.writestr(PACK.file, text)
        file.writestr("b/own.py", "b")
        file.writestr("own.py", "a")
    before = sorted(tmp_path.rglob("*"))
    assert submission.read(path) == (
        {NEAREST.file: b"escaped", "own.py": b"a"},
        [
            f"3 different files can be {PACK.file}: "
            f"{PACK.file}, again/{PACK.file}, /etc/{PACK.file}",
            "own.py does not count",
            "b/own.py does not count",
        ],
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_grade_names_a_mistake_and_a_check_that_must_be_repeated():
    failed = judge.Verdict(0.5, "failed: value\n  more")
    named = failed._replace(mistake="ties-upward: too high")
    late, ended = judge.Verdict(0.0, LATE), judge.Verdict(0.0, f"{report.ENDED}: killed")
    for first, second, result, is_late in (
        (judge.PASSED, failed, "failed: value", False),
        (judge.PASSED, named, named.mistake, False),
        (named, failed, named.mistake, False),
        (late, judge.PASSED, LATE, True),
        (judge.PASSED, ended, ended.text, True),
    ):
        grade = report.grade(NEAREST, first, second)
        assert (grade.result, grade.is_late) == (result, is_late)


def test_a_name_or_a_message_that_is_no_text_stops_no_report(tmp_path):
    passed = report.grade(NEAREST, judge.PASSED, judge.PASSED)
    failed = report.grade(NEAREST, judge.Verdict(0.0, "failed: \ud800"), judge.NOT_WRITTEN)
    signs = "=+-@\t\r"
    names = [f"{sign}J\udcf6rg" for sign in signs]
    results = dict.fromkeys(names, ({NEAREST.id: passed}, []))
    results[names[0]] = {NEAREST.id: failed}, []
    out = tmp_path / "new" / "out"
    report.write(out, results, names[0])
    assert "failed: \\ud800" in (out / "feedback/=J\udcf6rg.txt").read_text("utf-8")
    with open(out / "grades.csv", encoding="utf-8", newline="") as file:
        shown = [row["student"] for row in csv.DictReader(file)]
    assert shown == [f"'{sign}J\\udcf6rg" for sign in signs]  # no formulas
    table = (out / "class.md").read_text("utf-8")
    assert table.endswith("| passed 5, failed 1 |\n")  # the most frequent result comes first


def test_points_and_notes_stay_if_the_process_that_repeats_a_late_check_ends(
    tmp_path, monkeypatch, pools
):
    def graded(folder, seed, path, ids):
        if len(pools) > 1:
            raise OSError("killed")
        late = judge.Verdict(0.0, LATE)
        first, second = exercises.select(ids)
        passed = report.grade(first, judge.PASSED, judge.PASSED)
        return {first.id: passed, second.id: report.grade(second, late, late)}, ["x.py: a note"]

    monkeypatch.setattr(teach, "grade_submission", graded)
    out = own("teach grade", tmp_path, "--only packing-nibbles warmup --seed 3").out
    assert "packing-nibbles: 3 of 3\n" in out and "x.py: a note\n" in out
    assert f"{report.ENDED}: killed" in out and "total 3 of 7 points\n" in out
    assert pools == [1, 1]


def test_the_private_seed_comes_from_the_flag_the_environment_or_chance(
    tmp_path, monkeypatch, pools
):
    seeds = []
    words = "teach grade", tmp_path, "--only warmup"
    monkeypatch.delenv(commands.SEED, raising=False)

    def graded(folder, seed, path, ids):
        seeds.append(seed)
        assert {**os.environ} == isolation.ENVIRONMENT  # the judges do not see the seed, either
        return {}, []

    monkeypatch.setattr(teach, "grade_submission", graded)
    said = own(*words).err
    assert said == f"the seed of the hidden checks is {seeds.pop()}; keep it private\n"
    monkeypatch.setenv(commands.SEED, "77")
    for flags in ("", "--seed 3"):
        own(*words, flags)
    assert seeds == [77, 3]
    monkeypatch.setenv(commands.SEED, "x")
    assert "--seed" in own(*words, status=2).err


# --- the set ---


@pytest.mark.parametrize(
    ("find", "new", "says"),
    [
        ("codebook.midpoints", "codebook.nothing", "it passes every property, or it only raises"),
        ('side="left"', 'side="right"', "it is diagnosed as ties-upward"),
        ("x, side", "x + 0, side", "it passes every property, or it only raises"),
        ("nowhere", "", "its `find` occurs 0 times"),
    ],
)
def test_faults_of_a_planted_mistake_are_found(find, new, says):
    first = NEAREST.mistakes[0]
    planted = replace(first, name="planted", find=find, replace=new)
    exercise = replace(NEAREST, mistakes=(first, planted))
    assert PROVE["fault_of"](exercise, first) == ""
    assert PROVE["fault_of"](exercise, planted).startswith(says)


def test_a_reference_that_raises_is_a_fault():
    broken = replace(NEAREST, mistakes=NEAREST.mistakes[:2])
    broken.text = NEAREST.text.replace("(codebook.midpoints", "(codebook.nothing")
    few, *faults = PROVE["faults_of"](broken)
    assert few == "fewer than three planted mistakes"
    assert len(faults) == 2  # the open checks and the hidden ones
    assert all(fault.startswith("the reference: failed") for fault in faults)
    assert "raised    AttributeError" in faults[0]


def test_a_set_with_a_fault_and_a_prediction_is_proved(capsys):
    assert not PROVE["main"]([OWN["fault"], OWN["guess"]])
    assert "| fault | 06 | 1 | 1 | 1 | 3 of 3 |" in capsys.readouterr().out


def test_a_mistake_that_only_hidden_calls_show_is_named():
    large = exercises.Mistake(
        "large", "it skips a number", "in numbers", "in numbers[len(numbers) > 4 :]"
    )
    e = replace(OWN["fault"], kind="write", mistakes=[large])
    e.checks.HIDDEN = {"n": [9]}
    assert answer(e, e.copy(large)) == judge.PASSED
    assert answer(e, e.copy(large), seed=0).mistake == "large: it skips a number"


def test_a_number_to_predict():
    e = OWN["guess"]
    assert len(e.draw(judge.REFERENCE, 9)) == 1  # of equal calls
    wrong = judge.Problem((), "a rule", (), judge.Outcome(1), judge.Outcome(2), "same", "same")
    assert judge.explain(e, wrong).count("same") == 1
    assert judge.explain(e, wrong._replace(detail=TYPE)).startswith("failed: type\n")
    wrong = wrong._replace(right=judge.Outcome(touched=(0,)))
    assert judge.explain(e, wrong).endswith("\n  changed   nothing")


def test_faults_of_an_entry_are_told(monkeypatch):
    entries = replace(NEAREST, hints=[], lesson="99"), replace(NEAREST, function="nothing:nearest")
    monkeypatch.setattr(exercises, "select", lambda names: entries)
    told = run("teach check", status=1).err.splitlines()
    for fault in (
        "not three hints, from gentle to plain", "there is no lesson 99",
        "ModuleNotFoundError: No module named 'nothing'",
    ):  # fmt: skip
        assert f"fault: nearest-code: {fault}" in told


def test_dtypes_are_checked_where_an_entry_says_so():
    planted = exercises.Mistake("wide", "it has int64", '"left")]', '"left")].astype(int)')
    e = replace(NEAREST, dtypes=True, mistakes=[planted])
    wide = e.copy(planted)
    text = answer(e, wide).text
    assert text.endswith("likely    wide: it has int64")
    assert text.startswith("failed: type\n") and ") uint8 [" in text and TYPE in text
    assert answer(NEAREST, wide) == judge.PASSED


def test_gradients_are_checked_where_an_entry_says_so():
    def stopped(x, weight, config):
        x = getattr(x, "_value", x)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    found = answer(ALL["one-file-rms-norm"], stopped)
    assert f"rule      {judge.SLOPES}" in found.text and 0 < found.share < 1
    slopes = isolation.gradient(lambda x: x * 1, [0])(np.zeros(9))
    assert len({*slopes[0]}) == 9  # exchanged elements are found


def test_the_debugger_is_left_by_a_person_only(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", Mock())  # in a student's, it is a crash
    (left,) = Local(Mock(side_effect=BdbQuit)).ask([()])
    assert left.crash.startswith("BdbQuit")


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        ('NOTE = REASON = "why"', "why"),
        ('REASON = "a"\nREASON: str = " b "\nREASON: str', "b"),  # the last value
        ('REASON = "abs"\nREASON += "max"', "absmax"),
        ("REASON = 4.5", "4.5"),
        ('REASON = "a" + str(2)', "'a' + str(2)"),  # it is not run
        (f'REASON = """\n{exercises.TODO}\n"""', ""),
        ("REASON = (", ""),
        ("1" + " + 1" * 20_000, ""),  # too deep for the parser
        ("-" * 100_000 + "1", ""),
    ],
    ids=range(9),
)
def test_reasons_are_read_without_running_the_file(lines, reasons):
    assert exercises.written_reasons(lines.encode()) == reasons


def test_teachers_import_students_and_never_the_other_way():
    course = Path(commands.__file__).parent
    for path in course.rglob("*.py"):
        if path.name != "commands.py" and "teachers" not in path.parts:
            assert "teachers" not in re.findall("import.*|from.*", path.read_text("utf-8"))


FIRST_STEPS_AND_FEW_CALLS = """
from minilora import cli
from minilora.course import one_file
from minilora.course.students import judge
one_file.text = one_file.text.replace("in range(STEPS):", "in range(14):")
judge.CALLS, judge.CALLS_OF_A_PROPERTY = {judge.REFERENCE: 5, judge.SLOPES: 2}, 5
raise SystemExit(cli.main())
"""


@pytest.mark.long
def test_lesson_0_trains_with_the_student_s_functions(workspace):
    """14 steps: tests/test_one_file.py compares the losses of all steps."""

    def trained(*words):
        """Return the status of a training, and what it prints."""
        done = python("-c", FIRST_STEPS_AND_FEW_CALLS, "learn", "train", *words)
        return done.returncode, done.stdout + done.stderr

    run("teach solutions .")
    status, out = trained()
    assert status == 0 and "all 14 losses equal the reference's" in out
    chosen = [e for e in ALL.values() if e.id.startswith("one-file")]
    texts = {e.file: e.student_file(solved=True) for e in chosen}
    folder(workspace, {"pasted.py": "\n".join(texts.values())})
    status, out = trained("pasted.py")  # imports replace the functions above them
    assert status == 2 and "nearest is minilora's" in out
    folder(workspace, {"one_file_mlp.py": texts["one_file_mlp.py"].replace("* up,", "* up / 2,")})
    status, out = trained()
    assert status == 1 and "the loss of step 1 is the first that differs" in out
    assert re.findall(r"to blame: (\S+):", out) == ["one-file-mlp"]
    lines = [line for e in chosen for line in e.imports]
    lines += [exercises.functions(e.text, [e.name]) for e in chosen]
    mine = "\n".join(lines).replace("ALPHA / RANK", "ALPHA")
    folder(workspace, {"elsewhere/mine.py": mine, "mine.py": ""})  # another file of this name
    _, out = trained("elsewhere/mine.py")  # not those that call it
    assert re.findall(r"to blame: (\S+):", out) == ["one-file-linear"]
