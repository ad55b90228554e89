"""The command line: arguments, commands, and the folder that a training run leaves.

Read `run.py` first: it is what `minilora train` does, from the first check to the last file.
"""

import os
import signal
import sys
import threading
import weakref
from contextlib import contextmanager
from functools import cache

from numba.core import event

from ..config import InputError, require
from ..course import commands as course_commands
from . import commands
from .arguments import COURSE, Parser, parse

_on_its_way: list = []  # a weak reference to the latest Interrupted


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. While one is on its way, other signals are ignored."""

    def __init__(self, *args):
        super().__init__(*args)
        _on_its_way[:] = [weakref.ref(self)]


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 for an error, 130 or 143 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows only ASCII shows escapes
            stream.reconfigure(errors="backslashreplace")
    terminated: list = []
    try:
        with interruptible(terminated, for_good=argv is None):
            status = dispatch(sys.argv[1:] if argv is None else argv) or 0
            sys.stdout.flush()
            return status
    except InputError as error:
        return report_error(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads what is still to be flushed
        return report_error("nobody reads the output: the pipe is closed")
    except OSError as error:
        name = error.filename or "a file"
        return report_error(f"{name} cannot be used: {error.strerror or error}")
    except (MemoryError, RecursionError) as error:
        return report_error(f"{type(error).__name__}: too large for this machine ({error})")
    except KeyboardInterrupt as error:
        print(str(InputError(error)) or "interrupted", file=sys.stderr)
        return 143 if terminated else 130


def dispatch(argv):
    """Run the command that the words in `argv` name; its exit status, or None for 0."""
    require("\0" not in "".join(argv), "an argument has a NUL character: no file's name has one")
    if argv[:1] and argv[0] in COURSE:
        top = Parser(prog="minilora")
        course_commands.add_commands(top)
        return course_commands.run(top.parse_args(argv))
    args = parse(argv)
    announce_compiling()
    return getattr(commands, args.command)(args)


def report_error(error):
    """Print what went wrong as one line on standard error; return the exit status."""
    print(f"error: {InputError(error)}", file=sys.stderr)
    return 2


@contextmanager
def interruptible(terminated, for_good):
    """Turn SIGINT and SIGTERM (noted in `terminated`) into Interrupted, on the main thread.

    for_good: the process ends after the block, so both are ignored from then on.
    """

    def interrupt(number, frame):
        if not any(ref() for ref in _on_its_way):
            raise Interrupted

    def terminate(number, frame):
        terminated.append(number)
        handler = signal.getsignal(signal.SIGINT)  # another one while `kernels.threads` computes
        (handler if callable(handler) else interrupt)(number, frame)

    main, before = threading.current_thread() is threading.main_thread(), {}
    try:
        for number, handler in ((signal.SIGINT, interrupt), (signal.SIGTERM, terminate)):
            if main and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_IGN if for_good else old)


@cache
def announce_compiling():
    """Print one line when a loop is first compiled, and not when it comes from the cache."""

    class Listener(event.Listener):
        def on_start(self, event_):
            event.unregister("numba:compile", self)
            text = "minilora: compiling kernels, once for this machine"
            print(text, file=sys.stderr, flush=True)

        def on_end(self, event_):
            pass

    event.register("numba:compile", Listener())
