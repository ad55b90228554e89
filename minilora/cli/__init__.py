"""The command line: arguments, commands, and the folder that a training run leaves.

Read `run.py` first: it is what `minilora train` does, from the first check to the last file.
"""

import sys
from functools import cache

from numba.core import event

from .. import model, nn
from ..config import InputError
from ..course import commands as course_commands
from . import commands
from .arguments import COURSE, Parser, parse


def main(argv=None):
    """Run one command; returns the exit status, 0 or 2."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] and argv[0] in COURSE:
            top = Parser(prog="minilora")
            course_commands.add_commands(top)
            return course_commands.run(top.parse_args(argv))
        args = parse(argv)
        say_when_compiling()
        with model.operations(nn if getattr(args, "plain", False) else model.OPS):
            getattr(commands, args.command)(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 2
    return 0


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
