"""The course: each exercise is a function of minilora whose body the student writes.

Only the command line imports it. Read `exercises.py` first, then `outcome`, `student`, `judge`.
"""
