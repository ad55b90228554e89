"""The command line: arguments, commands, and the folder of a training run.

Read `run.py` first: it contains all that `minilora train` does, from the first check to the end.
"""

import gc
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from typing import Any

from ..config import InputError
from ..course import commands as course_commands
from ..data.rows import warn
from . import commands, processes
from .arguments import COURSE, Parser, check_line, flag, parse, parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 for an error, 130 or 143 if interrupted.

    `inspect` of an adapter with a fault, and some commands of the course, return 1.
    """
    for name in ("stdout", "stderr"):
        # None: the caller has closed it, as `>&-` in a shell
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (open until the end)
        setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):  # an ASCII terminal shows escapes
            stream.reconfigure(errors="backslashreplace")
    received = []
    if argv is None:
        received = interrupt_once()
        # imports and compilation make objects that live to the end, and the collector visits them
        # again and again: with Python's own threshold, it takes 7 % of the start of a first run
        gc.set_threshold(200_000)
    try:
        with warnings.catch_warnings(action="always", category=UserWarning):
            warnings.showwarning = lambda message, *_: warn(with_flags(message))
            status = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        processes.finish()
        return status or 0
    except SystemExit as end:
        if not end.code:  # after --help
            processes.finish()
        raise
    except InputError as error:
        return report_error(error)
    except UnicodeDecodeError as error:
        return report_error(f"standard input is not {error.encoding}: convert the text")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit must not fail
        return report_error("the output cannot be written: its reader closed the pipe")
    except OSError as error:
        return report_error(
            f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
        )
    except (MemoryError, RecursionError) as error:
        return report_error(f"{type(error).__name__}: too large for this machine ({error})")
    except KeyboardInterrupt as error:
        if processes.rank() == 0:
            print(str(InputError(error)) or "interrupted", file=sys.stderr)
        return 128 + (received or [signal.SIGINT])[0]
    finally:
        if argv is None:  # no traceback between here and the end of the process
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # first: it calls the other's handler
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # otherwise the collector visits all objects once more: 0.4 s after a training run
            gc.freeze()


def dispatch(argv):
    """Run the command that `argv` names; return the exit status, or None for 0."""
    if processes.size() > 1 and argv[:1] != ["train"]:
        raise InputError("only `minilora train` uses several processes: leave out mpiexec")
    if argv and argv[0] in COURSE:
        top = Parser(prog="minilora")
        course_commands.add_commands(top)
        args = top.parse_args(argv)
        check_line(args, argv)
        return course_commands.run(args)
    processes.communicator()  # first: MPI ends all processes if one of them fails
    args = parse(argv)
    return getattr(commands, args.command)(args)


def report_error(error):
    """Print an error as one line on standard error; return the exit status."""
    place = ""
    if processes.rank():
        # most errors are those of all processes: process 0 reports it, and mpiexec ends the others
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
        place = f"process {processes.rank()}: "
    print(f"error: {place}{with_flags(InputError(error))}", file=sys.stderr)
    return 2


def with_flags(message):
    """Return a message of the core with the flags of the fields it names, as `learning_rate`."""

    def with_flag(name):
        setting = {"r": "lora_r", "scheme": "quantize"}.get(name[1], name[1])
        return flag(setting) if flag(setting) in parser().flags else name[0]

    return re.sub(r"`(\w+)`", with_flag, str(message))


PATIENCE = 10  # seconds


def interrupt_once():
    """Make the first SIGINT or SIGTERM raise KeyboardInterrupt, and ignore later ones for a while.

    In this time the run ends; after it, a signal raises again. Python drops an exception that is
    raised while it frees an object: the signal is then repeated at once. Returns a list, to which
    the signals that raise are added.
    """
    received: list = []
    last = -math.inf

    def interrupt(number, frame):
        nonlocal last
        now = time.monotonic()
        if now < last + PATIENCE or is_in_hook(frame):
            return
        last = now
        received.append(number)
        raise KeyboardInterrupt

    def terminate(number, frame):
        handler: Any = signal.getsignal(signal.SIGINT)  # for a while, that of `kernels.threads`
        handler(number, frame)

    def dropped(unraisable):
        if unraisable.exc_type is KeyboardInterrupt:
            threading.Timer(0.01, repeat).start()  # not here, where it would be dropped, too
        else:
            sys.__unraisablehook__(unraisable)

    def is_in_hook(frame):
        while frame and frame.f_code is not dropped.__code__:
            frame = frame.f_back
        return bool(frame)

    def repeat():
        nonlocal last
        raised = len(received)
        last = -math.inf
        # until it raises, which it does not in the hook, or until the run has ended
        while len(received) == raised and signal.getsignal(received[-1]) != signal.SIG_IGN:
            os.kill(os.getpid(), received[-1])
            time.sleep(0.01)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = dropped
    return received
