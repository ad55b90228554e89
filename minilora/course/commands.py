"""Add the flags of `minilora learn` and `minilora teach`, and run the command that was chosen."""

import argparse
import importlib


def run(args):
    """Run `learn …` or `teach …`; return the exit status."""
    room = importlib.import_module(f".{args.room}", __package__)
    return getattr(room, f"do_{args.command}")(args) or 0


def add_commands(top):
    """Add `learn` and `teach` with their commands to an argument parser."""
    rooms = top.add_subparsers(dest="room", required=True)
    learn = rooms.add_parser("learn", description="Solve exercises in a folder of plain files.")
    teach = rooms.add_parser("teach", description="Hand out exercises, and grade them.")
    commands = learn.add_subparsers(dest="command", required=True)
    shared, only, seed = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    shared.add_argument("--dir", default=".", help="the workspace; default: the current folder")
    only.add_argument("--only", nargs="+", metavar="ID", help="these exercises alone")
    seed.add_argument("--seed", type=int, help="of the hidden checks; keep it private")

    def command(name, text, *parents):
        return commands.add_parser(
            name, help=text, description=text, allow_abbrev=False, parents=parents
        )

    sub = command("init", "make a workspace, or add what is missing in one")
    sub.add_argument("folder", metavar="DIR", nargs="?", default=".")
    command("list", "all exercises and how far they are", shared)
    command("next", "an exercise that can be begun now, and its lesson", shared)
    sub = command("check", "check one exercise, or all that are begun", shared)
    sub.add_argument("id", metavar="ID", nargs="?")
    sub = command("watch", "check each file when it changes", shared)
    sub.add_argument("--interval", type=float, default=0.5, help="seconds between two looks")
    command("hint", "the next of three hints", shared).add_argument("id", metavar="ID")

    commands = teach.add_subparsers(dest="command", required=True)
    sub = command("build", "a folder for students: stubs and a table of them", only)
    sub.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    sub = command("grade", "grade folders or zip files that were handed in", only, seed)
    sub.add_argument("submissions", metavar="SUBMISSION", nargs="+")
    sub.add_argument("--out", metavar="DIR", help="a new folder: tables, a picture, feedback")
    sub.add_argument("--jobs", type=int, default=1, help="submissions graded at the same time")
    sub.add_argument("--user", help="run students' code as this user (only root can)")
    sub = command("autograder", "a zip file that Gradescope runs", only, seed)
    sub.add_argument("--out", required=True, metavar="FILE")
    command("check", "prove the set: stubs fail, references pass, mistakes are told apart", only)
