"""The command line: arguments, commands, and the folder that a training run leaves.

Read `run.py` first: it is what `minilora train` does, from the first check to the last file.
"""

from .arguments import main

__all__ = ["main"]
