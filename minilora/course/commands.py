"""Define the flags of `minilora learn` and `minilora teach`, and run the chosen command."""

import importlib
import os

from ..config import InputError

SEED = "MINILORA_GRADING_SEED"  # environment variable: the seed of the hidden checks


def run(args):
    """Run `learn …` or `teach …`; return the exit status, or None for 0."""
    from .students import exercises

    if not __debug__:
        raise InputError(f"{args.module} needs assertions: leave out -O and PYTHONOPTIMIZE")
    place = "students" if args.module == "learn" else "teachers"
    module = importlib.import_module(f".{place}.{args.module}", __package__)
    exercises.FOLDER = args.exercises
    return getattr(module, f"do_{args.command}")(args)


def add_commands(top):
    """Add `learn` and `teach` with their commands to an argument parser."""

    def add(commands, name, text):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if commands is not modules:
            text = "a folder with exercises.toml and its Python files; default: the built-in ones"
            command.add("--exercises", text, metavar="DIR")
        return command

    modules = top.add_subparsers(dest="module", required=True)
    learn = add(modules, "learn", "solve exercises in a folder of plain files")
    commands = learn.add_subparsers(dest="command", required=True)
    init = add(commands, "init", "make a workspace, or add the files that a workspace lacks")
    init.add("folder", "default: the current folder", nargs="?", default=".", metavar="DIR")
    add(commands, "list", "list the exercises and your progress")
    add(commands, "next", "name the next exercise and its lesson")
    check = add(commands, "check", "check one exercise, or all that you have begun")
    check.add("id", "an exercise; default: all begun ones", nargs="?", metavar="ID")
    check.add("--call", "check only this call, in this process", metavar="CALL")
    train = add(commands, "train", "train lesson 0 with your own functions")
    train.add("file", "one with all functions; default: all one_file_*.py", nargs="?")
    hint = add(commands, "hint", "show one of three hints, from gentle to plain")
    hint.add("id", "an exercise", metavar="ID")
    hint.add("number", "1, 2 or 3; default: 1", type=int, nargs="?", choices=(1, 2, 3), default=1)

    teach = add(modules, "teach", "grade exercises")
    commands = teach.add_subparsers(dest="command", required=True)
    grade = add(commands, "grade", "grade folders or zip files that students handed in")
    grade.add("submissions", "folders or zip files", nargs="+", metavar="SUBMISSION")
    grade.add("--out", "a new folder for tables and feedback", metavar="DIR")
    grade.add("--jobs", "submissions graded at the same time", type=int, default=1)
    text = f"seed of the hidden checks; keep it private; default: ${SEED} or a random one"
    grade.add("--seed", text, type=int, default=os.environ.get(SEED))
    text = "prove that stubs fail, references pass and mistakes are recognized"
    prove = add(commands, "check", text)
    solutions = add(commands, "solutions", "write the solved files")
    solutions.add("folder", "a folder, which may exist", metavar="DIR")
    for command in (init, grade, prove, solutions):
        command.add("--only", "use only these exercises; default: all", nargs="+", metavar="ID")
