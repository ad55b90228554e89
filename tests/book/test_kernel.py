"""The book's kernels: no two processes of a parallel build compete for a port."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from lessons.book import book

CHANNELS = """
from ipykernel.connect import get_connection_info

print(get_connection_info(unpack=True)["transport"])
"""


def test_a_kernel_is_reached_through_files(monkeypatch):
    monkeypatch.setattr(NotebookClient, "kernel_manager_class", NotebookClient.kernel_manager_class)
    before = set(Path(tempfile.gettempdir()).glob("kernel-*"))
    book.connect(SimpleNamespace(connect=lambda *a, **k: None, add_html_math_renderer=print))
    notebook = NotebookClient(new_notebook(cells=[new_code_cell(CHANNELS)])).execute()
    assert notebook.cells[0].outputs[0]["text"] == "ipc\n"
    assert set(Path(tempfile.gettempdir()).glob("kernel-*")) == before
