"""Draw the drawings of the lessons and the README. Their numbers come from the package.

python -m lessons.book.drawings            # writes figures/drawings/*.svg
python -m lessons.book.drawings masks      # only one of them
"""

import sys

from lessons.book.drawings import (  # noqa: F401  each module adds its drawings to DRAWINGS
    cheat_sheet,
    decisions,
    few_bits,
    low_rank,
    model,
    path,
    training,
)
from lessons.book.drawings.elements import DRAWINGS, save

for name in sys.argv[1:] or DRAWINGS:
    save(name)
