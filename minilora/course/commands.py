"""Define the flags of `minilora learn` and `minilora teach`, and run the chosen command."""

import argparse
import importlib
import os

SEED = "MINILORA_GRADING_SEED"  # environment variable: the seed of the hidden checks


def run(args):
    """Run `learn …` or `teach …`; return the exit status."""
    module = importlib.import_module(f".{args.module}", __package__)
    return getattr(module, f"do_{args.command}")(args) or 0


def add_commands(top):
    """Add `learn` and `teach` with their commands to an argument parser."""
    modules = top.add_subparsers(dest="module", required=True)
    learn = modules.add_parser("learn", description="Solve exercises in a folder of plain files.")
    commands = learn.add_subparsers(dest="command", required=True)
    shared, only, seed = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    shared.add_argument("--dir", default=".", help="the workspace; default: the current folder")
    text = "use only these exercises; default: all"
    only.add_argument("--only", nargs="+", metavar="ID", help=text)
    text = f"seed of the hidden checks; keep it private; default: ${SEED} or a random one"
    seed.add_argument("--seed", type=int, default=os.environ.get(SEED), help=text)

    def command(name, text, *parents):
        texts = {"help": text, "description": text}
        return commands.add_parser(name, **texts, allow_abbrev=False, parents=parents)

    sub = command("init", "make a workspace, or add the files that a workspace lacks", only)
    text = "the workspace; default: the current folder"
    sub.add_argument("folder", metavar="DIR", nargs="?", default=".", help=text)
    command("list", "list the exercises and your progress", shared)
    command("next", "name the next exercise and its lesson", shared)
    sub = command("check", "check one exercise, or all that you have begun", shared)
    text = "an exercise; default: all that you have begun"
    sub.add_argument("id", metavar="ID", nargs="?", help=text)
    command("watch", "check each file when it changes", shared)
    sub = command("hint", "show one of three hints, from gentle to plain", shared)
    sub.add_argument("id", metavar="ID", help="an exercise")
    which = {"type": int, "choices": (1, 2, 3), "default": 1, "help": "1, 2 or 3; default: 1"}
    sub.add_argument("number", metavar="NUMBER", nargs="?", **which)

    teach = modules.add_parser("teach", description="Grade exercises.")
    commands = teach.add_subparsers(dest="command", required=True)
    sub = command("grade", "grade folders or zip files that students handed in", only, seed)
    text = "a folder or a zip file"
    sub.add_argument("submissions", metavar="SUBMISSION", nargs="+", help=text)
    sub.add_argument("--out", metavar="DIR", help="a new folder for tables, a figure and feedback")
    sub.add_argument("--jobs", type=int, default=1, help="submissions graded at the same time")
    sub.add_argument("--user", help="run the students' code as this user (needs root)")
    sub = command("autograder", "write a zip file for Gradescope", only, seed)
    sub.add_argument("--out", required=True, metavar="FILE", help="a zip file, which is replaced")
    command("check", "prove that stubs fail, references pass and mistakes are recognized", only)
