"""The command line: arguments, commands, and the folder of a training run.

Read `run.py` first: it contains all that `minilora train` does, from the first check to the end.
"""

import os
import re
import signal
import sys
import threading
from contextlib import contextmanager

from ..config import InputError
from ..course import commands as course_commands
from . import commands
from .arguments import COURSE, FLAGS, Parser, parse


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 for an error, 130 or 143 if interrupted."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it, as `>&-` in a shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the end)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an ASCII terminal shows escapes
            stream.reconfigure(errors="backslashreplace")
    terminated: list = []
    try:
        with interruptible(terminated, for_good=argv is None):
            status = dispatch(sys.argv[1:] if argv is None else argv) or 0
            sys.stdout.flush()
            return 143 if terminated else status
    except InputError as error:
        return report_error(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit must not fail
        return report_error("the output cannot be written: its reader closed the pipe")
    except OSError as error:
        name = error.filename or "a file"
        return report_error(f"{name} cannot be used: {error.strerror or error}")
    except (MemoryError, RecursionError) as error:
        return report_error(f"{type(error).__name__}: too large for this machine ({error})")
    except KeyboardInterrupt as error:
        print(str(InputError(error)) or "interrupted", file=sys.stderr)
        return 143 if terminated else 130


def dispatch(argv):
    """Run the command that `argv` names; return the exit status, or None for 0."""
    if "\0" in "".join(argv):
        raise InputError("an argument has a NUL character: remove it")
    if argv[:1] and argv[0] in COURSE:
        top = Parser(prog="minilora")
        course_commands.add_commands(top)
        return course_commands.run(top.parse_args(argv))
    args = parse(argv)
    return getattr(commands, args.command)(args)


def report_error(error):
    """Print an error as one line on standard error, with flags; return the exit status."""
    text = re.sub(r"`(\w+)`", lambda name: FLAGS.get(name[1], name[0]), str(InputError(error)))
    print(f"error: {text}", file=sys.stderr)
    return 2


@contextmanager
def interruptible(terminated, for_good):
    """Turn the first SIGINT or SIGTERM in the block into KeyboardInterrupt, on the main thread.

    SIGTERM is appended to `terminated`. With `for_good`, both signals are ignored after the block.
    """
    raised: list = []

    def interrupt(number, frame):
        if not raised:
            raised.append(number)
            raise KeyboardInterrupt

    def terminate(number, frame):
        terminated.append(number)
        handler = signal.getsignal(signal.SIGINT)  # `kernels.threads` has its own
        (handler if callable(handler) else interrupt)(number, frame)

    main = threading.current_thread() is threading.main_thread()
    before = {}
    try:
        for number, handler in ((signal.SIGINT, interrupt), (signal.SIGTERM, terminate)):
            if main and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_IGN if for_good else old)
