"""The command line: arguments, commands, and the folder that a training run leaves.

Read `run.py` first: it is what `minilora train` does, from the first check to the last file.
"""

import os
import signal
import sys
import threading
from contextlib import contextmanager
from functools import cache

from numba.core import event

from ..config import InputError
from ..course import commands as course_commands
from . import commands
from .arguments import COURSE, Parser, parse


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): the same as Ctrl-C, with another exit status."""


def main(argv=None):
    """Run one command; return the exit status: 0, 2 for an error, 130 or 143 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows only ASCII shows escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            return dispatch(sys.argv[1:] if argv is None else argv) or 0
    except InputError as error:
        return failed(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads what is still to be flushed
        return failed("nobody reads the output: the pipe is closed")
    except OSError as error:
        return failed(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")
    except (MemoryError, RecursionError) as error:
        return failed(f"{type(error).__name__}: too large for this machine ({error})")
    except KeyboardInterrupt as error:
        print(str(InputError(error)) or "interrupted", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def dispatch(argv):
    """Run the command that the words in `argv` name; its exit status, or None for 0."""
    if argv[:1] and argv[0] in COURSE:
        top = Parser(prog="minilora")
        course_commands.add_commands(top)
        return course_commands.run(top.parse_args(argv))
    args = parse(argv)
    say_when_compiling()
    return getattr(commands, args.command)(args)


def failed(error):
    """Print what went wrong as one line on standard error; return the exit status."""
    print(f"error: {InputError(error)}", file=sys.stderr)
    return 2


@contextmanager
def interruptible():
    """Turn SIGTERM into Terminated inside the block, where this is the main thread."""

    def terminate(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@cache
def say_when_compiling():
    """Print one line when a loop is first compiled, and not when it comes from the cache."""

    class Listener(event.Listener):
        def on_start(self, event_):
            event.unregister("numba:compile", self)
            text = "minilora: compiling kernels, once for this machine"
            print(text, file=sys.stderr, flush=True)

        def on_end(self, event_):
            pass

    event.register("numba:compile", Listener())
