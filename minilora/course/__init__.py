"""The course: exercises that are the reference itself, with their bodies taken out.

The rest of minilora does not import this package; the command line does, for `learn` and `teach`.
Read `exercises.py` first, then `calls`, `outcome`, `student`, `judge`, `learn`, `teach`, `report`.
"""
