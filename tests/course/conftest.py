"""Settings of the tests of the course."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from minilora.course.students import exercises
from minilora.course.teachers import teach


@pytest.fixture(autouse=True)
def built_in(monkeypatch):
    """Restore after each test what --exercises sets."""
    monkeypatch.setattr(exercises, "FOLDER", None)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Work in a new folder, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pools(monkeypatch):
    """Grade in this process, where students start sooner; return the number of jobs per pool."""
    found = []

    def pool(jobs, context):
        found.append(jobs)
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(teach, "ProcessPoolExecutor", pool)
    return found
