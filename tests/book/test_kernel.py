"""The book's kernels: no two processes of a parallel build compete for a port."""

import subprocess
import sys
import tempfile
from pathlib import Path

# in a process of its own: it imports ipykernel, and then minilora draws its progress
EXECUTE = """
from types import SimpleNamespace

from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from lessons.book import book

nothing = lambda *args, **options: None
book.connect(SimpleNamespace(connect=nothing, add_html_math_renderer=nothing))
code = "from ipykernel.connect import get_connection_info as info; info(unpack=True)['transport']"
notebook = NotebookClient(new_notebook(cells=[new_code_cell(code)])).execute()
print(notebook.cells[0].outputs[0]["data"]["text/plain"])
"""


def test_a_kernel_is_reached_through_files():
    before = set(Path(tempfile.gettempdir()).glob("kernel-*"))
    command = [sys.executable, "-c", EXECUTE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "'ipc'\n"
    assert set(Path(tempfile.gettempdir()).glob("kernel-*")) == before
