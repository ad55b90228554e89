"""Run sweeps: each writes the CSV of its name.

python -m lessons.helpers.sweep alpha rank    # all runs of these two sweeps
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lessons.helpers.sweep import write

if __name__ == "__main__":  # each process imports this file again
    for name in sys.argv[1:]:
        write(name)
