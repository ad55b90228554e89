"""The operations of the core, optimized: derived backward passes, compiled loops, threads.

Every function here has a plain twin in `nn.py`, `nf4.py` or `quant`, with the same arguments, and
tests hold the two together. Read `fused.py` first: one derivation and one loop per operation.
"""
