"""Define the flags of `minilora learn` and `minilora teach`, and run the chosen command."""

import argparse
import importlib
import os

SEED = "MINILORA_GRADING_SEED"  # environment variable: the seed of the hidden checks


def run(args):
    """Run `learn …` or `teach …`; return the exit status."""
    module = importlib.import_module(f".{args.module}", __package__)
    return getattr(module, f"do_{args.command}")(args) or 0


def flag(name, text, **options):
    """Make a parent parser with one argument."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(name, help=text, **options)
    return parser


def add_commands(top):
    """Add `learn` and `teach` with their commands to an argument parser."""
    only = flag("--only", "use only these exercises; default: all", nargs="+", metavar="ID")
    text = f"seed of the hidden checks; keep it private; default: ${SEED} or a random one"
    seed = flag("--seed", text, type=int, default=os.environ.get(SEED))
    folder = flag("folder", "default: the current folder", nargs="?", default=".", metavar="DIR")
    any_id = flag("id", "an exercise; default: all begun ones", nargs="?", metavar="ID")
    which = {"type": int, "nargs": "?", "choices": (1, 2, 3), "default": 1, "metavar": "NUMBER"}
    number = flag("number", "1, 2 or 3; default: 1", **which)
    submissions = flag("submissions", "folders or zip files", nargs="+", metavar="SUBMISSION")
    out = flag("--out", "a new folder for tables and feedback", metavar="DIR")
    jobs = flag("--jobs", "submissions graded at the same time", type=int, default=1)
    learn = {
        "init": ("make a workspace, or add the files that a workspace lacks", folder, only),
        "list": ("list the exercises and your progress",),
        "next": ("name the next exercise and its lesson",),
        "check": ("check one exercise, or all that you have begun", any_id),
        "hint": (
            "show one of three hints, from gentle to plain",
            flag("id", "an exercise", metavar="ID"),
            number,
        ),
    }
    text = "grade folders or zip files that students handed in"
    teach = {
        "grade": (text, submissions, out, jobs, only, seed),
        "check": ("prove that stubs fail, references pass and mistakes are recognized", only),
    }
    modules = top.add_subparsers(dest="module", required=True)
    for module, text, table in (
        ("learn", "Solve exercises in a folder of plain files.", learn),
        ("teach", "Grade exercises.", teach),
    ):
        parser = modules.add_parser(module, description=text)
        commands = parser.add_subparsers(dest="command", required=True)
        for name, (about, *parents) in table.items():
            options = {"description": about, "allow_abbrev": False, "parents": parents}
            commands.add_parser(name, help=about, **options)
