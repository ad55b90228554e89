# %% [markdown]
# # Paged optimizers
#
# **The question.** QLoRA's third part, paged optimizers, keeps Adam's averages where memory is
# larger and slower. Can a step need more memory than there is, and what does that cost?
#
# **Continues:** [lesson 6](../../06_where_the_memory_goes.py).
#
# **Time:** half a minute to run, five minutes to read. **You need:** lesson 6. It runs on Linux.

# %%
import subprocess
import sys

import numpy as np

from minilora.lessons.helpers.common import table
from minilora.lessons.helpers.paged import NUMBERS

# %% [markdown]
# ## A step that does not fit
#
# On a GPU, the averages of a paged optimizer are in memory that the driver moves to the CPU, page
# by page, when the GPU has no room, and back when they are used (QLoRA, Sec. 3). On a CPU, a file
# can play the part of the larger memory: `numpy.memmap` is an array whose pages are those of a
# file. The system keeps them in memory while there is room, writes them out when there is none, and
# reads them when they are used.
#
# A process trains 40 million numbers with Adam, a million at a time. It may allocate 400 MB.
#
# **Predict.** The weights take 160 MB. Does a step fit, with the averages in memory? With the
# averages in a file? And how much longer does a step take if the file's pages never stay in memory?


# %%
def steps(where, limit):
    """Return (seconds of each of three steps, the last weights), or None without memory for it."""
    command = [sys.executable, "-m", "minilora.lessons.helpers.paged", where, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "MemoryError" in done.stderr:
        return None
    *seconds, weights = done.stdout.splitlines()
    return [float(x) for x in seconds], weights


CASES = {
    "in memory, at most 2,000 MB": ("memory", 2000),
    "in memory, at most 400 MB": ("memory", 400),
    "in a file, at most 400 MB": ("file", 400),
    "in a file, all pages written and read": ("evicted", 400),
}
results = {name: steps(*case) for name, case in CASES.items()}
cells = []
for name, found in results.items():
    seconds = f"{np.median(found[0]):.2f}" if found else "no memory"
    cells.append([name, seconds])
print(f"weights {4 * NUMBERS / 1e6:.0f} MB, averages {8 * NUMBERS / 1e6:.0f} MB")
table(["Adam's averages", "seconds per step"], cells)

# %% [markdown]
# **Answer.** With the averages in memory, a step needs 480 MB and does not fit. In a file, it does,
# and the weights after three steps are the same to the last bit. As long as the file's pages stay
# in memory, a step takes about as long. If each page is written and read once per step, it takes
# longer by the time of the disk: on the machine of this page, as the table says.
#
# So paging is no compression. It helps for a moment, as when one long batch needs the room: the
# averages are used only once per step, and a LoRA has few of them.
#
# ## What was shown
#
# A step of Adam can need more memory than there is, if its averages are in pages that can be
# written out. The result is the same; the price is the transfer.
#
# **What to try.**
#
# 1. `("file", 400)`: which limit is too low even for the file?
# 2. `CHUNK` in `helpers/paged.py`: use 100,000. Which step becomes slower?
#
# **Further reading.** QLoRA, Sec. 3: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

# %%
# Checks
whole, too_small, in_file, evicted = results.values()
assert too_small is None, "160 MB and 320 MB must not fit into 400 MB"
assert whole and in_file and evicted, "the others must fit"
assert whole[1] == in_file[1] == evicted[1], "the weights must be the same, to the last bit"
