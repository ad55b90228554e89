"""What the book adds to the lessons: downloads, exercises, and docstrings as pages.

Sphinx calls the functions below while it builds; `connect` says when.
"""

import ast
import base64
import os
import re
import shutil
import tempfile
import uuid
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import latex2mathml.converter
import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import default

import minilora.course.students.exercises
from lessons.book import explorer
from lessons.book.cache import LESSONS, QUICK, SWEEPS

FIGURES = LESSONS.parent / "figures"
STUDIES = set(LESSONS.glob("studies/*/*.py")).difference(SWEEPS)
LESSON_FILES = [*sorted(LESSONS.glob("[0-9]*.py")), *sorted(STUDIES)]
BOOK_ONLY = "book"  # the tag of cells that the downloaded notebook does not have


def connect(app):
    """Register this module's functions with Sphinx."""
    NotebookClient.kernel_manager_class = KernelOverSocketFiles
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
    app.connect("builder-inited", create_cache)
    app.connect("builder-inited", choose_figures)
    app.connect("builder-inited", write_explorer)
    app.connect("builder-inited", pack_conformance_kit)
    app.connect("env-before-read-docs", spread_lessons)
    for change in (resolve_links, add_to_lesson, list_exercises):
        app.connect("source-read", change)
    app.connect("doctree-read", show_own_figures, priority=400)  # before Sphinx collects them
    app.connect("doctree-read", clean_notebook)
    app.connect("autodoc-process-docstring", docstring_to_rst)
    app.connect("build-finished", copy_mathjax)


class KernelOverSocketFiles(AsyncKernelManager):
    """Connects to a kernel through socket files, in place of Jupyter's default, TCP ports.

    Jupyter chooses a free port, and the kernel opens it half a second later. The other processes
    of a parallel build may have taken it by then.
    """

    transport = "ipc"

    @default("connection_file")
    def _unique_file(self):  # the paths of its sockets begin with it, and have at most 107 bytes
        return str(Path(tempfile.gettempdir(), f"kernel-{uuid.uuid4().hex}.json"))


def inline_mathml(writer, node, display="inline"):
    """Write a formula as MathML: an EPUB has no MathJax."""
    writer.body.append(latex2mathml.converter.convert(node.astext(), display=display))
    raise nodes.SkipNode


def block_mathml(writer, node):
    inline_mathml(writer, node, "block")


def create_cache(app):
    """Create the cache before the build splits into processes: only one may create it."""
    if app.config.nb_execution_mode == "cache":
        get_cache(app.config.nb_execution_cache_path).list_cache_records()


def choose_figures(app):
    """Make lessons write their figures into the book's own folder, not into figures/."""
    folder = Path(app.outdir).parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MINILORA_FIGURES"] = str(folder)


def write_explorer(app):
    """Write the data of the explorer next to its page: weights, adapters and questions."""
    explorer.write(Path(app.outdir) / "_static" / "explorer")


def pack_conformance_kit(app):
    """Pack the folder of the conformance kit for its page."""
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.make_archive(str(folder / "conformance"), "zip", LESSONS / "conformance")


def own_figure(name):
    """Return the path of the figure that this book's run wrote, or of the stored one."""
    own = Path(os.environ["MINILORA_FIGURES"]) / name
    return own if own.exists() else FIGURES / name


def show_own_figures(app, doctree):
    """Point the pictures of a page at the figures that its run wrote."""
    folder = (LESSONS / app.env.docname).parent
    for image in doctree.findall(nodes.image):
        path = Path(os.path.normpath(folder / image["uri"]))
        if path.is_relative_to(FIGURES):
            own = own_figure(path.relative_to(FIGURES).as_posix())
            image["uri"] = os.path.relpath(own, folder)


def is_lesson(docname):
    """Return whether a document is a lesson of the path or a study."""
    return docname[0].isdigit() or docname.startswith("studies/")


