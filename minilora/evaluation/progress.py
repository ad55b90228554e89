"""The progress bar of training and evaluation."""

import sys

from tqdm.auto import tqdm


def progress_bar(total, quiet, **options):
    """Return a bar of tqdm, which shows nothing with `quiet` and outside terminal and notebook."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(total=total, disable=quiet or not watched, **options)
