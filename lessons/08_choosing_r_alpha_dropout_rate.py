# %% [markdown]
# # 8. Choosing r, alpha, dropout and the learning rate
#
# **The question.** Four numbers stand in every recipe: r from 8 to 64, alpha = r or 2r, dropout
# 0.05 or 0.1, a learning rate. Which of them matter, and which are the same knob twice?
#
# Every curve below is a sweep over seeds on `micro`, 200 steps of 8 rows of the questions, all
# seven matrices unless it says otherwise. What a sweep shows is true of this base and this task.
# The way to find out for yours is the same.
#
# Time: about half a minute. You need: lesson 0; lesson 3 for what a rank is.

# %%
import sys

import numpy as np
from common import QUICK, SWEEPS, figure, finetune, read_sweep, short, table

import minilora
from minilora import LoraConfig, TrainConfig, data, lora, plot
from minilora.tree import flatten, tree_map

sys.path.insert(0, str(SWEEPS))
import dropout  # the sweep's own noisy labels and runs


def losses(rows, **fields):
    """The held-out losses of the sweep's rows that have these fields, one a seed."""
    return np.array(
        [row["loss"] for row in rows if all(row[key] == value for key, value in fields.items())]
    )


def cell(values):
    """The mean and the least and most of a few seeds."""
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