def spread_lessons(app, env, docnames):
    """Reorder the documents so that each chunk of a parallel build executes some lessons."""
    docnames[:] = [name for start in range(3) for name in docnames[start::3]]


# ----------------------------------------------------------------------------------- the lessons


def add_to_lesson(app, docname, source):
    """Add a line with downloads below the title, and link the exercises that the lesson names."""
    if not is_lesson(docname):
        return
    name = docname.rpartition("/")[2]
    links = (
        f"{{nb-download}}`Notebook with outputs <{name}.ipynb>` · "
        f"{{download}}`Python file <{name}.py>`"
    )
    title, rest = source[0].split("\n", 2)[1:]
    quick = QUICK or docname in app.config.book_quick
    note = "# *This page shows a quick run. The text describes the full run.*\n#\n" if quick else ""
    cells = f"# %% [markdown]\n{title}\n\n"
    cells += f'# %% [markdown] tags=["{BOOK_ONLY}"]\n{note}# {links}\n\n'
    if docname in app.config.book_quick:
        cells += f'# %% tags=["{BOOK_ONLY}", "remove-cell"]\nimport os\n\n'
        cells += 'os.environ["MINILORA_QUICK"] = "1"\n\n'
    rest = COLLAPSED.sub('# %% tags=["hide-input"]\n', rest)
    source[0] = link_exercises(f"{cells}# %% [markdown]\n{rest}", "../" * docname.count("/"))


# the first line of a code cell that the page shows when a reader clicks
COLLAPSED = re.compile(r"^# %%\n(?=# (?:Checks|Table|Picture)\b)", re.MULTILINE)
EXERCISES = re.compile(r"\*\*Exercises\.\*\*.*?(?=\n#\n|\n\n|\Z)", re.DOTALL)


def link_exercises(text, up):
    """Turn the ids in the paragraph `**Exercises.** …` into links to the page of exercises.

    up: the way from the page to the top of the book.
    """
    ids = exercises()

    def link(match):
        name = match[1]
        return f"[{name}]({up}exercises.md#{name})" if name in ids else match[0]

    return EXERCISES.sub(lambda m: re.sub(r"`?([a-z0-9]+(?:-[a-z0-9]+)*)`?", link, m[0]), text)


