"""Draw the drawings of the lessons and the README. Their numbers come from the package.

python -m lessons.book.drawings            # writes figures/drawings/*.svg
python -m lessons.book.drawings masks      # only one of them
"""

import sys

import few_bits  # noqa: F401  each module adds its drawings to DRAWINGS
import low_rank  # noqa: F401
import optimizer  # noqa: F401
import outcomes  # noqa: F401
import training  # noqa: F401
from elements import DRAWINGS, save

for name in sys.argv[1:] or DRAWINGS:
    save(name)
