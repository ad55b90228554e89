"""Draw the drawings of the lessons and the README. Their numbers come from the package.

python -m lessons.book.drawings            # writes figures/drawings/*.svg
python -m lessons.book.drawings masks      # only one of them
"""

import sys

from lessons.book.drawings import (
    few_bits,  # noqa: F401  each module adds its drawings to DRAWINGS
    low_rank,  # noqa: F401
    optimizer,  # noqa: F401
    outcomes,  # noqa: F401
    training,  # noqa: F401
)
from lessons.book.drawings.elements import DRAWINGS, save

for name in sys.argv[1:] or DRAWINGS:
    save(name)
