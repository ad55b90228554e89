"""calibration: compare confidence with the share of right answers.

confidence (N,) is in (0, 1], and hit (N,) is True for right answers. Bin m of BINS = 15 has the
answers with (m − 1)/15 < confidence ≤ m/15, for m = 1 … 15. So the last bin contains confidence 1.
The gap of a bin is the share of hits minus the mean confidence. Return Σ over the bins of
(answers in the bin / N) · |gap|, a float.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"n": range(2, 41), "sure": [False, True], "ends": [False, True]}
HIDDEN = {"n": range(41, 201)}
ENDS = np.arange(1, 15) / 15


def arguments(rng, n, sure, ends):
    confidence = rng.uniform(0.01, 1, n)
    if ends:  # of bins that are the same number in any formula for them
        confidence[1::4] = rng.choice(ENDS, confidence[1::4].size)
    if sure:
        confidence[::2] = 1.0
    return confidence, rng.random(n) < 0.5


def tolerance(*_):
    """float64: sums of 200 numbers of at most 1."""
    return 2.0**-44


def property_all_in_one_bin(function, confidence, hit):
    """for equal confidences, it is their distance from the share of hits"""
    alike = np.full_like(confidence, 0.7)
    close(function(alike, hit), abs(hit.mean() - 0.7), 2.0**-44)


def property_sure_and_right(function, confidence, hit):
    """with confidence 1, it is 0 if all answers are right and 1 if all are wrong"""
    sure = np.ones_like(confidence)
    close(function(sure, np.ones_like(hit)), 0.0, 2.0**-46)
    close(function(sure, np.zeros_like(hit)), 1.0, 2.0**-46)


def mistake_bins_of_equal_count(confidence, hit):
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, 15)
    gaps = [abs(hit[part].sum() - confidence[part].sum()) for part in parts]
    return float(sum(gaps) / len(hit))
