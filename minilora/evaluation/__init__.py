"""Evaluation of models, memory of a training step, figures, and `train` with all of these.

Read `metrics.py` first: it computes loss, perplexity, exact match and calibration in one pass.
"""
