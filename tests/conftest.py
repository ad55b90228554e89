"""What all tests share: hypothesis without deadlines (the first example may compile a kernel)."""

import os

from hypothesis import settings

# Matrices are tiny here: a second thread in the products only waits for the first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("minilora", deadline=None)
settings.load_profile("minilora")
