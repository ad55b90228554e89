"""Settings of the tests of the course."""

import pytest

from minilora.course.students import exercises


@pytest.fixture(autouse=True)
def built_in(monkeypatch):
    """Restore after each test what --exercises sets."""
    monkeypatch.setattr(exercises, "FOLDER", None)
