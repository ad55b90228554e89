"""The course: exercises that are the reference itself, with their bodies taken out.

Nothing of minilora imports this package (the command line does, when `learn` or `teach` is asked
for). Read `exercises`, `source`, `outcome`, `judge`: what an exercise is, how its stub and its
planted mistakes are made from the source, how two answers are compared, how one is judged.
`worker` and `student` run a student's file in a process of its own; `workspace`, `learn`, `teach`
and `report` are the two commands.
"""


def debug(path):
    """Check the exercise file at `path` in this process, so that breakpoints in it are met."""
    from . import learn

    learn.debug(path)
