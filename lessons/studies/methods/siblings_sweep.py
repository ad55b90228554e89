"""Every method of `compare.py` on micro, at one budget: what it learns and what it forgets.

About twelve minutes of one core: 14 methods, five seeds, 200 steps each, scored on the test rows.
"""

from minilora.lessons.helpers.compare import TABLE, Job, run  # noqa: F401

JOBS = [Job(method, seed) for method in TABLE for seed in range(5)]
