"""The course: exercises that are the reference itself, with their bodies taken out.

Nothing of minilora imports this package (the command line does, when `learn` or `teach` is asked
for). Read `exercises`, `source`, `outcome`, `judge`, `diagnosis`: what an exercise is, how its stub
and its planted mistakes are made from the source, how two answers are compared, how one is judged,
how a mistake is recognised. `student` and `worker` are the two ends of a student's process;
`workspace` and `learn` are one command, `handout`, `report`, `proof` and `teach` the other.
"""


def debug(path):
    """Check the exercise file at `path` in this process, so that breakpoints in it are met."""
    from . import learn

    learn.debug(path)
