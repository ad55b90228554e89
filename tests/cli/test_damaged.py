"""Damaged checkpoints, unusual names, an ASCII terminal, ends of commands, and interrupts."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from signal import SIG_IGN, SIGINT, SIGTERM, raise_signal
from unittest.mock import Mock

import pytest
from outcomes import error_of, run
from small_run import (
    at,
    exit_status,
    metrics,
    resume,
    training,
    write_rows,
)
from toy_models import change_tensors, files

from minilora import cli
from minilora.config import InputError
from minilora.formats.checkpoint import CHECKPOINT, RUN, read_metadata


@pytest.fixture
def sound(train, out):
    """The folder of a valid run, which a test may damage."""
    train()
    return out


def test_a_setting_of_another_type_in_a_checkpoint_is_refused_by_name(sound):
    """See also formats/test_checkpoint.py."""
    path = sound / CHECKPOINT
    state, facts = read_metadata(path)
    facts["settings"]["iters"] = "two"
    change_tensors(path, dict, **{RUN: json.dumps({"state": state, "facts": facts})})
    before = files(sound)
    assert str(path) in error_of(resume, sound)
    assert files(sound) == before


@pytest.mark.parametrize(
    "file, raw",
    [
        ("train_config.toml", b"block_size = 3\n"),
        ("adapter_model.safetensors", b"\xff" * 40),
        ("adapter_config.json", b'{"init_lora_weights": [[]]}'),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_written_again(sound, file, raw):
    (sound / file).write_bytes(raw)
    for words in (
        "evaluate --split valid --adapter-path",
        "merge --out never --adapter-path",
        "train --adapter-path never --init-adapter",
    ):
        assert file in error_of(run, words, sound)
    resume(sound)
    run("evaluate", *at(sound))


# ------------------------------------------------------------------------ the date, the terminal


def test_a_terminal_that_knows_only_ascii(base, tmp_path, monkeypatch):
    """Characters that the terminal lacks are printed as escapes."""
    row = {"prompt": "é 漢 \U0001f600", "completion": "ü→"}
    data = write_rows(tmp_path / "rows.jsonl", [row] * 20)
    out = tmp_path / 'a/ä\u2028"\\\x7f\U0001f600'
    monkeypatch.chdir(tmp_path)
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert cli.main(training(base, data, out)) == 0
    assert exit_status("generate --prompt é --max-tokens 9", *at(out)) == 0
    assert raw.getvalue().isascii() and rb"\xe9" in raw.getvalue()


def test_a_closed_standard_output_and_error(base, monkeypatch):
    """An error is not printed on standard output instead."""
    for stdout in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", None)
        assert exit_status("inspect --model nowhere") == 2
        assert not stdout or stdout.getvalue() == ""
        assert exit_status("inspect --model", base) == 0


def test_environment_variables_that_cannot_be_used(base, data, out):
    """A run reads, trains and draws; standard error names the variable, and has no traceback."""
    unusable = {
        "MPLBACKEND": "nonsense", "NUMBA_NUM_THREADS": "0", "TERM": "dumb", "COLUMNS": "x",
        "OMP_NUM_THREADS": "x", "HOME": "/dev/null", "MPLCONFIGDIR": "/dev/null",
        "NUMBA_CACHE_DIR": "/dev/null",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "minilora", *training(base, data, out, "--plain")],
        env={**os.environ, **unusable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "minilora computes without numba, which is slower" in done.stderr
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


# -------------------------------------------------------------- ends of commands, and interrupts


@pytest.fixture
def received(monkeypatch):
    """The signals that raised, of a process in which the command line runs."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = [(number, signal.getsignal(number)) for number in (SIGINT, SIGTERM)]
    yield cli.interrupt_once()
    for number, handler in before:
        signal.signal(number, handler)


