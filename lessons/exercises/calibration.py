"""calibration: is it right as often as it says?"""

import numpy as np

from minilora.course.outcome import close

CASES = {"n": (1, 40), "sure": [False, True]}


def arguments(rng, n, sure):
    confidence = rng.uniform(0.01, 1, n)
    if sure:
        confidence[::2] = 1.0
    return confidence, rng.random(n) < 0.5


def tolerance(*_):
    """float64: sums of 40 numbers of at most 1."""
    return 2.0**-46


def property_all_in_one_bin(function, confidence, hit):
    """where all are equally sure, it is the gap between that and the share of hits"""
    alike = np.full_like(confidence, 0.7)
    close(function(alike, hit), abs(hit.mean() - 0.7), 2.0**-44)


def property_sure_and_right(function, confidence, hit):
    """who is always sure and always right is calibrated; who is always wrong is off by one"""
    sure = np.ones_like(confidence)
    close(function(sure, np.ones_like(hit)), 0.0, 2.0**-46)
    close(function(sure, np.zeros_like(hit)), 1.0, 2.0**-46)
