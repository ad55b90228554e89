"""Evaluation of models, memory of a training step, figures, and the training loop.

Read `metrics.py` first: it computes loss, perplexity, exact match and calibration in one pass. Then
read `loop.py`: it adds evaluations to the steps of `training.py`.
"""
