"""The student's side of a check: a process that loads one file and answers calls.

    python -m minilora.course.worker SECONDS

Requests come through what was standard input, answers leave through what was standard output;
both are then closed to the student's code, whose own printing goes nowhere. The process is never
asked whether an answer is right, only for values, and never sees a seed or a right answer.
"""

import importlib
import os
import pickle
import struct
import sys

from .. import kernels
from .exercises import load_file
from .frames import frame
from .outcome import Crash
from .subject import Local, crash

STARTING = 10  # seconds of CPU time for importing minilora, beside the student's
MEMORY = 4 * 2**30  # bytes of address space
FILE = 64 * 2**20  # bytes of a file


def main():
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    limit(int(float(sys.argv[1])) + STARTING)
    subject = None
    while True:
        request = receive(requests)
        if request is None:
            return
        if request[0] == "load":
            subject, answer = loaded(*request[1:])
        elif request[0] == "hello":
            answer = ("ready",)
        else:
            answer = answered(subject, *request)
        send(replies, *answer)


def limit(seconds):
    """Bound the process's time, memory and files, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (("CPU", seconds), ("AS", MEMORY), ("FSIZE", FILE)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
        except (ValueError, OSError, AttributeError):  # already lower, or not for this system
            continue


def loaded(path, name, written):
    """(Local, answer) of the student's file; `written`, (module, names), is out of its reach."""
    module, names = written
    for written_name in names:
        own = getattr(importlib.import_module(module), written_name, None)
        for place in [m for name_, m in sys.modules.items() if name_.startswith("minilora")]:
            found = getattr(place, written_name, None)
            # wherever it was imported to, and its twin in the engine
            twin = found is not None and place.__name__.startswith(kernels.__name__)
            if own is not None and (found is own or twin):
                setattr(place, written_name, _refusing(written_name))
    try:
        function = getattr(load_file(path, "submission"), name, None)
    except BaseException as error:
        return None, ("crash", *_told(crash(error, (path,))))
    if function is None:
        return None, ("crash", "NameError", f"it has no function {name}")
    return Local(function, (path,)), ("loaded",)


def _refusing(name):
    def refuse(*_, **__):
        raise RuntimeError(f"the exercise is to write {name}, not to call minilora's")

    return refuse


def answered(subject, kind, *rest):
    """The answer to a `call` with its arguments, or to a `check` of a source."""
    try:
        if kind == "call":
            return "value", *subject.call(*rest)
        raised = subject.check(*rest)
        return ("crash", *_told(raised)) if raised else ("passed",)
    except Crash as error:
        return "crash", *_told(error)


def _told(error):
    return error.kind, error.text[:2000]


def send(file, *answer):
    """The answer as a frame; one that says so where it cannot be pickled."""
    try:
        data = pickle.dumps(answer)
    except Exception as error:
        data = pickle.dumps(("crash", "TypeError", f"TypeError: the result is no data: {error}"))
    frame(file, data)


def receive(file):
    """A request, from the trusted side; None at the end."""
    head = file.read(8)
    return pickle.loads(file.read(struct.unpack("<Q", head)[0])) if len(head) == 8 else None


if __name__ == "__main__":
    main()
