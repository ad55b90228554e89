"""The course: exercises that are the reference itself, with their bodies taken out.

The rest of minilora does not import this package; the command line does, for `learn` and `teach`.
Read `exercises.py` first, then `outcome`, `student`, `judge`, `learn` and `teach`.
"""


def debug(path):
    """Check the exercise file at `path` in this process, so that breakpoints in it are met."""
    from . import learn

    learn.debug(path)
