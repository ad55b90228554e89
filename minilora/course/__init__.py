"""The course: each exercise is a function of minilora whose body the student writes.

The rest of minilora does not import this package; the command line does, for `learn` and `teach`.
Read `exercises.py` first, then `outcome`, `student`, `judge`, `learn`, `teach`, `report`.
"""
