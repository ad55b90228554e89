"""minilora: LoRA and QLoRA from scratch, small enough to read, exact enough to believe.

config, base, tokenizer = minilora.load("tiny")
"""

import os

# OpenBLAS's idle threads otherwise spin for some 20 ms after each product, on the cores that the
# kernels of `fused.py` need. Read when NumPy loads, so a program that imports NumPy first may set it.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
