"""How good a model is, how much memory a step takes, and the figures.

Read `metrics.py` first: one pass gives loss, perplexity, exact match and calibration.
"""
