"""Progress of training and evaluation: a bar, or a line every few seconds."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10  # without a terminal for a progress bar


class Progress(tqdm):
    """A progress bar in a terminal or a notebook; otherwise a line every few seconds.

    With `quiet`, there is neither. The other options are those of tqdm.
    """

    def __init__(
        self, total: int, unit: str, first: int = 0, quiet: bool = False, **options: Any
    ) -> None:
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        hidden = quiet or not watched
        super().__init__(total=total, initial=first, unit=unit, disable=hidden, **options)
        self.prints_lines = not watched and not quiet
        self.first = first
        self.began = self.last_line = time.perf_counter()

    def advance(self, n: int, line: str) -> None:
        """Count `n` more units; `line` is printed if there is no bar and the time has come."""
        if not self.disable:
            self.update(n)
            return
        self.n += n
        now = time.perf_counter()
        due = now - self.last_line > SECONDS_BETWEEN_LINES
        if self.prints_lines and due and self.n < self.total:
            self.last_line = now
            left = (self.total - self.n) * (now - self.began) / (self.n - self.first)
            print(f"{line}, {self.format_interval(left)} left", file=sys.stderr, flush=True)
