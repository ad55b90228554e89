"""The lessons of a clone, next to the package; a wheel has them in this place, as a folder."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "lessons")]
