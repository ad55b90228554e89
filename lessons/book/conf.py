"""Settings of the book: Sphinx builds it from the lessons, and executes each of them.

    python -m pip install --group docs -e '.[hf]'
    sphinx-build -W --keep-going -j 2 -c lessons/book lessons build/book
    sphinx-build -b epub -D html_math_renderer=mathml -c lessons/book lessons build/epub

`MINILORA_QUICK=1` builds it from quick runs. Executed lessons are cached per version of the code.
"""

import os

import minilora
from lessons.book import book
from lessons.book.cache import CACHE, KEY

project = "minilora"
version = minilora.__version__
author = "the minilora authors"
copyright = "the minilora authors, MIT licence"
language = "en"

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_codeautolink",
    "sphinx_copybutton",
]  # fmt: skip
include_patterns = [
    "index.md",
    "explorer.md",
    "conformance/README.md",
    "exercises.md",
    "[0-9]*.py",
    "studies/*/*.py",
    "guide/**.md",
    "api/**.md",
]

exclude_patterns = ["**/*_sweep.py"]

# Lessons are Python files in percent format. Each of them is executed in its folder.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(CACHE)
nb_execution_timeout = 1800  # seconds per cell
nb_execution_show_tb = True  # a cell that fails is a warning, and -W makes it an error
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3

# Names in code link to the API reference, also when an earlier cell imports them.
codeautolink_concat_default = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True

# All assets are local files: the book opens without a network.
html_theme = "furo"
html_title = "minilora: LoRA and QLoRA from scratch"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["explorer/elements.js", "explorer/quantize.js", "quantize.js"]
html_show_sphinx = False
html_copy_source = False
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    """Register the lessons' extras (`book.py`): downloads, exercises, docstrings, caching."""
    app.add_config_value("book_quick", [], "env", [list])  # documents to execute in quick mode
    app.add_config_value("book_key", KEY, "env", [str])  # another key: read everything again
    book.connect(app)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
