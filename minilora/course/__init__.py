"""The course: exercises that are the reference itself, with their bodies taken out.

The rest of minilora does not import this package; the command line does, for `learn` and `teach`.
In order of reading: `exercises` and `source` make stubs and planted mistakes from the source,
`outcome` records and compares answers, `judge` judges them, `student` is a student's process,
`learn` and `teach` are the commands, and `proof` proves the set of exercises.
"""


def debug(path):
    """Check the exercise file at `path` in this process, so that breakpoints in it are met."""
    from . import learn

    learn.debug(path)