ENDS = [  # what a command raises, the exit status, what is printed
    (None, 0, ""),
    (SystemExit(0), 0, ""),
    (SystemExit(2), 2, ""),
    (InputError("`lora_r` is odd"), 2, "error: --lora-r is odd\n"),
    (OSError(errno.EACCES, "No", "a\nb"), 2, "error: a\\nb cannot be used: No\n"),
    (OSError("at sea"), 2, "error: a file cannot be used: at sea\n"),
    (RecursionError("deep"), 2, "error: RecursionError: too large for this machine"),
    (BrokenPipeError(), 2, "error: the output cannot be written: its reader closed"),
    (KeyboardInterrupt("stopped: a\nb"), 130, "stopped: a\\nb\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
]


@pytest.mark.parametrize("raised, status, printed", ENDS)
def test_every_end_of_a_command_has_its_status_and_line(
    monkeypatch, capsys, raised, status, printed
):
    """Only a command without an error waits for other processes."""
    finished, redirected = [], []

    def dispatch(argv):
        warnings.warn("a message to programmers", DeprecationWarning, stacklevel=1)
        for _ in range(2):  # the rows to train on and the held-out rows can give the same one
            warnings.warn("too long", stacklevel=1)
        if raised:
            raise raised

    monkeypatch.setattr(cli, "dispatch", dispatch)
    monkeypatch.setattr(cli.processes, "finish", lambda: finished.append(True))
    monkeypatch.setattr(os, "dup2", lambda _, file: redirected.append(file))
    try:
        with warnings.catch_warnings(action="ignore"):  # as Python does outside of tests
            found = cli.main(["evaluate"])
    except SystemExit as end:
        found = end.code
    assert (found, bool(finished)) == (status, status == 0)
    said = capsys.readouterr().err.removeprefix(2 * "warning: too long\n")
    assert said.startswith(printed) and bool(said) == bool(printed)
    # otherwise, Python would write the rest of its buffer to the closed pipe, which raises
    assert redirected == [1] * isinstance(raised, BrokenPipeError)


def test_an_error_of_the_last_write_has_its_status_and_line(monkeypatch, capsys):
    """Python writes the end of the output when the command is done; the disk may be full then."""
    full = OSError(errno.ENOSPC, "No space")
    monkeypatch.setattr(sys, "stdout", Mock(flush=Mock(side_effect=full)))
    monkeypatch.setattr(cli, "dispatch", Mock(return_value=None))
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err == "error: a file cannot be used: No space\n"


def test_the_status_is_that_of_the_first_signal_and_the_end_ignores_further_ones(monkeypatch):
    ignored = []
    monkeypatch.setattr(cli, "interrupt_once", lambda: [SIGTERM, SIGINT])
    monkeypatch.setattr(cli, "dispatch", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(signal, "signal", lambda *change: ignored.append(change))
    assert cli.main() == 143
    # SIGTERM first, because its handler calls that of SIGINT
    assert ignored == [(number, SIG_IGN) for number in (SIGTERM, SIGINT)]


def test_sigterm_calls_the_handler_that_sigint_has_now(received):
    """While threads compute, SIGINT has another handler; see kernels/threads.py."""
    handler = Mock()
    signal.signal(SIGINT, handler)
    with suppress(KeyboardInterrupt):  # which the earlier handler raises
        raise_signal(SIGTERM)
    handler.assert_called_once()
    assert received == []


def test_any_other_exception_that_python_drops_is_shown(received, monkeypatch):
    monkeypatch.setattr(sys, "__unraisablehook__", Mock())
    sys.unraisablehook(Mock(exc_type=ValueError))
    sys.__unraisablehook__.assert_called_once()


def test_a_dropped_signal_is_repeated_at_once_unless_the_run_has_ended(received, monkeypatch):
    """After the end, the thread that repeats it would not let the process end."""
    monkeypatch.setattr(cli.threading, "Timer", Mock())
    monkeypatch.setattr(cli.time, "sleep", lambda _: pytest.fail("the thread waits"))
    with pytest.raises(KeyboardInterrupt):
        raise_signal(SIGTERM)
    sys.unraisablehook(Mock(exc_type=KeyboardInterrupt))
    _, repeat = cli.threading.Timer.call_args.args
    with pytest.raises(KeyboardInterrupt):
        repeat()
    signal.signal(SIGTERM, SIG_IGN)
    repeat()


def test_further_signals_are_ignored_while_the_run_ends(received, monkeypatch):
    clock = iter((0.0, cli.PATIENCE / 2, cli.PATIENCE, cli.PATIENCE + 1))
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        raise_signal(SIGTERM)
    raise_signal(SIGINT)
    with pytest.raises(KeyboardInterrupt):
        raise_signal(SIGINT)
    raise_signal(SIGINT)
    assert received == [SIGTERM, SIGINT]


@pytest.mark.parametrize("number, seconds", [(SIGINT, 0), (SIGTERM, 0.1)])
def test_a_signal_whose_exception_python_drops_is_repeated(
    received, capsys, monkeypatch, number, seconds
):
    """Python drops an exception that is raised in a `__del__` or in a callback of weakref.

    It also drops one that is raised while it tells of that. A busy machine takes long to do so.
    """

    class Timer(threading.Timer):
        def start(self):
            super().start()
            time.sleep(seconds)

    monkeypatch.setattr(cli.threading, "Timer", Timer)

    class Held:
        def __del__(self):
            raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        Held()  # freed at once
        for _ in range(1000):
            time.sleep(0.01)
    assert received == [number, number] and not capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(base, data, out):
    """Further signals during the handling of the first cause no traceback and damage no file."""
    words = training(base, data, out, "--iters 99999 --save-every 1")
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "train_config.toml").exists():
        assert process.poll() is None
        time.sleep(0.01)
    while process.poll() is None:
        process.terminate()
        time.sleep(0.002)
    errors = process.stderr.read()
    assert process.returncode == 143 and "Traceback" not in errors, errors
    assert errors.count("\n") == 1
    assert errors.endswith(f"minilora train --resume --adapter-path {out}`\n")
    assert not list(out.glob("*.tmp")) and not (out / ".lock").exists()
    step = read_metadata(out / CHECKPOINT)[0]["step"]
    # step 0 is the evaluation before the first step
    assert {row["step"] for row in metrics(out)} == set(range(step + 1))