def clean_notebook(app, doctree):
    """Make the executed notebook fit to download: without the book's cells, with its pictures."""
    docname = app.env.docname
    path = Path(app.outdir).parent / "jupyter_execute" / f"{docname}.ipynb"
    if not is_lesson(docname) or not path.exists():
        return
    notebook = nbformat.read(path, as_version=4)
    if app.config.nb_execution_mode == "cache":
        with suppress(KeyError):  # MyST-NB writes a cached notebook without its outputs
            cache = get_cache(app.config.nb_execution_cache_path)
            notebook = cache.merge_match_into_notebook(notebook)[1]
    notebook.cells = [c for c in notebook.cells if BOOK_ONLY not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.source = re.sub(
            r"\[([a-z0-9-]+)\]\([./]*exercises\.md#[a-z0-9-]+\)", r"\1", cell.source
        )
        if cell.cell_type == "markdown":
            attach_pictures(cell)
        else:
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    nbformat.write(notebook, path)


PICTURES = {".png": "image/png", ".svg": "image/svg+xml", ".gif": "image/gif"}


def attach_pictures(cell):
    """Put the pictures of a Markdown cell into the cell, so that the notebook is one file."""
    for name in set(re.findall(r"\]\(((?:\.\./)+figures/[^)]+)\)", cell.source)):
        path = own_figure(name.partition("figures/")[2])
        picture = base64.b64encode(path.read_bytes()).decode()
        cell.source = cell.source.replace(f"]({name})", f"](attachment:{path.name})")
        cell.setdefault("attachments", {})[path.name] = {PICTURES[path.suffix]: picture}


# --------------------------------------------------------------------------------- the exercises


def exercises():
    """Return {id: exercise} in the order of the course."""
    return minilora.course.students.exercises.load()


def list_exercises(app, docname, source):
    """Append each exercise to the page of exercises, under a heading with its id."""
    if docname == "exercises":
        source[0] += "".join(describe(exercise) for exercise in exercises().values())


def lessons_with(exercise):
    """Return links to the lessons whose paragraph of exercises names this one."""
    texts = {file: EXERCISES.search(file.read_text("utf-8")) for file in LESSON_FILES}
    word = re.compile(rf"(?<![\w-]){exercise.id}(?![\w-])")
    found = [file for file, line in texts.items() if line and word.search(line[0])]
    return ", ".join(f"[{title(file)}]({file.relative_to(LESSONS)})" for file in found)


def title(file):
    """Return the title of a lesson: its first heading."""
    return re.search("^# # (.*)", file.read_text("utf-8"), re.MULTILINE)[1]


def describe(exercise):
    """Return the Markdown of an exercise: what to write, where it is taught, how to check it."""
    first = ast.get_docstring(ast.parse(exercise.source)).partition("\n")[0]
    return f"""
## {exercise.id}

{first.partition(": ")[2].capitalize()}

Lessons: {lessons_with(exercise)} · difficulty {exercise.difficulty} of 3 · about {exercise.minutes}
minutes · {exercise.points:g} points

{exercise.task}

Check it with `minilora learn check {exercise.id}`.
"""


# --------------------------------------------------------------------- links out of the lessons


def resolve_links(app, docname, source):
    """Point links to modules at the API reference; keep only the words of links to other files."""
    documented = "".join(path.read_text("utf-8") for path in LESSONS.glob("api/*.md"))
    folder = (LESSONS / docname).parent

    def resolve(match):
        words, target = match[1], match[2]
        path = (folder / target.partition("#")[0]).resolve()
        if path.suffix in PICTURES or target.startswith(("#", "http", "mailto")):
            return match[0]
        if path == LESSONS / "README.md":
            return f"[{words}](/index.md)"
        if path.is_relative_to(LESSONS.parent / "minilora"):
            module = ".".join(path.relative_to(LESSONS.parent).with_suffix("").parts)
            return f"[{words}](#{module})" if f"automodule:: {module}\n" in documented else words
        return match[0] if app.env.path2doc(str(path)) in app.project.docnames else words

    link, text = r"(?<!!)\[([^\]]+)\]\(([^()\s]+)\)", source[0]
    if is_lesson(docname):  # only in prose: code has calls that look like links
        source[0] = re.sub(
            r"^# .*", lambda m: re.sub(link, resolve, m[0]), text, flags=re.MULTILINE
        )
    else:
        source[0] = re.sub(link, resolve, text)


# ----------------------------------------------------------------------------- the API reference


def docstring_to_rst(app, what, name, obj, options, lines):
    """Turn a docstring, plain text with `code` and indented formulas, into RST, in place."""
    text = re.sub(r"([*|\\])", r"\\\1", "\n".join(lines))
    text = re.sub(r"`([^`\n]+(?:\n[^`\n]+)?)`", lambda m: f"``{unescape(m[1])}``", text)
    text = re.sub(r"(\w)_(?=\W|$)(?![^`\n]*``)", r"\1\\_", text)
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            paragraph = "::\n\n" + unescape(paragraph).replace("``", "`")
        parts += [*paragraph.split("\n"), ""]
    lines[:] = parts


def unescape(text):
    return re.sub(r"\\([*|\\_])", r"\1", text)


# --------------------------------------------------------------------------------------- the page


def copy_mathjax(app, error):
    """Copy the formula renderer into the book: one file, taken from an installed package."""
    if not error:
        package = Path(find_spec("sphinx-mathjax-offline").origin).parent
        target = Path(app.outdir) / "_static" / "mathjax"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / "static" / "mathjax" / "tex-svg.js", target)
